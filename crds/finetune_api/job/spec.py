"""FineTuneJob.spec as a whole."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import Name
from finetune_api.job.compute import Compute
from finetune_api.job.data import Data
from finetune_api.job.evaluation import Evaluation
from finetune_api.job.method import LARGEST_SERVED_RANK, Method
from finetune_api.job.model import BaseModelSource
from finetune_api.job.output import Output
from finetune_api.job.tracking import Tracking
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
    tracking: Annotated[
        Tracking, Field(description="Where the curves are shown besides the run's own report. Default: nowhere.")
    ] = Tracking()
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
            cel="!self.method.useDora || self.output.servedAs == 'merged'",
            message="vLLM does not serve DoRA adapters; set output.servedAs to merged, or method.useDora to false",
            holds=lambda s: not s.method.use_dora or s.output.served_as == "merged",
            field_path="method.useDora",
        ),
        Rule(
            cel=f"self.method.rank <= {LARGEST_SERVED_RANK} || self.output.servedAs == 'merged'",
            message=f"vLLM serves adapters up to rank {LARGEST_SERVED_RANK}; lower method.rank, or set "
            "output.servedAs to merged",
            holds=lambda s: s.method.rank <= LARGEST_SERVED_RANK or s.output.served_as == "merged",
            field_path="method.rank",
        ),
        Rule(
            cel="!has(self.method.bits) || self.method.bits != 8 || !(self.compute.strategy == 'fsdp' || "
            "(self.compute.strategy == 'deepspeed' && (!has(self.compute.deepspeed) || "
            "self.compute.deepspeed.stage == 3)))",
            message="8-bit weights cannot be cut into parts by fsdp or ZeRO stage 3; set method.bits: 4, or "
            "compute.strategy: ddp",
            holds=lambda s: s.method.bits != 8 or not s.compute.cuts_weights,
            field_path="method.bits",
        ),
        Rule(
            cel="self.evaluation.engine != 'vllm' || !has(self.method.bits) || self.method.bits != 8",
            message="evaluation.engine vllm would judge on a 16-bit base what was trained on an 8-bit one; set "
            "evaluation.engine: transformers, or method.bits: 4",
            holds=lambda s: s.evaluation.engine != "vllm" or s.method.bits != 8,
            field_path="evaluation.engine",
        ),
        Rule(
            cel="self.evaluation.engine != 'vllm' || self.method.type == 'lora' || "
            f"self.method.rank <= {LARGEST_SERVED_RANK}",
            message=f"evaluation.engine vllm judges adapters up to rank {LARGEST_SERVED_RANK}, and qlora's is judged "
            "beside the merged model; set evaluation.engine: transformers, method.type: lora, or a lower method.rank",
            holds=lambda s: (
                s.evaluation.engine != "vllm" or s.method.type == "lora" or s.method.rank <= LARGEST_SERVED_RANK
            ),
            field_path="evaluation.engine",
        ),
        Rule(
            cel="self.evaluation.engine != 'vllm' || self.method.type == 'lora' || !self.method.useDora",
            message="evaluation.engine vllm does not judge DoRA adapters, and qlora's is judged beside the merged "
            "model; set evaluation.engine: transformers, method.type: lora, or method.useDora: false",
            holds=lambda s: s.evaluation.engine != "vllm" or s.method.type == "lora" or not s.method.use_dora,
            field_path="evaluation.engine",
        ),
        Rule(
            cel="self.training.bestBy != 'rewardAccuracy' || self.method.objective != 'sft'",
            message="training.bestBy: sft has no rewards; use validationLoss, or set method.objective to dpo or kto",
            holds=lambda s: s.training.best_by != "rewardAccuracy" or s.method.objective != "sft",
            field_path="training.bestBy",
        ),
        Rule(
            cel="self.training.packing != 'enabled' || self.method.objective == 'sft'",
            message="training.packing: answers that are compared are not packed; use auto for dpo and kto",
            holds=lambda s: s.training.packing != "enabled" or s.method.objective == "sft",
            field_path="training.packing",
        ),
        Rule(
            cel="self.training.torchCompile != 'enabled' || !(self.compute.strategy in ['fsdp', 'deepspeed'])",
            message="training.torchCompile: blocks in parts are not compiled; use auto, or compute.strategy: ddp",
            holds=lambda s: s.training.torch_compile != "enabled" or s.compute.strategy not in ("fsdp", "deepspeed"),
            field_path="training.torchCompile",
        ),
        Rule(
            cel="self.training.torchCompile != 'enabled' || !has(self.method.bits) || self.method.bits != 8",
            message="training.torchCompile: LLM.int8 is not compiled; use auto, or method.bits: 4",
            holds=lambda s: s.training.torch_compile != "enabled" or s.method.bits != 8,
            field_path="training.torchCompile",
        ),
        Rule(
            cel="self.training.precision != 'fp32' || self.method.type != 'qlora'",
            message="training.precision: qlora computes in bf16; use auto or bf16, or set method.type to lora",
            holds=lambda s: s.training.precision != "fp32" or s.method.type != "qlora",
            field_path="training.precision",
        ),
        Rule(
            cel="self.model.dtype != 'fp32' || self.method.type != 'qlora'",
            message="model.dtype fp32 cannot be had with method.type qlora, whose 4-bit weights are computed in bf16; "
            "use dtype: auto, or type: lora",
            holds=lambda s: s.model.dtype != "fp32" or s.method.type != "qlora",
            field_path="model",
        ),
        Rule(
            cel="self.training.precision == 'auto' || self.model.dtype == 'auto' || self.training.precision == "
            "self.model.dtype",
            message="training.precision and model.dtype differ; set one of them and leave the other auto",
            holds=lambda s: "auto" in (s.training.precision, s.model.dtype) or s.training.precision == s.model.dtype,
            field_path="training.precision",
        ),
        Rule(
            cel="self.method.objective != 'sft' || self.data.train.all(d, !has(d.format) || d.format != 'preference')",
            message="format preference has a better and a worse answer, objective sft learns from one; set "
            "method.objective: dpo, or use chat, alpaca or promptCompletion",
            holds=lambda s: s.method.objective != "sft" or all(d.format != "preference" for d in s.data.train),
            field_path="method.objective",
        ),
        Rule(
            cel="self.data.loss == 'all' || self.data.train.all(d, !has(d.format) || d.format != 'text')",
            message="format text has no answer that data.loss could pick; set data.loss: all, or name prompt and "
            "completion with columns",
            holds=lambda s: s.data.loss == "all" or all(d.format != "text" for d in s.data.train),
            field_path="data.loss",
        ),
    )


MUTABLE_WHILE_RUNNING = frozenset({"suspend", "cancel", "ttlSecondsAfterFinished"})
