"""From cleaned rows to splits, on the row store: clusters to splits, weights, and the replay mix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import Remark
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.splitting import parts, place, repetitions, test_share
from finetune_runner.data.wanted import POOL
from finetune_runner.errors import StageError

_LARGE_CLUSTER_SHARE = 0.2


@dataclass(frozen=True)
class Step:
    """One transformation: what the lineage keeps, and what people are told."""

    lineage: dict[str, Any]
    remarks: list[Remark]


def split_pool(store: RowStore, near: NearDuplicates, spec: FineTuneJobSpec) -> Step:
    """Give each cluster of the pool, which has rows, to train, or to validation or test without a source of its own.

    Raises:
        StageError: INVALID_DATA for fewer groups of data.groupBy than splits.
    """
    rows = store.counts()[POOL]
    # By the spec and not by what is left: a source that lost its rows is not to be replaced by a part of train.
    validation = 0.0 if spec.data.validation.source is not None else spec.data.validation.fraction
    test = 0.0 if spec.data.test.source is not None else test_share(spec.data.test.fraction, rows)
    seed = spec.training.seed
    near.set_clusters(POOL)
    database = store.database
    database.create_function("place", 1, lambda key: place(seed, key), deterministic=True)
    database.execute("CREATE TABLE clusters(key TEXT PRIMARY KEY, rows INTEGER, place REAL)")
    database.execute(
        "INSERT INTO clusters SELECT cluster, count(*), place(cluster) FROM rows WHERE split = ? GROUP BY cluster",
        (POOL,),
    )
    database.execute("CREATE TABLE parts(key TEXT PRIMARY KEY, split TEXT)")
    ordered = "SELECT place, key FROM clusters ORDER BY place, key"
    database.executemany("INSERT INTO parts VALUES (?, ?)", parts(lambda: database.execute(ordered), validation, test))
    database.execute(
        "UPDATE rows SET split = parts.split FROM parts WHERE parts.key = rows.cluster AND rows.split = ?", (POOL,)
    )
    clusters, largest = database.execute("SELECT count(*), max(rows) FROM clusters").fetchone()
    needed = 1 + (validation > 0) + (test > 0)
    if spec.data.group_by is not None and clusters < needed:
        groups = counted(clusters, "group")
        raise StageError(
            ExitCode.INVALID_DATA,
            f"data.groupBy {spec.data.group_by} makes {groups} of all {counted(rows, 'row')}; "
            f"{needed} are needed, since a group is never divided",
            "group by something finer, or give data.validation.source and data.test.source",
        )
    remarks = []
    if largest > max(_LARGE_CLUSTER_SHARE * rows, 1):
        grouped = spec.data.group_by is not None
        what = "one group" if grouped else "near-duplicates of each other (or one group)"
        fix = "group by something finer" if grouped else "vary the rows, or set data.groupBy"
        message = f"{largest} of {rows} rows are {what} and stay in one split; the splits may miss their shares: {fix}"
        remarks.append(Remark("clusters", "warning", message, largest))
    lineage = {
        "seed": seed,
        "by": spec.data.group_by or "near-duplicate clusters",
        "clusters": clusters,
        "validationShare": validation,
        "testShare": test,
        "rows": store.counts(),
    }
    return Step({"split": lineage}, remarks)


def weigh(store: RowStore, seed: int) -> Step | None:
    """Repeat or thin out the rows of train as the weights of their datasets say."""
    database = store.database
    if database.execute("SELECT 1 FROM rows WHERE split = 'train' AND weight != 1 LIMIT 1").fetchone() is None:
        return None
    before = store.copies().get("train", 0)
    database.create_function("repetitions", 2, lambda row_id, weight: repetitions(row_id, weight, seed))
    database.execute("UPDATE rows SET copies = repetitions(id, weight) WHERE split = 'train'")
    unused = database.execute("UPDATE rows SET split = NULL WHERE split = 'train' AND copies = 0").rowcount
    return Step({"weights": {"before": before, "unused": unused, "after": store.copies().get("train", 0)}}, [])


def mix_replay(store: RowStore, spec: FineTuneJobSpec) -> Step | None:
    """Take as many replay rows as make up their fraction of the mix; fewer, when the source has no more."""
    replay = spec.data.replay
    if replay is None:
        return None
    train = store.copies().get("train", 0)
    wanted = round(train * replay.fraction / (1 - replay.fraction))
    available = store.counts().get("replay", 0)
    seed = spec.training.seed
    database = store.database
    database.create_function("sampled", 1, lambda row_id: place(seed, f"sample:{row_id}"), deterministic=True)
    database.execute(
        "UPDATE rows SET split = NULL WHERE split = 'replay' AND number NOT IN "
        "(SELECT number FROM rows WHERE split = 'replay' ORDER BY sampled(id), id LIMIT ?)",
        (wanted,),
    )
    taken = store.counts().get("replay", 0)
    remarks = []
    if taken < wanted:
        share = 100 * taken / max(taken + train, 1)
        message = (
            f"data.replay has {counted(taken, 'usable row')}, fraction {replay.fraction:g} needs {wanted}: replay is "
            f"{share:.0f} % of the mix; add rows to it or lower the fraction"
        )
        remarks.append(Remark("replay", "warning", message, taken))
    return Step({"replay": {"wanted": wanted, "available": available, "taken": taken}}, remarks)
