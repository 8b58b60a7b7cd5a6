"""Running a model over the rows: prompts in, outcomes out, with live progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_runner.context import StageContext
from finetune_runner.data.rows import Message, Row
from finetune_runner.errors import no_number
from finetune_runner.evaluation.engines import Engine, Request, open_engine
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.phases import Phases
from finetune_runner.evaluation.prompts import folded
from finetune_runner.evaluation.share import Share
from finetune_runner.text import RenderError, encode_example, encode_prompt

if TYPE_CHECKING:
    from finetune_runner.training.loading import MethodType

Prompt = Sequence[Message]


def renderable(tokenizer: Any, prompt: Prompt) -> list[Message]:
    """The prompt, with its system text moved into the user's turn when the template knows no system role."""
    try:
        encode_prompt(tokenizer, prompt)
    except RenderError:
        return folded(prompt)
    return list(prompt)


@dataclass(frozen=True)
class Examinee:
    """A loaded model that can be asked and scored. Of a share, rows of other processes have neither text nor tokens."""

    context: StageContext
    engine: Engine
    tokenizer: Any
    max_length: int
    processes: int = 1
    """That share the rows: live progress counts this one's part."""
    phases: Phases | None = None
    """Of the stage that this model's questions are a part of."""

    def ask(self, rows: Sequence[Row], prompts: Sequence[Prompt], phase: str) -> list[Outcome]:
        """Generated answers to the prompts, one per row."""
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        answers = self.engine.answer(encoded, self._watch(phase, len(rows)))
        return [
            Outcome(row.id, row.said, text=answers[index].text, truncated=answers[index].truncated)
            if index in answers
            else Outcome(row.id, row.said)
            for index, row in enumerate(rows)
        ]

    def score(self, rows: Sequence[Row], prompts: Sequence[Prompt], phase: str) -> list[Outcome]:
        """Likelihood of the expected answers after the prompts. Raises StageError (MODEL_UNUSABLE): no number."""
        examples = [
            encode_example(self.tokenizer, [*prompt, row.messages[-1]], self.max_length)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        scores = self.engine.score(examples, self._watch(phase, len(rows)))
        for row, (nll, _) in zip(rows, scores, strict=True):
            if not math.isfinite(nll):
                raise no_number(f"{phase}: the loss of the answer of row {row.id} is {nll}")
        return [
            Outcome(row.id, row.said, nll=float(nll), tokens=int(tokens))
            for row, (nll, tokens) in zip(rows, scores, strict=True)
        ]

    def examine(self, rows: Sequence[Row], prompts: Sequence[Prompt], phase: str) -> list[Outcome]:
        """Both: answers and likelihoods."""
        asked = self.ask(rows, prompts, f"{phase}: answers")
        likely = self.score(rows, prompts, f"{phase}: likelihoods")
        return [replace(a, nll=b.nll, tokens=b.tokens) for a, b in zip(asked, likely, strict=True)]

    def _watch(self, phase: str, rows: int) -> Callable[[int], None]:
        phases = self.phases or Phases(self.context, [1.0])
        return phases.begin(phase, -(-rows // self.processes))


def open_examinee(
    context: StageContext,
    tokenizer: Any,
    share: Share,
    phases: Phases,
    *,
    model_path: Path,
    method: MethodType | None,
    adapter: Path | None,
) -> Examinee:
    """Load a model into the job's engine, with the settings that hold for everything that is compared.

    Args:
        context: of the stage.
        tokenizer: of the model.
        share: of the rows.
        phases: of the stage, for live progress.
        model_path: the base, or the merged model.
        method: precision of the base; None: the weights as they were saved.
        adapter: on the base; None without one.

    Raises:
        StageError: when the engine is not in this image, or cannot load the model.
    """
    spec = context.task.spec
    request = Request(
        model_path=model_path,
        method=method,
        adapter=adapter,
        tokenizer=tokenizer,
        plan=context.task.plan,
        max_new_tokens=spec.evaluation.max_new_tokens,
        generation=spec.evaluation.generation,
        seed=spec.training.seed,
        share=share,
    )
    engine = open_engine(spec.evaluation.engine, request)
    return Examinee(context, engine, tokenizer, spec.training.max_length, share.size, phases)


def own_prompts(tokenizer: Any, rows: Sequence[Row]) -> list[list[Message]]:
    """Each row's own conversation up to the answer."""
    return [renderable(tokenizer, row.prompt) for row in rows]
