"""spec.model: the base model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import SecretRef

Source = Annotated[str, Field(min_length=6, max_length=1024, pattern=r"^(hf|s3|pvc|oci|file)://[^\s]+$")]

OCI_RULE = Rule(
    cel="!self.source.startsWith('oci://')",
    message="oci:// sources are not available in this version; copy the files to s3:// or pvc://",
    holds=lambda s: not s.source.startswith("oci://"),
    field_path="source",
)


class BaseModelSource(Contract):
    """The model to tune."""

    source: Annotated[
        Source,
        Field(
            description="Where the base model is: `hf://owner/name`, `s3://bucket/prefix`, `pvc://claim/path`; "
            "`file://path` only without a cluster. Safetensors only; code shipped with a model is never run."
        ),
    ]
    revision: Annotated[
        str,
        Field(
            description="Branch, tag or commit of an `hf://` model; resolved once to a commit and pinned in the "
            "manifest. Other sources are pinned by the digest of their files.",
            max_length=128,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        ),
    ] = "main"
    secret_ref: Annotated[
        SecretRef | None,
        Field(description="Secret for a gated or private model: key `HF_TOKEN` for hf://, the AWS keys for s3://."),
    ] = None

    RULES = (OCI_RULE,)
