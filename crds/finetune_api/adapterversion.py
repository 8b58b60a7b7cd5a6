"""The AdapterVersion kind: one release candidate. Created by the operator only; all but `decisions` is immutable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.alias_generators import to_camel

from finetune_api.base import Contract, Rule, Timestamp
from finetune_api.common import Condition, ObjectMeta
from finetune_api.job.status import GateResult, Verdict


class Decision(Contract):
    """What a person decided. Admission policy lets everybody write only under their own name."""

    by: Annotated[str, Field(description="User name of who decided.", min_length=1, max_length=253)]
    decision: Annotated[Literal["approve", "reject"], Field(description="approve or reject.")]
    reason: Annotated[str, Field(description="Why.", max_length=1024)] = ""
    at: Annotated[Timestamp | None, Field(description="When.")] = None

    # By its schema alone the API server takes a list for a text with a format.
    RULES = (
        Rule(
            cel="!has(self.at) || self.at >= timestamp('1970-01-01T00:00:00Z')",
            message="the time of a decision is before 1970; write for example 2026-01-31T12:00:00Z",
            holds=lambda decision: decision.at is None or decision.at.timestamp() >= 0,
            field_path="at",
        ),
    )


class VersionOrigin(Contract):
    """The run that made the version."""

    job: Annotated[str, Field(description="Name of the FineTuneJob.")]
    uid: Annotated[str, Field(description="uid of the FineTuneJob.")]
    run: Annotated[int, Field(description="Number of the run.")]
    author: Annotated[str, Field(description="Who applied the job, when known.", max_length=253)] = ""


class VersionBase(Contract):
    """The base model a version belongs to."""

    source: Annotated[str, Field(description="Where the base model is.")]
    revision: Annotated[str, Field(description="Its pinned revision.")]
    digest: Annotated[str, Field(description="sha256 over its files.")]


class AdapterVersionSpec(Contract):
    """What the version is."""

    adapter: Annotated[str, Field(description="Name of the Adapter.")]
    version: Annotated[int, Field(description="Number of the version.", ge=1)]
    uri: Annotated[str, Field(description="Where its files are.")]
    digest: Annotated[str, Field(description="sha256 of its manifest.")]
    size_bytes: Annotated[int, Field(description="Size of its files in bytes.", ge=0)]
    served_as: Annotated[Literal["adapter", "merged"], Field(description="The form that was judged.")]
    base: Annotated[VersionBase, Field(description="The base model.")]
    origin: Annotated[VersionOrigin, Field(description="The run that made it.")]
    data_digest: Annotated[str, Field(description="sha256 of the prepared data.")]
    fingerprint: Annotated[str, Field(description="sha256 of all inputs.")]
    parent: Annotated[str, Field(description="The version it was compared with, for example v2.")] = ""
    warm_started_from: Annotated[
        str, Field(description="Name of the version whose weights training started from; empty when none.")
    ] = ""
    metrics: Annotated[dict[str, float], Field(description="Metrics of the served form.", max_length=64)]
    verdict: Annotated[Verdict, Field(description="All gates together.")]
    gates: Annotated[list[GateResult], Field(description="Gates, judged.", max_length=40)] = Field(default_factory=list)
    created_at: Annotated[Timestamp, Field(description="When it was published.")]
    decisions: Annotated[
        list[Decision],
        Field(
            description="Decisions of people; the only field that changes.",
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["by"]},
        ),
    ] = Field(default_factory=list)


def _immutable() -> tuple[Rule, ...]:
    """One transition rule per field but `decisions`, for fields that may be absent too."""
    names = [to_camel(name) for name in AdapterVersionSpec.model_fields if name != "decisions"]
    return tuple(
        Rule(
            cel=f"has(self.spec.{name}) == has(oldSelf.spec.{name}) && "
            f"(!has(self.spec.{name}) || self.spec.{name} == oldSelf.spec.{name})",
            message=f"spec.{name} cannot change: a version is immutable but for decisions; publish another version",
            field_path=f"spec.{name}",
        )
        for name in names
    )


VersionPhase = Literal["PendingApproval", "Approved", "Rejected", "GateFailed"]


class AdapterVersionStatus(Contract):
    """State of the version."""

    observed_generation: Annotated[int, Field(description="Generation this status is about.")] = 0
    phase: Annotated[VersionPhase, Field(description="PendingApproval, Approved, Rejected or GateFailed.")] = (
        "PendingApproval"
    )
    message: Annotated[str, Field(description="What it waits for.", max_length=512)] = ""
    channels: Annotated[list[str], Field(description="Channels that serve it.", max_length=16)] = Field(
        default_factory=list
    )
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready, Approved, Released.",
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)


class AdapterVersion(Contract):
    """One published version of an Adapter with its evidence and the decisions of people."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["AdapterVersion"] = "AdapterVersion"
    metadata: ObjectMeta
    spec: Annotated[AdapterVersionSpec, Field(description="What the version is.")]
    status: Annotated[AdapterVersionStatus | None, Field(description="State, written by the operator.")] = None

    RULES = _immutable()
