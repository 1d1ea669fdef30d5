"""Models of our own: one folder a model, with its definition, training script, export and card."""
