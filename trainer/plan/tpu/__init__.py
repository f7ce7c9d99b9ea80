"""What the TPU compiler makes of the training step, for slices that are not attached."""
