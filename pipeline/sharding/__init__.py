"""Making a dataset: plan the shards, make each as a task, merge the results."""
