"""HTML for people: self-contained pages with figures and tables."""
