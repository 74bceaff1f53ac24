"""Side-by-side measurements; a tool of the repository, not installed."""
