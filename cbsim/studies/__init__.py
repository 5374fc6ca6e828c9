"""Questions: one run, many runs, and what they say together."""
