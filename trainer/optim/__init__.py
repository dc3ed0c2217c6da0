"""Optimization: optimizers, the learning-rate schedule, and the EMA of the weights."""
