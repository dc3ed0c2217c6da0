"""The images of a source, one module for each layout."""
