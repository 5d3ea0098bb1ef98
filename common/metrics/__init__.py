"""Metrics that are computed on the host, in NumPy."""
