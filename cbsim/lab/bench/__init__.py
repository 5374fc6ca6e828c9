"""The simulator's own speed: `cbsim bench`, or `make bench`."""
