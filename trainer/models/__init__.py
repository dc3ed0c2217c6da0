"""The networks, their layers, and the classifier with its preprocessing."""
