"""What moves the parameters of an objective during training."""
