"""spec.method: how the adapter is parametrised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule


class Method(Contract):
    """LoRA (Hu et al. 2021) or QLoRA (Dettmers et al. 2023)."""

    type: Annotated[
        Literal["auto", "lora", "qlora"],
        Field(
            description="`lora`: base in 16 bit (32 on a CPU). `qlora`: base in 4-bit NF4 with double quantisation. "
            "`auto`: lora when every stage fits the pool's GPU by forecast, else qlora. Default auto."
        ),
    ] = "auto"
    objective: Annotated[
        Literal["sft", "dpo"],
        Field(
            description="Training objective. `sft` (default); `dpo` is not available in this version and is refused."
        ),
    ] = "sft"
    rank: Annotated[
        int,
        Field(
            description="Rank r of the update. Range 1-256, default 16 (Hu et al. 2021: 8-16 suffice).", ge=1, le=256
        ),
    ] = 16
    alpha: Annotated[
        int,
        Field(
            description="Scaling; the update is multiplied by alpha/rank. Range 1-1024, default 32 (2 x rank).",
            ge=1,
            le=1024,
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
    target_modules: Annotated[
        str,
        Field(
            description="`all-linear` (default; every linear layer but the head, Dettmers et al. 2023), or module "
            "names separated by commas, for example `q_proj,v_proj`.",
            max_length=512,
            pattern=r"^(all-linear|[A-Za-z_][A-Za-z0-9_.]*(,[A-Za-z_][A-Za-z0-9_.]*)*)$",
        ),
    ] = "all-linear"

    RULES = (
        Rule(
            cel="self.objective == 'sft'",
            message="objective dpo is not available in this version; use objective: sft",
            holds=lambda m: m.objective == "sft",
            field_path="objective",
        ),
    )
