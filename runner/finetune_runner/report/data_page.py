"""data-report.html: one page without scripts and without anything loaded from elsewhere. Pure: data in, text out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from finetune_api.wording import counted
from finetune_runner.report.html import cell, table, whole_page

_WIDTH, _HEIGHT, _LEFT, _FLOOR = 720, 200, 56, 170
_GRAVITY = {"error": 0, "warning": 1, "info": 2}


def render_data_report(document: Mapping[str, Any]) -> str:
    """The whole page. Every text that comes from data is escaped."""
    job = document["job"]
    parts = [
        _summary(document),
        "<h2>Sources</h2>",
        _sources(document["sources"]),
        "<h2>Rows</h2>",
        table(["split", "rows"], ([cell(name), cell(str(rows), "n")] for name, rows in document["rows"].items())),
        "<h2>Findings</h2>",
        _findings(document),
        "<h2>Dropped and changed</h2>",
        _changes(document["checks"]),
        "<h2>Length of the training mix, in tokens</h2>",
        _lengths(document),
    ]
    if "labels" in document:
        parts += ["<h2>Labels</h2>", _labels(document["labels"])]
    parts += ["<h2>Transformations</h2>", _transformations(document["transformations"])]
    return whole_page(f"{document['adapter']}: data of {job['namespace']}/{job['name']}, run {job['run']}", parts)


def _summary(document: Mapping[str, Any]) -> str:
    rows = sum(document["rows"].values())
    taken = f" Taken over from {document['preparedBy']}, which had prepared the same data." * bool(
        document["preparedBy"]
    )
    return (
        f"<p>{counted(rows, 'row')} in {counted(len(document['rows']), 'split')}, {document['dropped']} left out; "
        f"{counted(document['trainTokens'], 'token')} per epoch. Seed {document['seed']}, data digest "
        f"<code>{document['dataDigest'][:16]}</code>, test digest "
        f"<code>{document['testDigest'][:16]}</code>.{escape(taken)}</p>"
    )


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    def rows() -> Iterator[list[str]]:
        for source in sources:
            files = "\n".join(f"{f['name']}  {f['bytes']} bytes  sha256 {f['sha256'][:16]}" for f in source["files"])
            provenance = "\n".join(f"{name}: {value}" for name, value in source["provenance"].items())
            yield [
                cell(source["field"]),
                cell(source["source"], "text"),
                cell(source["format"]),
                cell(str(source["rows"]), "n"),
                cell(", ".join(f"{split} {rows}" for split, rows in source["kept"].items()) or "nothing"),
                cell(source["licence"] or "not stated"),
                cell(provenance, "text"),
                cell(files, "text"),
            ]

    return table(["field", "source", "format", "rows", "kept", "licence", "provenance", "files"], rows())


def _findings(document: Mapping[str, Any]) -> str:
    remarks = [*document["remarks"], *(remark for check in document["checks"] for remark in check["remarks"])]
    if not remarks:
        return '<p class="note">Nothing was found.</p>'
    rows = [
        [
            cell(remark["severity"]),
            cell(remark["check"]),
            cell(str(remark["rows"]), "n"),
            cell(remark["message"], "text"),
            cell("\n".join(remark["positions"]), "text"),
        ]
        for remark in sorted(remarks, key=lambda remark: _GRAVITY[remark["severity"]])
    ]
    return table(["severity", "check", "rows", "what", "first rows"], rows)


def _changes(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for check in checks:
        why = "\n".join(remark["message"] for remark in check["remarks"])
        for what in ("dropped", "replaced"):
            rows += [
                [cell(check["check"]), cell(what), cell(split), cell(str(count), "n"), cell(why, "text")]
                for split, count in check[what].items()
            ]
    if not rows:
        return '<p class="note">No row was dropped or changed by a check.</p>'
    return table(["check", "what", "split", "rows", "why"], rows)


def _lengths(document: Mapping[str, Any]) -> str:
    lengths, most = document["lengths"], document["maxLength"]
    said = (
        f"<p>Median {lengths['p50']}, 95 % below {lengths['p95']}, longest {lengths['maximum']}; "
        f"{counted(lengths['overMaximum'], '[row is|rows are]')} longer than training.maxLength {most}.</p>"
    )
    buckets = document["lengthBuckets"]
    highest = max((bucket["rows"] for bucket in buckets), default=0)
    if not highest:
        return said
    width = (_WIDTH - _LEFT) / len(buckets)
    bars = "".join(
        f'<rect x="{_LEFT + number * width:.1f}" y="{_FLOOR * (1 - bucket["rows"] / highest) + 8:.1f}" '
        f'width="{max(width - 1, 0.5):.1f}" height="{_FLOOR * bucket["rows"] / highest:.1f}" '
        f'fill="{"#2a7" if bucket["from"] <= most else "#b63"}"><title>{bucket["from"]} to {bucket["to"]} tokens: '
        f"{counted(bucket['rows'], 'row')}</title></rect>"
        for number, bucket in enumerate(buckets)
    )
    labels = (
        f'<text x="{_LEFT - 8}" y="20" text-anchor="end">{highest}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{buckets[0]["from"]}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{buckets[-1]["to"]} tokens</text>'
    )
    return (
        f'{said}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="rows by length in tokens" font-size="12" '
        f'fill="currentColor" font-family="system-ui, sans-serif">{bars}{labels}</svg>'
    )


def _labels(labels: Mapping[str, int]) -> str:
    total = max(sum(labels.values()), 1)
    rows = [
        [
            cell(name),
            cell(str(count), "n"),
            cell(f"{100 * count / total:.1f} %", "n"),
            f'<td><svg width="200" height="10"><rect width="{200 * count / total:.1f}" height="10" fill="#2a7"/></svg>'
            "</td>",
        ]
        for name, count in labels.items()
    ]
    return table(["label", "rows", "share", ""], rows)


def _transformations(transformations: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [cell(str(number), "n"), cell(json.dumps(step, ensure_ascii=False), "text")]
        for number, step in enumerate(transformations, 1)
    ]
    return table(["step", "what"], rows) if rows else '<p class="note">None.</p>'
