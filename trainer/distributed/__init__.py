"""Processes: their environment, launching them, agreeing, failures, gradient compression."""
