"""The pipelines: which tasks there are and what flows between them, and their compilation."""
