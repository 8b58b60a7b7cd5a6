"""spec.output: what is released, and in which form."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import Name, Storage


class AdapterRef(Contract):
    """The Adapter that gets the next version; created when it does not exist."""

    name: Annotated[Name, Field(description="Name of the Adapter in the job's namespace.")]


class Output(Contract):
    """What the job leaves behind."""

    adapter_ref: Annotated[AdapterRef, Field(description="The Adapter that gets the next version.")]
    served_as: Annotated[
        Literal["adapter", "merged"],
        Field(
            description="The form the gates judge and the channel serves: `adapter` on the base (default), or the "
            "`merged` model (for QLoRA merged into the de-quantised base)."
        ),
    ] = "adapter"
    exports: Annotated[
        list[Literal["gguf"]],
        Field(description="Further formats. `gguf` is not available in this version and is refused.", max_length=4),
    ] = []  # noqa: RUF012
    storage: Annotated[
        Storage | None,
        Field(
            description="Where versions go when the Adapter does not exist yet. Default: the pool's defaultStorage. "
            "An existing Adapter's storage is pinned and must match."
        ),
    ] = None

    RULES = (
        Rule(
            cel="!has(self.exports) || self.exports.size() == 0",
            message="exports are not available in this version; leave output.exports out",
            holds=lambda o: not o.exports,
            field_path="exports",
        ),
    )
