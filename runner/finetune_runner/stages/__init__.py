"""The stages: one module each, with `run(context)`; found by their name."""
