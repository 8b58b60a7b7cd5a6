"""The base of every contract model: camelCase on the wire, snake_case in Python, unknown fields refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

API_GROUP = "finetune.dev"
API_VERSION = "v1alpha1"
API_GROUP_VERSION = f"{API_GROUP}/{API_VERSION}"


@dataclass(frozen=True)
class Rule:
    """One cross-field rule, said twice: as CEL for the API server and as a predicate for our own validation.

    `cel` sees the object as `self`; `holds` sees the parsed model. Both must agree: `tests/contract` runs one corpus
    of YAMLs through both. `message` says what is wrong, a semicolon and the fix. `transition` rules mention `oldSelf`
    and have no predicate: only the API server knows the old object. `field_path` is relative to the model, dotted.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None = None
    field_path: str = ""

    @property
    def transition(self) -> bool:
        """Whether the rule compares with the stored object, so that only the API server can judge it."""
        return "oldSelf" in self.cel

    def to_schema(self) -> dict[str, str]:
        """The form of `x-kubernetes-validations`."""
        place = {"fieldPath": f".{self.field_path}"} if self.field_path else {}
        return {"rule": self.cel, "message": self.message, **place}


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
        broken = [
            (rule.message, rule.field_path)
            for rule in type(self).RULES
            if rule.holds is not None and not rule.holds(self)
        ]
        for field, keys in _map_lists(type(self)):
            broken += _repeated(getattr(self, field), keys, to_camel(field))
        if broken:
            raise PydanticCustomError(
                "rule", "{message}", {"message": ", ".join(m for m, _ in broken), "broken": broken}
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.RULES:
            schema["x-kubernetes-validations"] = [rule.to_schema() for rule in cls.RULES]
        return schema

    def to_wire(self) -> dict[str, Any]:
        """The JSON form the API server stores: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> Self:
        """Parse the JSON form (camelCase only). Raises pydantic.ValidationError naming each bad field."""
        return cls.model_validate(value, by_alias=True, by_name=False)

    @classmethod
    def from_any_version(cls, value: dict[str, Any]) -> Self:
        """As `from_wire`, of what another version of this program wrote: fields that this one lacks are passed over.

        For what pods say to an operator that was upgraded or rolled back meanwhile. What a person writes is refused.
        """
        return cls.model_validate(value, by_alias=True, by_name=False, extra="ignore")


@cache
def _map_lists(model: type[Contract]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Fields that are lists with a key, with the wire names of the key: the API server refuses a repeated key."""
    return tuple(
        (name, tuple(info.json_schema_extra["x-kubernetes-list-map-keys"]))  # type: ignore[arg-type]
        for name, info in model.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and "x-kubernetes-list-map-keys" in info.json_schema_extra
    )


def _repeated(items: list[Contract], keys: tuple[str, ...], field: str) -> list[tuple[str, str]]:
    seen: set[tuple[str, ...]] = set()
    broken = []
    for item in items:
        wire = item.to_wire()
        key = tuple(str(wire.get(name)) for name in keys)
        if key in seen:
            broken.append((f"{field} names {' '.join(key)} twice; keep one of them", field))
        seen.add(key)
    return broken


_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _parse_time(value: object) -> object:
    """A time as the API server reads it: `fromisoformat` alone would take a time without a zone as local."""
    if not isinstance(value, str):
        return value
    if _RFC_3339.fullmatch(value) is None:
        raise ValueError("not a time of RFC 3339")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("not a time between the years 1 and 9999") from error


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
