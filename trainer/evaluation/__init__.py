"""Measuring networks: metrics, predictions, label sets, results."""
