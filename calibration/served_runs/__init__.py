"""Served runs: latencies measured on real servers, predicted from timings of kernels alone."""
