"""Layouts of a row: one module each, with NAME, SHAPE, `matches(value, columns)` and `parse(value, columns)`.

`parse` gives the messages, or a `Parsed` where a row holds more than a conversation.
"""
