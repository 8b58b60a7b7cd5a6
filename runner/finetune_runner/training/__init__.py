"""LoRA and QLoRA training with TRL: loading, order, loop, checkpoints, strategies."""
