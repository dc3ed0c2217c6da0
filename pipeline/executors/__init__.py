"""Executors run tasks: in processes on this machine, or on a Ray cluster."""
