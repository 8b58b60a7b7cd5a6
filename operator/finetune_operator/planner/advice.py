"""What would make a job fit: the smallest change first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from finetune_api.job.method import LARGEST_SERVED_RANK
from finetune_operator.planner.fit import Demand, Offered, fit, fsdp_of, sharded_gpus, stage_memory
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


def _with_rows(demand: Demand, length: int, few_shot: int) -> Demand:
    """The demand with rows of at most `length` and so many examples: prompts as workload.prompt_tokens has them."""
    prompt = length + few_shot * min(demand.typical_row, length)
    room = demand.prompt_room or prompt
    return replace(demand, longest_row=length, few_shot=few_shot, longest_prompt=max(1, min(prompt, room)))


def _lengths(demand: Demand) -> Iterator[int]:
    length = (demand.longest_row - 1) // LENGTH_STEP * LENGTH_STEP
    while length >= SHORTEST_LENGTH:
        yield length
        length = min(length - LENGTH_STEP, length * 3 // 4 // LENGTH_STEP * LENGTH_STEP)


def _quantised(demand: Demand) -> Demand:
    strategy = fsdp_of("qlora") if demand.strategy == fsdp_of("lora") else demand.strategy
    return replace(demand, method="qlora", full_precision=False, strategy=strategy)


def _edits(demand: Demand) -> list[Edit]:
    """Single edits that may help, those first that change the result least."""
    edits: list[Edit] = []
    if demand.least_micro_batch > 1:
        edits.append(("training.microBatchSize: 1", lambda d: replace(d, asked_micro_batch=1)))
    if demand.serves_merged and not demand.dora and demand.rank <= LARGEST_SERVED_RANK:
        edits.append(("output.servedAs: adapter", lambda d: replace(d, serves_merged=False)))
    if demand.few_shot:
        edits.append(("evaluation.fewShot: 0", lambda d: _with_rows(d, d.longest_row, 0)))
    if demand.full_precision and demand.method == "lora":
        edits.append(("training.precision: bf16", lambda d: replace(d, full_precision=False)))
    if not demand.checkpointing:
        edits.append(("training.gradientCheckpointing: enabled", lambda d: replace(d, checkpointing=True)))
    if demand.method == "qlora" and demand.bits == 8:
        edits.append(("method.bits: 4", lambda d: replace(d, bits=4)))
    if demand.dora:
        edits.append(("method.useDora: false", lambda d: replace(d, dora=False)))
    if demand.method == "lora":
        # qlora computes in bf16; the contract refuses it with fp32.
        text = "method.type: qlora"
        text = f"training.precision: bf16 and {text}" if demand.full_precision else text
        edits.append((text, _quantised))
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
        demand = _with_rows(demand, length, demand.few_shot)
    return Change(" and ".join(words), demand)


def _fits(demand: Demand, memory_gib: float) -> bool:
    stages = stage_memory(demand, demand.least_micro_batch, merges=demand.serves_merged)
    return all(fit(breakdown, memory_gib) == "Fits" for breakdown in stages.values())


def smallest_change(demand: Demand, memory_gib: float, p95_length: int) -> str | None:
    """The first edit after which every stage fits, for example `method.type: qlora`; None when none is enough."""
    return next((c.text for c in _changes(demand, p95_length) if _fits(c.demand, memory_gib)), None)


def _change_with_gpus(demand: Demand, offered: Offered, p95_length: int) -> str | None:
    """Edits that do not cut rows and the fewest GPUs with which they are enough, as fields; None where none are."""
    if demand.strategy in ("zero2", "zero3"):
        return None  # compute.deepspeed would have to go as well
    edits = _edits(demand)
    lengths = [None, *(length for length in _lengths(demand) if length >= p95_length)]
    for size in range(1, len(edits) + 1):
        for some, length in product(combinations(edits, size), lengths):
            change = _applied(demand, some, length)
            gpus = sharded_gpus(change.demand, offered) if can_be_parts(change.demand) else None
            if gpus is not None:
                per_node = min(gpus, offered.gpus_per_node)
                nodes = f", compute.nodes: {gpus // per_node}" if gpus > per_node else ""
                words = change.text.replace(" and ", ", ")
                return f"{words}, compute.strategy: fsdp{nodes} and compute.gpusPerNode: {per_node}"
    return None


def card_size_gib(demand: Demand) -> int | None:
    """Memory of the smallest usual GPU that the job fits as it is; None where it fits none of them."""
    return next((size for size in CARD_SIZES_GIB if _fits(demand, size)), None)


def _need_gib(demand: Demand) -> float:
    stages = stage_memory(demand, demand.least_micro_batch, merges=demand.serves_merged)
    return max(part.device_bytes for part in stages.values()) / GIB


def _edit_or_size(edit: str | None, demand: Demand) -> str:
    size = card_size_gib(demand)
    if size is None:
        too_large = f"no GPU is large enough, it needs {_need_gib(demand):.1f} GiB"
        none = f"no setting is enough and {too_large}: use a smaller model"
        return f"set {edit}; as it is {too_large}" if edit else none
    pool = f"a pool whose GPUs have {size} GiB"
    return f"set {edit}, or use {pool}" if edit else f"no setting is enough: use a smaller model or {pool}"


def what_would_fit(demand: Demand, offered: Offered, p95_length: int) -> str:
    """One sentence: the smallest edit, the smallest GPU, and how many GPUs, or why more of them do not help."""
    edit = smallest_change(demand, offered.memory_gib, p95_length)
    options = _edit_or_size(edit, demand)
    if not can_be_parts(demand):
        why = "8-bit weights" if demand.quantisation == "int8" else f"the states of {demand.optimizer}"
        return f"{options}; more GPUs do not help, {why} are not cut into parts: each trains with the whole model"
    gpus = sharded_gpus(demand, offered)
    if gpus is None and edit is None:
        shared = _change_with_gpus(demand, offered, p95_length)
        if shared is not None:
            return _edit_or_size(shared, demand)
    if gpus is None:
        most = max(offered.shares(demand.least_micro_batch), default=1)
        if most == 1:
            return options
        return f"{options}; {most} GPUs of the pool together are not enough either"
    nodes = gpus // min(gpus, offered.gpus_per_node)
    where = f" on {nodes} nodes" if nodes > 1 else ""
    return f"{options}, or {gpus} GPUs{where} with compute.strategy: fsdp"
