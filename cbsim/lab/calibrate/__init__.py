"""Calibration: kernels timed or imported, a step form fitted to them, and how wrong it is."""
