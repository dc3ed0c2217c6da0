"""Listers: list the images of a source, one module for each layout."""
