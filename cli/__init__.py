"""The commands: options in, one call into the library, readable output."""
