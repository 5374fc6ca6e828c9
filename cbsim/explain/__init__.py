"""Explain a run: what each step's batch was, what each request waited for, and where its time went."""
