"""The document of a run: its words, its tables, its figures, its page."""
