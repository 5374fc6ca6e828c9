"""Two worlds, or a world and a log, side by side."""
