"""The document of a branch: page, figures, and what the terminal shows."""
