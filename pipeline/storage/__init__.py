"""Storage: a local folder or a bucket behind one interface; atomic file writes; file locks."""
