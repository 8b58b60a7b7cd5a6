"""Which sources a job names, and what each is for: prepare and `finetune validate` read the same ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.job.data import Columns
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.loading import Wanted
from finetune_runner.data.source_files import Choice

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
    judged, drop_empty = spec.method.objective == "kto", data.checks.empty_answers == "drop"
    mappings = [dataset.columns for dataset in data.train]
    # One mapping for all of train is that of the held-out files too: they have no field for another.
    of_train = mappings[0] if mappings[0] is not None and all(each == mappings[0] for each in mappings) else None
    for number, dataset in enumerate(data.train):
        columns = dataset.columns or Columns()
        wanted = Wanted(
            f"data.train[{number}]",
            dataset.source,
            dataset.format,
            columns,
            dataset.secret_ref,
            data.group_by,
            Choice(dataset.subset, dataset.split),
            data.system_prompt,
            dataset.provenance.to_wire() if dataset.provenance is not None else {},
            judged=judged,
            drop_empty_answers=drop_empty,
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
            of_task = split in ("validation", "test")
            system_prompt = data.system_prompt if of_task else None
            choice = Choice(usual_split=split if of_task else "train")
            wanted = Wanted(
                place,
                other.source,
                other.format,
                columns=of_train if of_task and of_train is not None else Columns(),
                columns_of_train=of_task and of_train is not None,
                judged=judged and of_task,
                drop_empty_answers=drop_empty,
                secret_ref=other.secret_ref,
                system_prompt=system_prompt,
                choice=choice,
            )
            yield SplitSource(split, wanted)
