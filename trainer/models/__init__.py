"""Models: the AlexNets, their layers, and the classifier with its preprocessing."""
