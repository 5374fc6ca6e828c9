"""Play: one replica in the terminal, step by step, with settings that change while it runs."""
