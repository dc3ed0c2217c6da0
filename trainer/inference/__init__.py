"""Using a trained network: preprocessing, classifying files, features, nearest neighbors."""
