"""The FineTuneJob kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract
from finetune_api.common import ObjectMeta
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import FineTuneJobStatus


class FineTuneJob(Contract):
    """Takes a base model and a dataset to an evaluated, versioned, approvable LoRA or QLoRA adapter."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    metadata: ObjectMeta
    spec: Annotated[FineTuneJobSpec, Field(description="Wish of the user.")]
    status: Annotated[FineTuneJobStatus | None, Field(description="State, written by the operator.")] = None
