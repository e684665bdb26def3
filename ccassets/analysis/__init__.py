"""What the features are for: concept scores, classifiers on them, search, and what to think of the results."""
