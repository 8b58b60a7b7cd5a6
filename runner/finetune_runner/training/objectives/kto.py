"""kto: wanted answers are to gain, unwanted ones to lose, each against a common point (Ethayarajh et al. 2024, eq. 8).

The point is how far the model has moved at all: the mean gain of answers to other prompts. It is taken over a whole
optimiser step and not, as in TRL, over a micro-batch, so that what is learned depends on no setting of the hardware.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.lazy_sequence import Joined
from finetune_runner.errors import StageError
from finetune_runner.evaluation.likelihood import Encoded
from finetune_runner.training.encoded_rows import lengths_of
from finetune_runner.training.objectives.base import Batch, Start, Sums
from finetune_runner.training.objectives.preference import (
    ReferenceStore,
    Scorer,
    reference_log_probabilities,
    sequence_log_probabilities,
)
from finetune_runner.training.objectives.sft import pad

if TYPE_CHECKING:
    from finetune_runner.training.distributed import World


@dataclass(frozen=True)
class Judged:
    """Judged answers. An example is one or several that follow each other (the two of a pair)."""

    encoded: Sequence[Encoded]
    """[2 x answers]; an answer with its prompt, and an answer to another prompt in its place, in turn."""
    wanted: torch.Tensor
    """[answers] booleans."""
    counts: Sequence[int]
    """[examples]; answers of each example."""


def partners(prompts: Sequence[Hashable], seed: int) -> array[int]:
    """For each row another one whose answer stands in for an unrelated one: a pure function of rows and seed.

    Rows follow each other in a ring, ordered by a hash; a neighbour with the same prompt is passed over as long as
    there is another. `prompts` may be stand-ins for the prompts, equal where these are.
    """
    size = len(prompts)
    digests = bytearray()
    for row in range(size):
        digests += hashlib.sha256(f"{seed}:{row}".encode()).digest()
    ring = array("q", np.lexsort(np.frombuffer(digests, ">u8").reshape(size, 4).T[::-1]).astype(np.int64).tobytes())
    differs = [prompts[row] != prompts[ring[(place + 1) % size]] for place, row in enumerate(ring)]
    found = array("q", range(size))
    if not any(differs):
        return found
    last = differs.index(True)
    for place in range(last, last - size, -1):  # against the ring: where the neighbour looks, if it has the same prompt
        row, neighbour = ring[place], ring[(place + 1) % size]
        found[row] = neighbour if differs[place] else found[neighbour]
    return found


def class_weights(wanted: int, unwanted: int) -> tuple[float, float]:
    """Weights of wanted and unwanted answers under which both classes weigh the same; the larger class has weight 1.

    Raises StageError when one of them is missing.
    """
    if not wanted or not unwanted:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"method.objective kto needs wanted and unwanted answers; there are {wanted} and {unwanted} to train on",
            hint="add rows of the other label, or learn from good answers alone with objective: sft",
        )
    larger = max(wanted, unwanted)
    return larger / wanted, larger / unwanted


def judged_losses(
    gains: torch.Tensor, wanted: torch.Tensor, point: float, beta: float, weights: tuple[float, float]
) -> torch.Tensor:
    """[answers] losses.

    Args:
        gains: [answers]; how much more likely, in nats, each answer has become.
        wanted: [answers] booleans.
        point: the mean gain of unrelated answers, at least 0.
        beta: strength of the tie to the reference.
        weights: of wanted and unwanted answers.
    """
    away = torch.where(wanted, gains - point, point - gains)
    weight = torch.where(wanted, weights[0], weights[1]).to(gains.dtype)
    return weight * (1 - torch.sigmoid(beta * away))


def ranking_accuracy(gains: torch.Tensor, wanted: torch.Tensor) -> float:
    """Share of (wanted, unwanted) pairs in which the wanted answer gained more; ties count half (Mann-Whitney U).

    0.5 where there is no pair.
    """
    better, worse = gains[wanted], gains[~wanted].sort().values
    if not len(better) or not len(worse):
        return 0.5
    below, up_to = (torch.searchsorted(worse, better, right=right).double() for right in (False, True))
    return float((below + up_to).mean()) / (2 * len(worse))


class KahnemanTversky:
    """Objective `kto` (objectives/base.py) over judged answers."""

    def __init__(self, train: Judged, validation: Judged, beta: float, scorer: Scorer, store: ReferenceStore) -> None:
        self._train = train
        self._validation = validation
        self._beta = beta
        self._scorer = scorer
        self._store = store
        self.counts: Sequence[int] = train.counts
        self._starts = array("q", accumulate(self.counts, initial=0))
        """[examples + 1]; where each example's answers begin."""
        lengths = lengths_of(train.encoded)[::2]
        self.lengths: Sequence[int] = array("q", (sum(lengths[start:end]) for start, end in pairwise(self._starts)))
        wanted = int(train.wanted.sum())
        self._weights = class_weights(wanted, len(train.wanted) - wanted)
        self._reference = torch.zeros(len(train.wanted), 2)
        """[answers, 2] log-probabilities under the reference: of the answer, and of the mismatched one."""
        self._validation_reference = torch.zeros(len(validation.wanted), 2)
        self._point = 0.0

    def prepare(self, model: Any, world: World, on_batch: Callable[[int], None], start: Start) -> None:
        """Ask the model for its log-probabilities before its first step."""
        answers = Joined(self._train.encoded, self._validation.encoded)
        values = reference_log_probabilities(self._scorer, self._store, model, answers, world, on_batch, start)
        values = values.reshape(-1, 2)
        self._reference = values[: len(self._train.wanted)]
        self._validation_reference = values[len(self._train.wanted) :]

    def begin_step(self, model: Any, indices: Sequence[int], world: World) -> None:
        """Take the common point of a step. `indices` are the examples of all its micro-batches in all processes."""
        answers = self._answers(indices)
        found = self._scorer.score(model, [self._train.encoded[2 * answer + 1] for answer in answers], world)
        self._point = _point(found - self._reference[answers, 1])

    def collate(self, indices: Sequence[int], *, packed: bool) -> Batch:
        """`input_ids` and `labels`, [answers, width]; `wanted` and `reference`, [answers]."""
        if packed:
            raise ValueError("judged answers are not packed")
        answers = self._answers(indices)
        batch = pad([self._train.encoded[2 * answer] for answer in answers], self._scorer.pad_token_id)
        return {**batch, "wanted": self._train.wanted[answers], "reference": self._reference[answers, 0]}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed loss of the answers."""
        found = sequence_log_probabilities(model, batch["input_ids"], batch["labels"])
        gains = found - batch["reference"].to(found.dtype)
        return judged_losses(gains, batch["wanted"], self._point, self._beta, self._weights).sum()

    def validation(self, model: Any, world: World, on_batch: Callable[[int], None]) -> Sums:
        """Loss, reward accuracy and reward margin over the validation answers.

        The accuracy is that of pairs, drawn at random: how often the wanted answer has the higher reward. The margin is
        the mean reward of wanted minus that of unwanted answers.
        """
        found = self._scorer.score(model, self._validation.encoded, world, on_batch).reshape(-1, 2)
        gained = found - self._validation_reference
        gains, point = gained[:, 0], _point(gained[:, 1])
        wanted = self._validation.wanted
        count = float(len(gains))
        # A share of each class, so that the sum over all answers divided by their number is a difference of means.
        share = torch.where(wanted, count / max(1, int(wanted.sum())), -count / max(1, int((~wanted).sum())))
        return Sums(
            loss=float(judged_losses(gains, wanted, point, self._beta, self._weights).sum()),
            count=count,
            measures={
                "rewardAccuracy": ranking_accuracy(gains, wanted) * count,
                "rewardMargin": float((self._beta * gains * share).sum()),
            },
        )

    def _answers(self, indices: Sequence[int]) -> list[int]:
        return [answer for index in indices for answer in range(self._starts[index], self._starts[index + 1])]


def _point(gains: torch.Tensor) -> float:
    """The estimate of the divergence from the reference, which cannot be negative."""
    return max(0.0, float(gains.mean()))
