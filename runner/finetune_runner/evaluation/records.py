"""Outcomes in storage: gzipped JSON lines, in the order of the split."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_runner.data.rows import Row
from finetune_runner.evaluation.outcomes import Outcome, from_record, to_record

OUT_OF_DOMAIN_SUFFIX = "/ood"


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
        ValueError: the records are damaged, or not those of these rows.
    """
    found: dict[str, list[Outcome]] = {}
    try:
        for record in unpack(data):
            name = str(record["system"])
            split = rows["out_of_domain" if name.endswith(OUT_OF_DOMAIN_SUFFIX) else "test"]
            outcomes = found.setdefault(name, [])
            row = split[len(outcomes)]
            if record["id"] != row.id:
                raise ValueError(f"outputs of {name} belong to other rows")
            outcomes.append(from_record(record, row.said))
    except (KeyError, TypeError, IndexError, OSError, EOFError) as error:
        raise ValueError(f"stored outputs cannot be read: {error!r}") from error
    for name, outcomes in found.items():
        if len(outcomes) != len(rows["out_of_domain" if name.endswith(OUT_OF_DOMAIN_SUFFIX) else "test"]):
            raise ValueError(f"outputs of {name} are incomplete")
    return found
