"""Figures of a network, its predictions and its run, as PNG or SVG."""
