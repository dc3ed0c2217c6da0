"""What people have: a source's images and labels, listed."""
