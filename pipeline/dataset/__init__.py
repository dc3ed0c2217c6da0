"""A prepared dataset on disk: manifest, shards, indexes, report."""
