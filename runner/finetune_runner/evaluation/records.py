"""Outcomes in storage: gzipped JSON lines, in the order of the split."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.rows import Row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.outcomes import Outcome, from_record, to_record


def to_jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object per line."""
    return b"".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for r in records)


def pack(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Gzipped JSON lines; the same records give the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as target:
        target.write(to_jsonl(records))
    return buffer.getvalue()


def unpack(data: bytes) -> list[dict[str, Any]]:
    """The inverse of `pack`."""
    return [json.loads(line) for line in gzip.decompress(data).split(b"\n") if line]


def pack_systems(systems: Mapping[str, Sequence[Outcome]]) -> bytes:
    """Outcomes of several systems on the same or different rows; each line names its system."""
    return pack({"system": name, **to_record(o)} for name, outcomes in systems.items() for o in outcomes)


def unpack_systems(data: bytes, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Outcome]]:
    """Outcomes by system. `rows[split]` gives the expected answers; a system named `x/ood` belongs to out_of_domain.

    Raises:
        StageError: INVALID_DATA when the records are not those of these rows.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in unpack(data):
        found.setdefault(str(record["system"]), []).append(record)
    result = {}
    for name, records in found.items():
        split = rows["out_of_domain" if name.endswith(OUT_OF_DOMAIN_SUFFIX) else "test"]
        if [r["id"] for r in records] != [row.id for row in split]:
            raise StageError(
                ExitCode.INVALID_DATA,
                f"stored outputs of {name} do not belong to this run's rows",
                hint="start the run anew: its folder in storage was changed",
            )
        result[name] = [from_record(r, row.answer) for r, row in zip(records, split, strict=True)]
    return result


OUT_OF_DOMAIN_SUFFIX = "/ood"
