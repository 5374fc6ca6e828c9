"""A scheduler, a workload, a cost model and an observer for cbsim."""
