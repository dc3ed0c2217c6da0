"""Sharding: plan a dataset's shards, make each of them as a task, and merge the results."""
