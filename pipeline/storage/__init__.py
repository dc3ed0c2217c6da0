"""A folder on this machine or in a bucket; files that appear whole or not at all; locks."""
