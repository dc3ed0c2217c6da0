"""Callbacks of a training run: the interface, TensorBoard, the profiler."""
