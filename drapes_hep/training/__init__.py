"""Training of torch models: one loop for all of them, its curve, and checkpoints to resume from."""
