"""Inference with a trained network: preprocessing, classifying files, features, nearest neighbors."""
