"""What everything else stands on: mistakes, units, names of parts, paths and text files."""
