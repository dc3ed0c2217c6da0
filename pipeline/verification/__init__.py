"""Proving a dataset; adopting other tools' tars; measuring statistics again."""
