"""What the commands share: console, options, live view, results."""
