"""Command-line interface: each command parses options, calls the library once and prints the result."""
