"""Processes of a run: rank and device, launching, joint decisions, failures, gradient compression."""
