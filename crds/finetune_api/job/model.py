"""spec.model: the base model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import SecretRef
from finetune_api.oci import OCI

SOURCE = r"^(hf|s3|pvc|oci|file)://[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"
Source = Annotated[str, Field(min_length=6, max_length=1024, pattern=SOURCE)]

FETCHED_SCHEMES = ("hf://", "s3://")
"""Models of these are fetched, so a pool may keep them in a cache; those of pvc:// and oci:// are mounted anyway."""

_HF_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
_HF_MODEL = f"^hf://{_HF_NAME}/{_HF_NAME}$"
_HF_DATASET = f"^hf://datasets/{_HF_NAME}/{_HF_NAME}(@{_HF_NAME})?(/.*)?$"
_S3 = "^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"
_PVC = "^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$"


def source_rules(hf: str = _HF_DATASET, *, optional: bool = False) -> tuple[Rule, ...]:
    """What a `source` must look like, scheme by scheme. `hf` is the pattern of its hf:// form."""

    def matches(prefix: str, pattern: str) -> tuple[str, Callable[[str], bool]]:
        compiled = re.compile(pattern)
        return (
            f"!self.source.startsWith('{prefix}') || self.source.matches('{pattern}')",
            lambda source: not source.startswith(prefix) or compiled.fullmatch(source) is not None,
        )

    def rule(judged: tuple[str, Callable[[str], bool]], message: str) -> Rule:
        cel, holds = judged
        return Rule(
            cel=f"!has(self.source) || {cel}" if optional else cel,
            message=message,
            holds=lambda model: model.source is None or holds(model.source),
            field_path="source",
        )

    hf_form = "hf://owner/name" if hf == _HF_MODEL else "hf://datasets/owner/name or hf://datasets/owner/name/file"
    return (
        rule(
            (
                "self.source.startsWith('file://') || (!self.source.contains('/../') && !self.source.endsWith('/..'))",
                lambda source: source.startswith("file://") or ("/../" not in source and not source.endswith("/..")),
            ),
            "source must not contain '..'; name the file or folder itself",
        ),
        rule(matches("hf://", hf), f"an hf:// source names owner and name; write it as {hf_form}"),
        rule(
            matches("s3://", _S3),
            "an s3:// source starts with a bucket of 3-63 lower-case letters, digits, '-' and '.'; "
            "write it as s3://bucket/key",
        ),
        rule(matches("pvc://", _PVC), "a pvc:// source starts with the name of a claim; write it as pvc://claim/path"),
        rule(
            matches("oci://", OCI),
            "an oci:// source is a reference with its registry, and a path only behind a tag or digest; "
            "write it as oci://registry/image:tag/path or oci://registry/image@sha256:.../path",
        ),
    )


CHAT_TEMPLATES = ("tokenizer", "chatml", "gemma", "llama3", "mistral", "plain")
"""Names that model.chatTemplate knows besides a template of its own."""


class BaseModelSource(Contract):
    """The model to tune."""

    source: Annotated[
        Source,
        Field(
            description="Where the base model is: `hf://owner/name`, `s3://bucket/prefix`, `pvc://claim/path`, "
            "`oci://registry/image:tag/path` (image volume); `file://path` only without a cluster. Safetensors only; "
            "code shipped with a model is never run."
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
        Field(
            description="Secret for a gated or private model: keys `HF_TOKEN` (and `HF_ENDPOINT` for a "
            "mirror) for hf://, the AWS keys for s3://."
        ),
    ] = None

    dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        Field(
            description="What the weights are loaded in and computed with. `auto` (default): bf16 on a GPU, fp32 on a "
            "CPU. fp32 takes twice the memory and is not for qlora, whose 4-bit weights are computed in bf16."
        ),
    ] = "auto"
    attention: Annotated[
        Literal["auto", "sdpa", "flash", "eager"],
        Field(
            description="How attention is computed. `sdpa`: PyTorch's own. `flash`: PyTorch's kernel for rows of "
            "several examples, on a GPU in 16 bit. `eager`: plain products, for models that need it; slow. `auto` "
            "(default): eager for Gemma 2 and gpt-oss, which the others do not compute; flash where examples share "
            "rows on a GPU in 16 bit; else sdpa."
        ),
    ] = "auto"
    chat_template: Annotated[
        str,
        Field(
            description="How a conversation becomes text: `tokenizer` (default) the template beside the tokenizer, a "
            "built-in one (`chatml`, `gemma`, `llama3`, `mistral`, `plain`; `plain` needs no special token but the "
            "end), or a Jinja template. It is saved with the adapter: serve with it. At most 32,768 characters.",
            min_length=1,
            max_length=32_768,
        ),
    ] = "tokenizer"

    RULES = (
        *source_rules(_HF_MODEL),
        Rule(
            cel="self.chatTemplate in ["
            + ", ".join(f"'{name}'" for name in CHAT_TEMPLATES)
            + "] || self.chatTemplate.contains('{')",
            message="model.chatTemplate is neither a known name nor a Jinja template; use "
            + ", ".join(CHAT_TEMPLATES)
            + ", or write the template itself",
            holds=lambda m: m.chat_template in CHAT_TEMPLATES or "{" in m.chat_template,
            field_path="chatTemplate",
        ),
        Rule(
            cel="self.revision == 'main' || self.source.startsWith('hf://')",
            message="model.revision belongs to hf:// sources; leave it out, the files' digest pins the model",
            holds=lambda m: m.revision == "main" or m.source.startswith("hf://"),
            field_path="revision",
        ),
    )
