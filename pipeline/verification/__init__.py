"""Verification: check a dataset, adopt tars of other tools, and measure statistics of decoded images."""
