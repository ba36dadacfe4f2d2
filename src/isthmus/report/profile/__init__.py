"""The document of a profile: its data, its words, its figures, its page."""
