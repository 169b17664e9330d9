"""Weak supervision: folds, classifiers, and scores by models that never saw the event."""
