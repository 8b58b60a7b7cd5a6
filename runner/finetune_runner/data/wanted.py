"""Which sources a job names, and what each is for: prepare and `finetune validate` read the same ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.job.data import Columns
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.loading import Wanted

POOL = "pool"
"""The rows of data.train, which validation and test may be split off."""


@dataclass(frozen=True)
class SplitSource:
    """One source and the split its rows belong to."""

    split: str
    wanted: Wanted
    weight: float = 1.0
    """How often a row is used per epoch; only data.train[] has one of its own."""


def split_sources(spec: FineTuneJobSpec) -> Iterator[SplitSource]:
    """All sources of the job, those of data.train first and in their order."""
    data = spec.data
    for number, dataset in enumerate(data.train):
        columns = dataset.columns or Columns()
        wanted = Wanted(
            f"data.train[{number}]",
            dataset.source,
            dataset.format,
            columns,
            dataset.secret_ref,
            data.group_by,
            data.system_prompt,
            dataset.provenance.to_wire() if dataset.provenance is not None else {},
        )
        yield SplitSource(POOL, wanted, dataset.weight)
    others = {
        "validation": ("data.validation", data.validation),
        "test": ("data.test", data.test),
        "replay": ("data.replay", data.replay),
        "out_of_domain": ("evaluation.outOfDomain", spec.evaluation.out_of_domain),
    }
    for split, (place, other) in others.items():
        if other is not None and other.source is not None:
            system_prompt = data.system_prompt if split in ("validation", "test") else None
            wanted = Wanted(place, other.source, other.format, secret_ref=other.secret_ref, system_prompt=system_prompt)
            yield SplitSource(split, wanted)
