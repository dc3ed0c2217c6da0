"""Labelers: read ImageNet's label files, and turn a source's labels into classes."""
