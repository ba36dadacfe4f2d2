"""The document of a simplified network: what went, what it cost, what it was said to cost."""
