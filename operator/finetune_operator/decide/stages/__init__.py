"""The five stages, one module each: what each needs and what its result means for the run."""

from __future__ import annotations

from finetune_api.stages import STAGES, Stage
from finetune_operator.decide.stages import baseline, evaluate, prepare, publish, train
from finetune_operator.decide.stages.base import StageKind

KINDS: dict[Stage, StageKind] = {
    kind.name: kind for kind in (prepare.KIND, baseline.KIND, train.KIND, evaluate.KIND, publish.KIND)
}
ORDER: tuple[Stage, ...] = STAGES
