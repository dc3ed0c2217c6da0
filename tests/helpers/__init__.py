"""Files, servers and processes that several tests use."""
