"""Which chat template is trained and served with: the tokenizer's, a built-in one, or one that the job writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

TOKENIZER = "tokenizer"
_MARKER = re.compile(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>")


def built_in_templates() -> dict[str, str]:
    """The built-in templates by name: the files of `chat_templates`."""
    folder = files("finetune_runner") / "chat_templates"
    found = {item.name.removesuffix(".jinja"): item for item in folder.iterdir() if item.name.endswith(".jinja")}
    return {name: found[name].read_text(encoding="utf-8").strip() for name in sorted(found)}


def use_template(tokenizer: Any, chat_template: str) -> None:
    """Give a tokenizer the template that `model.chatTemplate` names; `save_pretrained` then writes it.

    Of several beside a tokenizer (Command R: default, tool_use, rag) it is the one that transformers takes: default.

    Raises:
        StageError: INVALID_SPEC when a built-in template writes a marker that the tokenizer has no token for: the
            model would spell it letter by letter and never learn to stop. MODEL_UNUSABLE for several without a default.
    """
    if chat_template == TOKENIZER:
        if isinstance(tokenizer.chat_template, dict):
            tokenizer.chat_template = _default_of(tokenizer.chat_template)
        return
    built_in = built_in_templates().get(chat_template)
    if built_in is None:
        tokenizer.chat_template = chat_template
        return
    vocabulary = tokenizer.get_vocab()
    body = re.sub(r"\{#.*?#\}", "", built_in, flags=re.DOTALL)
    missing = sorted({marker for marker in _MARKER.findall(body) if marker not in vocabulary})
    if missing:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"model.chatTemplate {chat_template} writes {', '.join(missing)}: no token of this model's tokenizer",
            "use the tokenizer's own template, or model.chatTemplate: plain",
        )
    tokenizer.chat_template = built_in


def _default_of(templates: Mapping[str, str]) -> str:
    if "default" not in templates:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"the tokenizer has several chat templates and none is named default: {', '.join(sorted(templates))[:200]}",
            "write the one to train with into model.chatTemplate",
        )
    return templates["default"]
