"""report.html: one page without scripts and without anything loaded from elsewhere. Pure: data in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from finetune_api.job.evaluation import LOWER_IS_BETTER, Gate
from finetune_runner.report.curve import loss_curve
from finetune_runner.report.document import CLASSES_SHOWN, Document
from finetune_runner.report.html import cell as _cell
from finetune_runner.report.html import table as _table
from finetune_runner.report.html import whole_page
from finetune_runner.report.training import training_section

NOTHING = "-"


def render(document: Document, samples: Sequence[Mapping[str, Any]]) -> str:
    """The whole page. Every text that comes from data is escaped."""
    job = document["job"]
    title = f"{document['adapter']}: evaluation of {job['namespace']}/{job['name']}, run {job['run']}"
    parts = [
        _summary(document),
        "<h2>Metrics</h2>",
        _metrics(document),
        "<h2>Gates</h2>",
        _gates(document),
    ]
    if "perClass" in document:
        parts += ["<h2>F1 per class</h2>", _per_class(document["perClass"])]
        parts += ["<h2>Confusion</h2>", _confusion(document["confusion"])]
    if document["training"] is not None:
        parts += ["<h2>Training</h2>", training_section(document["training"])]
    if document["lossCurve"]:
        kept = document["training"]["bestStep"] if document["training"] is not None else None
        parts += ["<h2>Loss</h2>", loss_curve(document["lossCurve"], document["primary"], kept)]
    if samples:
        parts += ["<h2>Samples</h2>", _samples(samples)]
    return whole_page(title, parts)


def _summary(document: Document) -> str:
    incumbent = f", compared with {document['incumbent']}" if document["incumbent"] else ""
    uses = document["testUses"]
    often = f"for the {ordinal(uses)} time"
    return (
        f"<p>Base {escape(document['base'])}, method {escape(document['method'])}, judged as "
        f"<b>{escape(document['servedAs'])}</b>{escape(incumbent)}. Test split of {document['rows']} rows, used "
        f"{often} by this adapter. Intervals are 90 %, by bootstrap over test rows.</p>"
    )


def ordinal(count: int) -> str:
    """`first`, `2nd`, `3rd`, `11th`, `21st`."""
    if count == 1:
        return "first"
    ending = "th" if 10 <= count % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending}"


def number(value: float | None) -> str:
    """Four significant digits, a dash for none."""
    return NOTHING if value is None else f"{value:.4g}"


def _metrics(document: Document) -> str:
    references: Mapping[str, Mapping[str, float]] = document["references"]
    other = document["otherForm"]
    head = ["metric", *map(escape, references), "tuned", "90 % interval", *(["other form"] if other else [])]
    rows = []
    for name, found in document["metrics"].items():
        better = "lower is better" if name in LOWER_IS_BETTER else "higher is better"
        cells = [f'<td title="{better}">{escape(name)}</td>']
        cells += [_cell(number(values.get(name)), "n") for values in references.values()]
        cells += [_cell(number(found["value"]), "n"), _cell(f"{number(found['low'])} to {number(found['high'])}", "n")]
        if other:
            cells.append(_cell(number(other.get(name)), "n"))
        rows.append(cells)
    return _table(head, rows)


def _gates(document: Document) -> str:
    if not document["gates"]:
        return '<p class="note">This run has no gates.</p>'
    rows = []
    for item in document["gates"]:
        evidence = item["evidence"]
        reference = evidence.get("reference")
        against = f"{number(reference)} ({evidence.get('referenceName', '')})" if reference is not None else NOTHING
        interval = f"{number(evidence['low'])} to {number(evidence['high'])}"
        rows.append(
            [
                _cell(Gate.from_wire(item["gate"]).in_words()),
                _cell(number(evidence["candidate"]), "n"),
                _cell(against, "n"),
                _cell(("difference " if reference is not None else "") + interval, "n"),
            ]
        )
    table = _table(["gate", "tuned", "compared with", "90 % interval"], rows)
    return table + '<p class="note">The verdicts are in the status of the FineTuneJob.</p>'


def _per_class(classes: Sequence[Mapping[str, Any]]) -> str:
    rows = [[_cell(c["class"]), _cell(number(c["f1"]), "n"), _cell(str(c["rows"]), "n")] for c in classes]
    return _table(["class", "f1", "test rows"], rows)


def _confusion(confusion: Mapping[str, Any]) -> str:
    classes = confusion["classes"]
    if len(classes) > CLASSES_SHOWN:
        return f'<p class="note">{len(classes)} classes; the matrix is in evaluation.json.</p>'
    rows = []
    for name, counts in zip(classes, confusion["counts"], strict=True):
        total = max(1, sum(counts))
        shaded = [
            f'<td class="n" style="background: rgba(40, 160, 110, {count / total * 0.7:.2f})">{count}</td>'
            for count in counts
        ]
        rows.append([f"<th>{escape(name)}</th>", *shaded])
    note = '<p class="note">Rows: expected. Columns: answered.</p>'
    return _table(["", *map(escape, confusion["columns"])], rows) + note


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _cell("\n".join(f"{m['role']}: {m['content']}" for m in sample["prompt"]), "text"),
            _cell(sample["expected"], "text"),
            _cell(sample["baseline"] if sample["baseline"] is not None else NOTHING, "text"),
            _cell(sample["tuned"] or "", "text"),
        ]
        for sample in samples
    ]
    return _table(["prompt", "expected", "baseline", "tuned"], rows)
