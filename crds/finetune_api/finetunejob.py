"""The FineTuneJob kind."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field
from pydantic.alias_generators import to_camel

from finetune_api.base import Contract, Rule
from finetune_api.common import ObjectMeta
from finetune_api.job.spec import MUTABLE_WHILE_RUNNING, FineTuneJobSpec
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus

NAME_LIMIT = 40
"""A child is called `<job>-<7 characters>-<stage>-<attempt>` and must stay a label of 63 characters."""

RETRY_ANNOTATION = "finetune.dev/retry"
"""Asks for another run of a finished job whose spec stays as it is: any value not seen before, such as the time.

An annotation and not a field, as in Flux (`reconcile.fluxcd.io/requestedAt`): a sync controller that owns the spec
leaves it alone, and who retries does not become the author of the spec."""
RETRY_LIMIT = 253

_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"


def _immutable_while_running() -> tuple[Rule, ...]:
    """One transition rule per field of the spec, so that the refusal names the field that was changed.

    Known limit of CEL's equality in the API server: keys renamed inside the free-form `evaluation.task.schema`, their
    number unchanged, pass as equal.
    """
    finished = ", ".join(f"'{phase}'" for phase in sorted(FINISHED_PHASES))
    # A job that waits to be accepted (its pool is missing, say) has started nothing: its author may mend it.
    editable = (
        f"!has(oldSelf.status) || !has(oldSelf.status.phase) || oldSelf.status.phase in [{finished}] || "
        "(oldSelf.status.phase == 'Pending' && !has(oldSelf.status.resolved))"
    )
    names = [to_camel(name) for name in FineTuneJobSpec.model_fields]
    return tuple(
        Rule(
            cel=f"{editable} || self.spec.{name} == oldSelf.spec.{name}",
            message=f"spec.{name} cannot change: spec is immutable while the job runs; wait until it has finished, or "
            "set cancel: true first",
            field_path=f"spec.{name}",
        )
        for name in names
        if name not in MUTABLE_WHILE_RUNNING
    )


class FineTuneJob(Contract):
    """Takes a base model and a dataset to an evaluated, versioned, approvable LoRA or QLoRA adapter."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    metadata: ObjectMeta
    spec: Annotated[FineTuneJobSpec, Field(description="Wish of the user.")]
    status: Annotated[FineTuneJobStatus | None, Field(description="State, written by the operator.")] = None

    @property
    def retry(self) -> str:
        """What the retry annotation says now; empty without one."""
        return self.metadata.annotations.get(RETRY_ANNOTATION, "")[:RETRY_LIMIT]

    RULES = (
        Rule(
            cel=f"size(self.metadata.name) <= {NAME_LIMIT}",
            message=f"metadata.name is longer than {NAME_LIMIT} characters; choose a shorter one",
            holds=lambda job: len(job.metadata.name) <= NAME_LIMIT,
        ),
        Rule(
            cel=f"self.metadata.name.matches('{_NAME}')",
            message="metadata.name must start with a letter and have only a-z, 0-9 and '-'; rename the job, its pods "
            "and Service are called after it",
            holds=lambda job: not job.metadata.name or re.fullmatch(_NAME, job.metadata.name) is not None,
        ),
        *_immutable_while_running(),
    )
