"""Optimizers, learning-rate schedules, averaged weights."""
