"""Evaluation of trained networks: metrics, predictions, label sets, submissions, result files."""
