"""Layouts of a row: one module each, with NAME, SHAPE, RANK, `matches(value, columns)` and `parse(value, columns)`.

Where rows look like several formats the lowest RANK is taken: the layout that says most about them.

`parse` gives the messages, or a `Parsed` where a row holds more than a conversation.
"""
