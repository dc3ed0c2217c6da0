"""Decode, resize and encode images; compute statistics of their pixels; arrange and plot them."""
