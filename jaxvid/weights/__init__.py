"""Public checkpoints into our modules."""
