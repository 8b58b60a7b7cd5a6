"""From the rows of a file to a minimal YAML. Pure."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.job.judgement import judgement_of
from finetune_api.job.method import Objective
from finetune_api.job.recipe import RECIPES
from finetune_cli.errors import CliError

METHODS: dict[Objective, str] = {
    "sft": "",
    "dpo": """  method:
    objective: dpo  # from pairs of a better and a worse answer
    # warmStartFrom: {version: NAME-v1}  # go on from a published version; else from the base model
""",
    "kto": """  method:
    objective: kto  # from answers that are judged good or bad
    # warmStartFrom: {version: NAME-v1}  # go on from a published version; else from the base model
""",
}
TaskType = Literal["classification", "extraction", "generation"]
MOST_CLASSES = 40
"""More different answers than this are no classes: they would not fit into a prompt."""
MINIMUM_ROWS = 50


@dataclass(frozen=True)
class Layout:
    """How rows are laid out, and what was seen in their answers."""

    format: Literal["chat", "alpaca", "promptCompletion", "preference"]
    columns: dict[str, str]
    answers: list[str]
    """Of preferences the better ones."""
    objective: Objective = "sft"


def _texts(rows: list[dict[str, Any]], column: str) -> list[str]:
    return [str(row[column]) for row in rows if row.get(column) is not None]


def _chosen_text_column(rows: list[dict[str, Any]], answer: str, wanted: str | None) -> str:
    names = list(rows[0])
    if wanted is not None:
        if wanted not in names:
            raise CliError(f"--text: there is no column {wanted}", f"There are: {', '.join(names)}.")
        return wanted
    lengths = {
        name: sum(map(len, _texts(rows, name)))
        for name in names
        if name != answer and all(isinstance(row.get(name), (str, type(None))) for row in rows)
    }
    if not lengths or not max(lengths.values()):
        raise CliError("no column holds the input text", f"Name it with --text. There are: {', '.join(names)}.")
    # The input is the longest text; identifiers, dates and flags are short.
    return max(lengths, key=lambda name: lengths[name])


def _answer_text(value: object) -> str:
    """An answer that is a text, or the last of messages: a list, an object of lists, either as JSON text, a transcript.

    What is no conversation gives an empty text: `finetune validate` says what is wrong with it.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[{", '{"')):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        told = _last_message(parsed)
        return value if told is None else told
    if isinstance(value, str):
        return value.rpartition("\n\nAssistant:")[2].strip() if value.lstrip().startswith("Human:") else value
    if isinstance(value, list | dict):
        return _last_message(value) or ""
    return "" if value is None else str(value)


def _last_message(value: Any) -> str | None:
    """The text of the last of messages; None where these are none."""
    last: Any = value[-1] if isinstance(value, list) and value else None
    if isinstance(value, dict):
        last = {key: each[-1] for key, each in value.items() if isinstance(each, list) and each}
    if not isinstance(last, dict) or not {"role", "from"} & last.keys():
        return None
    said = last.get("content", last.get("value"))
    return "" if said is None else str(said)


def _preferences(rows: list[dict[str, Any]]) -> Layout | None:
    """Pairs of a better and a worse answer, or answers that are judged true or false; None for anything else.

    Raises CliError when every answer is judged the same.
    """
    names = set(rows[0])
    if {"chosen", "rejected"} <= names:
        return Layout("preference", {}, [_answer_text(row.get("chosen")) for row in rows], "dpo")
    if not {"prompt", "completion", "label"} <= names:
        return None
    judged = [judgement_of(row.get("label")) for row in rows]
    if None in judged:
        return None
    if len(set(judged)) == 1:
        raise CliError(
            f"every answer has label {str(judged[0]).lower()}: nothing tells wanted answers from others",
            "Add answers of the other kind; or remove the column label to learn from all of them.",
        )
    wanted = [_answer_text(row.get("completion")) for row, good in zip(rows, judged, strict=True) if good]
    return Layout("preference", {}, wanted, "kto")


def layout_of(rows: list[dict[str, Any]], label: str | None, text: str | None) -> Layout:
    """Recognise the layout: preferences, chat, alpaca, prompt and completion, or a table with a text and an answer.

    Raises CliError naming the columns when none fits.
    """
    names = list(rows[0])
    preferences = _preferences(rows) if label not in names else None
    if preferences is not None:
        return preferences
    for column in ("messages", "conversations"):
        if column in names:
            return Layout("chat", {}, [_answer_text(row.get(column)) for row in rows])
    if {"instruction", "output"} <= set(names):
        return Layout("alpaca", {}, _texts(rows, "output"))
    if {"prompt", "completion"} <= set(names) and label not in names:
        return Layout("promptCompletion", {}, _texts(rows, "completion"))
    if label is None:
        raise CliError(
            f"the columns {', '.join(names)} are no layout that is known", "Name the answer's column with --label."
        )
    if label not in names:
        raise CliError(f"--label: there is no column {label}", f"There are: {', '.join(names)}.")
    return Layout(
        "promptCompletion", {"prompt": _chosen_text_column(rows, label, text), "completion": label}, _texts(rows, label)
    )


def _json_answers(answers: list[str]) -> list[dict[str, Any]]:
    found = []
    for answer in answers:
        try:
            value = json.loads(answer)
        except ValueError:
            return []
        if not isinstance(value, dict):
            return []
        found.append(value)
    return found


def _json_type(value: object) -> str:
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object" if isinstance(value, dict) else "null"


def _schema(objects: list[dict[str, Any]], classes: dict[str, list[str]]) -> dict[str, Any]:
    common = [name for name in objects[0] if all(name in item for item in objects)]
    properties: dict[str, Any] = {}
    for name in common:
        types = sorted({_json_type(item[name]) for item in objects})
        if name in classes:
            properties[name] = {"enum": classes[name]}
        elif types in (["integer", "number"], ["number"]):
            properties[name] = {"type": "number"}
        else:
            properties[name] = {"type": types[0] if len(types) == 1 else types}
    return {"type": "object", "required": common, "properties": properties}


def _classes(values: list[str]) -> list[str]:
    seen = Counter(values)
    return sorted(seen) if len(seen) <= MOST_CLASSES else []


def _classification(layout: Layout, label: str | None) -> list[str]:
    objects = _json_answers(layout.answers)
    if objects and label is not None and label not in layout.columns.values():
        if not all(isinstance(item.get(label), str) for item in objects):
            there = ", ".join(objects[0])
            raise CliError(f"--label: not every answer has a text {label}", f"The first answer has: {there}.")
        names = _classes([item[label] for item in objects])
        schema = json.dumps(_schema(objects, {label: names} if names else {}), ensure_ascii=False)
        among = f", {label} one of {', '.join(names)}" if names else ""
        prompt = f"Answer with one JSON object with {', '.join(objects[0])}{among}."
        return [
            "    task:",
            "      type: classification",
            f"      labelPath: $.{label}",
            f"      schema: {schema}",
            f"    baselinePrompt: {json.dumps(prompt, ensure_ascii=False)}",
            "    metrics: [{name: f1, average: macro}, {name: schemaValid}]",
        ]
    names = _classes(layout.answers)
    if not names:
        raise CliError(
            f"the answers have more than {MOST_CLASSES} different values: that is no classification",
            "Use --task generation (or extraction for JSON answers), or name another --label.",
        )
    if len(names) == 1:
        raise CliError(f"every answer is {names[0]!r}: there is nothing to learn", "Name another column with --label.")
    prompt = f"Classify the text. Answer with exactly one of: {', '.join(names)}."
    return [
        "    task: {type: classification}",
        f"    baselinePrompt: {json.dumps(prompt, ensure_ascii=False)}",
        "    metrics: [{name: f1, average: macro}, {name: exactMatch}]",
    ]


def _extraction(layout: Layout) -> list[str]:
    objects = _json_answers(layout.answers)
    if not objects:
        raise CliError(
            "extraction needs answers that are JSON objects, and not every answer is one",
            "Use --task generation, or correct the answers.",
        )
    prompt = f"Extract the fields. Answer with one JSON object with {', '.join(objects[0])}."
    return [
        "    task:",
        "      type: extraction",
        f"      schema: {json.dumps(_schema(objects, {}), ensure_ascii=False)}",
        f"    baselinePrompt: {json.dumps(prompt, ensure_ascii=False)}",
        "    metrics: [{name: exactMatch}, {name: schemaValid}]",
    ]


def _generation() -> list[str]:
    return ["    task: {type: generation}", "    metrics: [{name: rougeL}]"]


@dataclass(frozen=True)
class Draft:
    """What the YAML is written from."""

    name: str
    source: str
    model: str
    task: TaskType
    label: str | None
    text: str | None


def draft_yaml(draft: Draft, layout: Layout) -> str:
    """The YAML. Raises CliError when rows and task do not fit."""
    if draft.task == "classification":
        evaluation = _classification(layout, draft.label)
    else:
        evaluation = _extraction(layout) if draft.task == "extraction" else _generation()
    recipe = RECIPES[layout.objective]
    usual = f"learningRate: {recipe.learning_rate:g}, epochs: {recipe.epochs:g}"
    method = METHODS[layout.objective]
    columns = f"\n      columns: {json.dumps(layout.columns)}" if layout.columns else ""
    lines = "\n".join(evaluation)
    return f"""# Written by `finetune init`. All fields: docs/reference, or `kubectl explain finetunejob.spec`.
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: {draft.name}
spec:
  model:
    # The base model: hf://owner/name, s3://bucket/prefix, or file://folder without a cluster.
    source: {draft.model}
  data:
    train:
    - source: {draft.source}
      format: {layout.format}{columns}
    # Validation (10 %) and test (15 %) are split off by themselves; near-duplicates stay together.
{method}  # Learning rate and epochs follow from the objective ({layout.objective}); set them to overrule.
  # training: {{{usual}}}
  evaluation:
{lines}
    # Without gates: the first metric must beat the best baseline, and nothing else may get worse.
    # gates:
    # - {{metric: {_first_metric(evaluation)}, minimum: 0.85}}
  output:
    adapterRef: {{name: {draft.name}}}
"""


def _first_metric(evaluation: list[str]) -> str:
    return evaluation[-1].split("name: ", 1)[1].split("}", 1)[0].split(",", 1)[0]
