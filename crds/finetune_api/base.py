"""The base of every contract model: camelCase on the wire, snake_case in Python, unknown fields refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

API_GROUP = "finetune.dev"
API_VERSION = "v1alpha1"
API_GROUP_VERSION = f"{API_GROUP}/{API_VERSION}"


@dataclass(frozen=True)
class Rule:
    """One cross-field rule, said twice: as CEL for the API server and as a predicate for our own validation.

    `cel` sees the object as `self`; `holds` sees the parsed model. Both must agree: `tests/contract` runs one corpus
    of YAMLs through both. `message` names the fix. `transition` rules mention `oldSelf` and have no predicate: only
    the API server knows the old object.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None = None
    field_path: str = ""

    @property
    def transition(self) -> bool:
        """Whether the rule compares with the stored object, so that only the API server can judge it."""
        return "oldSelf" in self.cel


class Contract(BaseModel):
    """A part of the contract. Strict types (a quoted number is not a number), immutable once parsed."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
        validate_default=True,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for rule in type(self).RULES:
            if rule.holds is not None and not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "field_path": rule.field_path})
        return self

    def to_wire(self) -> dict[str, Any]:
        """The JSON form the API server stores: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> Self:
        """Parse the JSON form. Raises pydantic.ValidationError naming each bad field."""
        return cls.model_validate(value)


def _parse_time(value: object) -> object:
    if isinstance(value, str):
        return datetime.fromisoformat(value.replace("Z", "+00:00")).astimezone(UTC)
    return value


def _format_time(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Timestamp = Annotated[
    datetime,
    BeforeValidator(_parse_time),
    PlainSerializer(_format_time, return_type=str),
    Field(json_schema_extra={"type": "string", "format": "date-time"}),
]
"""A point in time, whole seconds, UTC, RFC 3339 on the wire."""


def whole_seconds(moment: datetime) -> datetime:
    """Cut a time to what the wire keeps, so that a written status equals the status read back."""
    return moment.astimezone(UTC).replace(microsecond=0)
