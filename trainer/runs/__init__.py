"""A run on disk: its folder, checkpoints, status; loading trained models."""
