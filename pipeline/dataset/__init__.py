"""The format of a prepared dataset: manifest, shards, indexes and report; reading a dataset."""
