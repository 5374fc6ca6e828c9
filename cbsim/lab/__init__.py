"""The real world: kernels, what they cost, a live engine, and how far the simulation is from it."""
