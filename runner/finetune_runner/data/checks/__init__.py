"""What is checked before a GPU is held: one module each, with PHASE, ORDER, `mode(spec)` and `check(given)`.

They are found by their names; `data/checking.py` says what they are given and what they may do.
"""
