"""A run on disk: its folder, checkpoints and status; loading trained models and external weights."""
