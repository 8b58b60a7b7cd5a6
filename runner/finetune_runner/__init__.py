"""The runner: one command per stage, the same code on a GPU and on the CPU."""
