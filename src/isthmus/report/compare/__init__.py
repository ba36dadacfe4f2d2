"""The document of a comparison: its words, its maps and figures, its page."""
