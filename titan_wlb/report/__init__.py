"""A run on paper: what its records say, as text, JSON, a page and a trace. Never imports torch."""
