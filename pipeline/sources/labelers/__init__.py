"""Where labels come from: the development kit, names, numbers."""
