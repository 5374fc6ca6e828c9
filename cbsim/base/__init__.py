"""What everything stands on: errors, units, files, and how rules are put together and compiled."""
