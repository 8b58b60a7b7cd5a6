"""Training of adapters: loading, order, objectives, the loop, checkpoints, strategies."""
