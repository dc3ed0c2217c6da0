"""Batches for training and evaluation: what an epoch shows, in which order, from which files."""
