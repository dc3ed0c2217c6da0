"""Decoding, resizing and encoding images; statistics of their pixels; grids and plots of them."""
