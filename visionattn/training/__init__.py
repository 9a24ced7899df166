"""What the tools share: options, data, the training loop, checkpoints, logs."""
