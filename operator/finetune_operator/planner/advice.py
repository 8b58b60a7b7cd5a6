"""What would make a job fit: the smallest change first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from finetune_api.wording import agreeing
from finetune_operator.planner.fit import Demand, Offered, fit, sharded_gpus, stage_memory
from finetune_operator.planner.memory.breakdown import GIB
from finetune_operator.planner.strategy import can_be_parts

SHORTEST_LENGTH = 256
LENGTH_STEP = 128
LOWEST_RANK = 4
SHORTEST_ANSWER = 64
CARD_SIZES_GIB = (16, 24, 32, 40, 48, 80, 96, 141, 180)

Edit = tuple[str, Callable[[Demand], Demand]]
"""A field with its new value, and what it does to the demand."""


@dataclass(frozen=True)
class Change:
    """An edit of the spec, in words, and the demand after it."""

    text: str
    demand: Demand


def _shortened(demand: Demand, length: int) -> Demand:
    prompt = max(1, demand.longest_prompt - (demand.longest_row - length))
    return replace(demand, longest_row=length, longest_prompt=min(prompt, demand.longest_prompt))


def _lengths(demand: Demand) -> Iterator[int]:
    length = (demand.longest_row - 1) // LENGTH_STEP * LENGTH_STEP
    while length >= SHORTEST_LENGTH:
        yield length
        length = min(length - LENGTH_STEP, length * 3 // 4 // LENGTH_STEP * LENGTH_STEP)


def _edits(demand: Demand) -> list[Edit]:
    """Single edits that may help, those first that change the result least."""
    edits: list[Edit] = []
    if demand.serves_merged:
        edits.append(("output.servedAs: adapter", lambda d: replace(d, serves_merged=False)))
    if demand.longest_prompt > demand.longest_row:
        edits.append(("evaluation.fewShot: 0", lambda d: replace(d, longest_prompt=d.longest_row)))
    if demand.full_precision and demand.method == "lora":
        edits.append(("training.precision: bf16", lambda d: replace(d, full_precision=False)))
    if not demand.checkpointing:
        edits.append(("training.gradientCheckpointing: enabled", lambda d: replace(d, checkpointing=True)))
    if demand.method == "qlora" and demand.bits == 8:
        edits.append(("method.bits: 4", lambda d: replace(d, bits=4)))
    if demand.dora:
        edits.append(("method.useDora: false", lambda d: replace(d, dora=False)))
    if demand.method == "lora":
        edits.append(("method.type: qlora", lambda d: replace(d, method="qlora")))
    if demand.max_new_tokens > SHORTEST_ANSWER:
        text = f"evaluation.maxNewTokens: {SHORTEST_ANSWER}"
        edits.append((text, lambda d: replace(d, max_new_tokens=SHORTEST_ANSWER)))
    return edits


def _changes(demand: Demand, p95_length: int) -> Iterator[Change]:
    """Candidates: few edits before many, and only then lengths that cut more than one row in twenty."""
    edits = _edits(demand)
    chosen = [some for size in range(len(edits) + 1) for some in combinations(edits, size)]
    lengths = list(_lengths(demand))
    for some in chosen:
        if some:
            yield _applied(demand, some)
        for length in lengths:
            if length >= p95_length:
                yield _applied(demand, some, length)
    rank = demand.rank // 2
    while rank >= LOWEST_RANK:
        yield Change(f"method.rank: {rank}", replace(demand, rank=rank))
        rank //= 2
    for some in chosen:
        for length in lengths:
            yield _applied(demand, some, length)


def _applied(demand: Demand, edits: Sequence[Edit], length: int | None = None) -> Change:
    words = [text for text, _ in edits]
    for _, edit in edits:
        demand = edit(demand)
    if length is not None:
        words.append(f"training.maxLength: {length}")
        demand = _shortened(demand, length)
    return Change(" and ".join(words), demand)


def _fits(demand: Demand, memory_gib: float) -> bool:
    stages = stage_memory(demand, 1, merges=demand.serves_merged)
    return all(fit(breakdown, memory_gib) == "Fits" for breakdown in stages.values())


def smallest_change(demand: Demand, memory_gib: float, p95_length: int) -> str | None:
    """The first edit after which every stage fits, for example `method.type: qlora`; None when none is enough."""
    return next((c.text for c in _changes(demand, p95_length) if _fits(c.demand, memory_gib)), None)


def card_size_gib(demand: Demand) -> float:
    """Memory of the smallest usual GPU that the job fits as it is; past all of them, the need itself."""
    for size in CARD_SIZES_GIB:
        if _fits(demand, size):
            return float(size)
    need = max(part.device_bytes for part in stage_memory(demand, 1, merges=demand.serves_merged).values())
    return float(math.ceil(need / GIB))


def what_would_fit(demand: Demand, offered: Offered, p95_length: int) -> str:
    """One sentence: the smallest edit, the smallest GPU, and how many GPUs, or why more of them do not help."""
    edit = smallest_change(demand, offered.memory_gib, p95_length)
    size = f"a pool whose GPUs have {card_size_gib(demand):.0f} GiB"
    options = f"set {edit}, or use {size}" if edit else f"no setting is enough: use a smaller model or {size}"
    if not can_be_parts(demand):
        why = "8-bit weights" if demand.quantisation == "int8" else f"the states of {demand.optimizer}"
        return f"{options}; more GPUs do not help, {why} are not cut into parts: each trains with the whole model"
    gpus = sharded_gpus(demand, offered)
    if gpus is None:
        all_of_them = agreeing(offered.most_gpus, f"[only GPU is|{offered.most_gpus} GPUs together are]")
        return f"{options}; the pool's {all_of_them} not enough either"
    nodes = gpus // min(gpus, offered.gpus_per_node)
    where = f" on {nodes} nodes" if nodes > 1 else ""
    return f"{options}, or {gpus} GPUs{where} with compute.strategy: fsdp"
