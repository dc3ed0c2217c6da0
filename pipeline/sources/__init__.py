"""Sources: list the images and labels of an existing dataset, in any supported layout."""
