"""Callbacks of a training run: the interface, status.json, TensorBoard; and the profiler."""
