"""spec.method: how the adapter is parametrised, where it starts, and what it learns from."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule

Objective = Literal["sft", "dpo", "kto"]
DEFAULT_BETA = 0.1
"""Rafailov et al. 2023 (DPO) and Ethayarajh et al. 2024 (KTO)."""
DEFAULT_BITS = 4
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank` (`MaxLoRARanks` in vllm/config/lora.py, the same in 0.32 and 0.33)."""
LARGEST_SERVED_RANK = SERVED_RANKS[-1]

_MODULE = "[A-Za-z_][A-Za-z0-9_.]*"
_MODULES = f"{_MODULE}(,{_MODULE})*"
WHOLE_MODULES = r"(^|[,.])(lm_head|embed_out|output_embeddings|embed_tokens|wte|wpe|word_embeddings)(,|$)"
"""Heads and embeddings: an adapter with them is saved with whole modules, or bypassed by the loss."""


class WarmStart(Contract):
    """A published adapter whose weights training starts from."""

    version: Annotated[
        str,
        Field(
            description="Name of an AdapterVersion in the job's namespace, for example `support-triage-v3`: made on "
            "the same base model with the same rank, alpha and targets, and served as adapter.",
            min_length=3,
            max_length=76,
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?-v[1-9][0-9]*$",
        ),
    ]


class Method(Contract):
    """LoRA (Hu et al. 2021) or QLoRA (Dettmers et al. 2023), and their variants rsLoRA and DoRA."""

    type: Annotated[
        Literal["auto", "lora", "qlora"],
        Field(
            description="`lora`: base in 16 bit (32 on a CPU). `qlora`: base in 4-bit NF4 with double quantisation, or "
            "in 8 bit. "
            "`auto`: lora when every stage fits the pool's GPU by forecast, else qlora. Default auto."
        ),
    ] = "auto"
    bits: Annotated[
        Literal[4, 8] | None,
        Field(
            description="Bits of qlora's base: 4 (NF4, default) or 8 (LLM.int8, Dettmers et al. 2022: nearer to the "
            "16-bit base, twice the memory, slower)."
        ),
    ] = None
    objective: Annotated[
        Objective,
        Field(
            description="What is learned from: `sft` (default) from answers; `dpo` from pairs of a better and a worse "
            "answer (Rafailov et al. 2023); `kto` from answers judged good or bad (Ethayarajh et al. 2024)."
        ),
    ] = "sft"
    beta: Annotated[
        float | None,
        Field(
            description="dpo and kto: how strongly the model is held to where it started; lower lets it move further. "
            "Range 0.001-10, default 0.1.",
            ge=0.001,
            le=10,
        ),
    ] = None
    rank: Annotated[
        int,
        Field(
            description="Rank r of the update. Range 1-1024, default 16 (Hu et al. 2021: 8-16 suffice). An adapter "
            "of more than 512 can only be served merged.",
            ge=1,
            le=1024,
        ),
    ] = 16
    alpha: Annotated[
        int,
        Field(
            description="Scaling; the update is multiplied by alpha/rank (rsLoRA: alpha/sqrt(rank)). Range 1-4096, "
            "default 32 (2 x rank).",
            ge=1,
            le=4096,
        ),
    ] = 32
    dropout: Annotated[
        float,
        Field(
            description="Dropout on the adapter's input. Range 0-0.5, default 0: it about doubles activation memory.",
            ge=0,
            le=0.5,
        ),
    ] = 0.0
    use_rslora: Annotated[
        bool,
        Field(
            description="Rank-stabilised LoRA (Kalajdzievski 2023): scales by alpha/sqrt(rank), for ranks from 64 up. "
            "Default false."
        ),
    ] = False
    use_dora: Annotated[
        bool,
        Field(
            description="DoRA (Liu et al. 2024): learns a magnitude per output beside the direction; better at ranks "
            "below 16, slower, and vLLM serves it only merged. Default false."
        ),
    ] = False
    target_modules: Annotated[
        str,
        Field(
            description="`all-linear` (default; every linear layer but the head, Dettmers et al. 2023; of a mixture of "
            "experts those of its attention), `default` "
            "(PEFT's choice for the model's architecture, mostly query and value), or module names separated by "
            "commas, for example `q_proj,v_proj`.",
            max_length=512,
            pattern=rf"^(all-linear|{_MODULES})$",
        ),
    ] = "all-linear"
    exclude_modules: Annotated[
        str | None,
        Field(
            description="Names of modules that get no adapter although targetModules covers them, separated by commas, "
            "for example `down_proj`. Default: none.",
            max_length=512,
            pattern=rf"^{_MODULES}$",
        ),
    ] = None
    warm_start_from: Annotated[
        WarmStart | None,
        Field(description="Start from a published version's weights instead of a new adapter. Default: a new adapter."),
    ] = None

    @property
    def effective_beta(self) -> float:
        """The beta in force."""
        return DEFAULT_BETA if self.beta is None else self.beta

    RULES = (
        Rule(
            cel="!has(self.beta) || self.objective != 'sft'",
            message="method.beta has no meaning for sft; leave it out, or set objective to dpo or kto",
            holds=lambda m: m.beta is None or m.objective != "sft",
            field_path="beta",
        ),
        Rule(
            cel="!has(self.bits) || self.type != 'lora'",
            message="method.bits belongs to qlora, the base of lora is not quantised; set type to qlora, or leave bits "
            "out",
            holds=lambda m: m.bits is None or m.type != "lora",
            field_path="bits",
        ),
        Rule(
            cel="!self.useDora || !has(self.bits) || self.bits != 8",
            message="DoRA on an 8-bit base is not offered, PEFT cannot compute its magnitudes there; set bits to 4, or "
            "useDora to false",
            holds=lambda m: not m.use_dora or m.bits != 8,
            field_path="useDora",
        ),
        Rule(
            cel=f"!self.targetModules.matches('{WHOLE_MODULES}')",
            message="method.targetModules names a head or an embedding, which vLLM does not serve in an adapter; "
            "remove it, all-linear leaves them out",
            holds=lambda m: re.search(WHOLE_MODULES, m.target_modules) is None,
            field_path="targetModules",
        ),
    )
