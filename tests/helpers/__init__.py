"""Helpers that several tests share: they make files, start servers and run processes."""
