"""What a run gives: figures, tables, and the run folder."""
