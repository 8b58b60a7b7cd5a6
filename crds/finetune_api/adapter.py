"""The Adapter kind: a line of versions, its policy and its channels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule, Timestamp
from finetune_api.common import LABEL_NAME_RULE, Condition, Name, ObjectMeta, Storage
from finetune_api.job.evaluation import Gate


class Approvals(Contract):
    """Who must agree before a version is released."""

    required: Annotated[int, Field(description="People who must approve. Default 1.", ge=1, le=10)] = 1
    four_eyes: Annotated[bool, Field(description="Whether the author's own approval does not count. Default true.")] = (
        True
    )


class Policy(Contract):
    """What every version of this adapter must meet. A job may add gates, never weaken these."""

    release: Annotated[
        Literal["manual", "automatic"],
        Field(
            description="`manual` (default): a passed version waits for approval. `automatic`: a passed version is "
            "approved by policy; recorded as such."
        ),
    ] = "manual"
    approvals: Annotated[Approvals, Field(description="Who must agree.")] = Approvals()
    gates: Annotated[list[Gate], Field(description="Gates added to every job's.", max_length=16)] = Field(
        default_factory=list
    )


class Channel(Contract):
    """A name that serving follows."""

    name: Annotated[Name, Field(description="For example `stable`.")]
    version: Annotated[
        str,
        Field(
            description="`latestApproved` (default) or a fixed version such as `v3` (a way back).",
            pattern=r"^(latestApproved|v[1-9][0-9]{0,8})$",
        ),
    ] = "latestApproved"


class AdapterSpec(Contract):
    """Wish of the owner."""

    storage: Annotated[Storage, Field(description="Where versions are kept. Pinned: it cannot be changed.")]
    owner: Annotated[str, Field(description="Team or person who answers for it.", max_length=253)] = ""
    purpose: Annotated[str, Field(description="What it is for.", max_length=1024)] = ""
    risk_class: Annotated[
        Literal["minimal", "limited", "high"], Field(description="minimal (default), limited or high.")
    ] = "minimal"
    policy: Annotated[Policy, Field(description="What every version must meet.")] = Policy()
    channels: Annotated[
        list[Channel],
        Field(
            description="Names that serving follows. Default: `stable` on latestApproved.",
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = [Channel(name="stable")]  # noqa: RUF012

    RULES = (
        Rule(
            cel="self.storage == oldSelf.storage",
            message="an Adapter's storage is pinned; make a new Adapter for another storage",
            field_path="storage",
        ),
    )


class ChannelStatus(Contract):
    """What a channel serves: serving trusts only this digest."""

    name: Annotated[str, Field(description="Name of the channel.")]
    version: Annotated[str, Field(description="Effective version; empty when none.")] = ""
    uri: Annotated[str, Field(description="Where it is.")] = ""
    digest: Annotated[str, Field(description="sha256 of its manifest.")] = ""
    since: Annotated[Timestamp | None, Field(description="When it became effective.")] = None
    message: Annotated[str, Field(description="Why the wish is not (yet) met.", max_length=512)] = ""


class AdapterStatus(Contract):
    """State of the line of versions."""

    observed_generation: Annotated[int, Field(description="Generation this status is about.")] = 0
    versions: Annotated[int, Field(description="Number of versions.")] = 0
    latest_version: Annotated[str, Field(description="Newest version.")] = ""
    channels: Annotated[
        list[ChannelStatus],
        Field(
            description="What each channel serves.",
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready, Stalled, Served.",
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)


class Adapter(Contract):
    """A line of adapter versions with a policy and release channels."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["Adapter"] = "Adapter"
    metadata: ObjectMeta
    spec: Annotated[AdapterSpec, Field(description="Wish of the owner.")]
    status: Annotated[AdapterStatus | None, Field(description="State, written by the operator.")] = None

    RULES = (LABEL_NAME_RULE,)
