"""Layouts of a row: one module each, with NAME, SHAPE, `matches(value, columns)` and `parse(value, columns)`."""
