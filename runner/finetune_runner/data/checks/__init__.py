"""What is checked before a GPU is held: one module each, with PHASE, ORDER and `check(given)`; found by its name."""
