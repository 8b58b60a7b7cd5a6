"""Reasoning before an answer: it is generated and learned, but what is judged is the answer behind it.

So do servers (vLLM's and SGLang's reasoning parsers); metrics would else compare thoughts, and no JSON would be valid.
"""

from __future__ import annotations

REASONING_END = "</think>"
"""DeepSeek-R1, Qwen3, GLM-4.5 and most others."""


def without_reasoning(text: str) -> str:
    """What is said behind the reasoning; all of a text without."""
    _, ended, said = text.rpartition(REASONING_END)
    return said.lstrip() if ended else text
