"""A scheduler, a workload and a cost model for cbsim."""
