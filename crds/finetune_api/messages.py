"""Pydantic's errors in users' words: one table, each entry says what is wrong and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

from pydantic_core import ErrorDetails

from finetune_api.common import DNS_LABEL, DURATION
from finetune_api.crd import Schema
from finetune_api.wording import counted
from finetune_api.yaml_document import Path, scalar_value

Said = tuple[str, str]
"""What is wrong (goes on from the field's path) and the fix."""

_LONGEST_SHOWN = 40

_PATTERNS: dict[str, Said] = {
    DNS_LABEL: ("has other characters than a-z, 0-9 and '-'", "use lower-case letters, digits and '-'"),
    DURATION: ("is not a duration", "write for example 24h, 90m or 1h30m"),
}
"""Words for the patterns that are easy to explain; for others the field's description shows the form."""


def describe(detail: ErrorDetails, path: Path, schema: Schema) -> Said:
    """One pydantic error as what is wrong and the fix. `schema` is the whole object's."""
    node = node_at(schema, path)
    if node.get("x-kubernetes-int-or-string"):
        return f"is {shown(detail['input'])}", _form(node)
    teller = _TELLERS.get(detail["type"])
    if teller is not None:
        return teller(detail, path, schema, node)
    return f"is not accepted: {detail['msg']}", _form(node)


def node_at(schema: Schema, path: Path) -> Schema:
    """The schema of a path; empty when there is none."""
    node: Schema = schema
    for step in path:
        node = member_of(node, step)
    return node


def member_of(node: Schema, step: str | int) -> Schema:
    """The schema of an entry of a list, a field of an object or a value of a map; empty when there is none."""
    if isinstance(step, int):
        return dict(node.get("items", {}))
    return dict(node.get("properties", {}).get(step) or node.get("additionalProperties") or {})


def show_path(path: Path) -> str:
    """A path as people write it: `spec.data.train[0].source`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def shown(value: object) -> str:
    """A value as the author wrote it, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{_short(value)}'" if value else "an empty text"
    if isinstance(value, dict):
        return "an object with fields"
    if isinstance(value, list):
        return "a list"
    return "empty" if value is None else _short(str(value))


_OTHERS_NAMES = {
    "lr": "learningRate",
    "r": "rank",
    "lorar": "rank",
    "lorarank": "rank",
    "loraalpha": "alpha",
    "loradropout": "dropout",
    "loratargetmodules": "targetModules",
    "numepochs": "epochs",
    "numtrainepochs": "epochs",
    "batchsize": "globalBatchSize",
    "trainbatchsize": "globalBatchSize",
    "gradientaccumulationsteps": "globalBatchSize",
    "perdevicetrainbatchsize": "microBatchSize",
    "perdevicebatchsize": "microBatchSize",
    "cutofflen": "maxLength",
    "sequencelen": "maxLength",
    "optim": "optimizer",
    "lrschedulertype": "scheduler",
    "warmupsteps": "warmupRatio",
    "samplepacking": "packing",
    "compile": "torchCompile",
    "torchcompilebackend": "torchCompile",
    "torchcompilemode": "torchCompile",
    "path": "source",
    "uri": "source",
    "file": "source",
}
"""Names that transformers, peft, axolotl and LLaMA-Factory have for the same: too different to be guessed."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean ...?`, or nothing when no known word is near."""
    by_letters = {_letters(name): name for name in known}
    meant = _OTHERS_NAMES.get(_letters(word), "")
    if _letters(meant) in by_letters:
        return f"did you mean {meant}?"
    near = difflib.get_close_matches(_letters(word), list(by_letters), n=1, cutoff=0.7)
    return f"did you mean {by_letters[near[0]]}?" if near else ""


def _letters(word: str) -> str:
    return word.replace("_", "").replace("-", "").lower()


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _form(node: Schema) -> str:
    """What to write there, from the schema: the values, the range, or the description."""
    if "enum" in node:
        return f"write {_either(node['enum'])}"
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None or high is not None:
        return _range(node)
    about = str(node.get("description", "")).rstrip(".")
    return f"it is: {_lower_first(about)}" if about else "see docs/reference/api.md"


def _range(node: Schema) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    what = "a whole number" if node.get("type") == "integer" else "a number"
    above = "above" if node.get("exclusiveMinimum") else "from"
    if high is None:
        return f"write {what} {above} {low}"
    return f"write {what} {above} {low} to {high}" if low is not None else f"write {what} up to {high}"


def _either(values: Iterable[object]) -> str:
    *first, last = (str(value) for value in values)
    return f"{', '.join(first)} or {last}" if first else last


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _missing(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    about = _lower_first(str(node.get("description", "")).split(". ")[0].rstrip("."))
    return "is missing", f"add {path[-1]}: {about}" if about else f"add {path[-1]}"


def _unknown(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    known = list(node_at(schema, path[:-1]).get("properties", {}))
    where = show_path(path[:-1]) or "the object"
    return (
        f"is not a field of {where}",
        suggestion(str(path[-1]), known) or f"remove it; {where} has {', '.join(sorted(known))}",
    )


def _not_a_number(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    value = detail["input"]
    wanted = "a whole number" if detail["type"].startswith("int") else "a number"
    written = scalar_value(value) if isinstance(value, str) else None
    if isinstance(written, (int, float)) and not isinstance(written, bool):
        return f"is {shown(value)}, not {wanted}", "remove the quotes"
    return f"is {shown(value)}, not {wanted}", _form(node)


def _not_a_text(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    value = detail["input"]
    said = f"is {shown(value)}, not a text"
    if pattern := node.get("pattern"):
        fits = isinstance(value, (int, float)) and re.search(pattern, shown(value)) is not None
        form = _PATTERNS.get(pattern, ("", _form(node)))[1]
    else:
        fits = isinstance(value, (int, float)) and "enum" not in node
        form = _form(node)
    return said, f'put it in quotes: "{shown(value)}"' if fits else form


def _not_true_or_false(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    return f"is {shown(detail['input'])}, not true or false", "write true or false, without quotes"


def _not_a_list(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    return f"is {shown(detail['input'])}, not a list", "start each entry with '- '"


def _not_an_object(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    names = ", ".join(node.get("properties", {}))
    return (
        f"is {shown(detail['input'])}, not an object with fields",
        f"write its fields: {names}" if names else "write key: value",
    )


def _not_a_choice(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    values = [str(value) for value in node["enum"]]
    near = suggestion(str(detail["input"]), values)
    return f"is {shown(detail['input'])}", f"{near} Write {_either(values)}" if near else f"write {_either(values)}"


def _out_of_range(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    limits = detail.get("ctx", {})
    word, bound = next((word, limits[key]) for key, word in _LIMITS.items() if key in limits)
    return f"is {shown(detail['input'])}; it must be {word} {bound:g}", _range(node)


_LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _text_length(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    limits = detail.get("ctx", {})
    length = len(detail["input"])
    if "max_length" in limits:
        return f"has {counted(length, 'character')}; at most {limits['max_length']} are allowed", "shorten it"
    return "is empty" if not length else f"has {counted(length, 'character')}, too few", _form(node)


def _pattern(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    what, fix = _PATTERNS.get(node.get("pattern", ""), ("does not have the right form", _form(node)))
    return f"is {shown(detail['input'])}: it {what}", fix


def _count(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    limits = detail.get("ctx", {})
    count = len(detail["input"])
    if "max_length" in limits:
        return f"has {counted(count, '[entry|entries]')}; at most {limits['max_length']} are allowed", "remove some"
    return f"has {counted(count, '[entry|entries]')}; at least {limits['min_length']} is needed", _form(node)


def _time(detail: ErrorDetails, path: Path, schema: Schema, node: Schema) -> Said:
    return f"is {shown(detail['input'])}, not a time", "write for example 2026-01-31T12:00:00Z"


_TELLERS: dict[str, Callable[[ErrorDetails, Path, Schema, Schema], Said]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "int_type": _not_a_number,
    "int_from_float": _not_a_number,
    "float_type": _not_a_number,
    "finite_number": _not_a_number,
    "string_type": _not_a_text,
    "bool_type": _not_true_or_false,
    "list_type": _not_a_list,
    "dict_type": _not_an_object,
    "model_type": _not_an_object,
    "model_attributes_type": _not_an_object,
    "literal_error": _not_a_choice,
    "greater_than": _out_of_range,
    "greater_than_equal": _out_of_range,
    "less_than": _out_of_range,
    "less_than_equal": _out_of_range,
    "string_too_short": _text_length,
    "string_too_long": _text_length,
    "string_pattern_mismatch": _pattern,
    "too_short": _count,
    "too_long": _count,
    "datetime_type": _time,
    "value_error": _time,
}
