"""Detection and instance segmentation with an encoder as trunk: data, model, training, scores."""
