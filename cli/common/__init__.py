"""Shared by the commands: console output, options, live view, dataset facts, evaluation results."""
