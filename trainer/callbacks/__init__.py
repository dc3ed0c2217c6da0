"""What follows a run while it trains: the interface, TensorBoard, the profiler."""
