"""FineTuneJob.spec as a whole."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import Name
from finetune_api.job.compute import Compute
from finetune_api.job.data import Data
from finetune_api.job.evaluation import Evaluation
from finetune_api.job.method import Method
from finetune_api.job.model import BaseModelSource
from finetune_api.job.output import Output
from finetune_api.job.training import Training


class FineTuneJobSpec(Contract):
    """Wish of the user. The smallest: model.source, data.train, output.adapterRef."""

    service_account_name: Annotated[
        Name, Field(description="Service account of the job's pods: their identity towards storage. Default `default`.")
    ] = "default"
    model: Annotated[BaseModelSource, Field(description="The base model.")]
    data: Annotated[Data, Field(description="What is learned from, and what is held out.")]
    method: Annotated[Method, Field(description="How the adapter is parametrised.")] = Method()
    training: Annotated[Training, Field(description="The optimisation.")] = Training()
    compute: Annotated[Compute, Field(description="Where it runs and what it may cost.")] = Compute()
    evaluation: Annotated[Evaluation, Field(description="How the result is judged.")] = Evaluation()
    output: Annotated[Output, Field(description="What is released, and in which form.")]
    suspend: Annotated[
        bool, Field(description="true stops the pods (a checkpoint is saved) and false resumes. Default false.")
    ] = False
    cancel: Annotated[
        bool, Field(description="true ends the run for good as Cancelled; nothing is published. Default false.")
    ] = False
    ttl_seconds_after_finished: Annotated[
        int,
        Field(
            description="Seconds after the end until the run's Jobs and pods are removed; the FineTuneJob, its status "
            "and its versions stay. Default 3600.",
            ge=0,
            le=31_536_000,
        ),
    ] = 3600

    RULES = (
        Rule(
            cel="self.model.dtype != 'fp32' || self.method.type != 'qlora'",
            message="model.dtype fp32 cannot be had with method.type qlora, whose 4-bit weights are computed in bf16; "
            "use dtype: auto, or type: lora",
            holds=lambda s: s.model.dtype != "fp32" or s.method.type != "qlora",
            field_path="model",
        ),
    )


MUTABLE_WHILE_RUNNING = frozenset({"suspend", "cancel", "ttlSecondsAfterFinished"})
