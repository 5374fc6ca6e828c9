"""What a reader sees of runs: tables and pictures."""
