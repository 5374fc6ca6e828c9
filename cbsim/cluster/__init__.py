"""Several replicas and their clients on one clock."""
