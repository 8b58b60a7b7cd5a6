"""CustomResourceDefinitions from the contract models: pydantic's JSON schema made structural.

Own code instead of the package kube-custom-resource 0.7: that one keeps either all defaults in full or none (here an
object's default is `{}`, so that the defaults of its fields apply), turns optional fields into `nullable` ones, wants
its own unfrozen base class, and knows no CEL rules. What it does beyond this file is not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.base import API_GROUP, API_VERSION, Contract
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool

Schema = dict[str, Any]

_COPIED = (
    "enum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minItems",
    "minLength",
    "minProperties",
    "multipleOf",
    "pattern",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
)
UNSEEN = -1
"""observedGeneration of an object that the operator has not looked at: kstatus takes one without any for Current."""

_STANDARD = {
    "apiVersion": {"type": "string", "description": f"`{API_GROUP}/{API_VERSION}`."},
    "metadata": {"type": "object"},
}


@dataclass(frozen=True)
class Column:
    """A printer column; priority 1 shows only with `-o wide`."""

    name: str
    path: str
    type: Literal["string", "integer", "number", "boolean", "date"] = "string"
    priority: int = 0
    description: str = ""

    def to_wire(self) -> dict[str, Any]:
        """The form of `additionalPrinterColumns`."""
        wide = {"priority": self.priority} if self.priority else {}
        said = {"description": self.description} if self.description else {}
        return {"name": self.name, "type": self.type, "jsonPath": self.path, **wide, **said}


@dataclass(frozen=True)
class Kind:
    """One kind and how the API server names and shows it."""

    model: type[Contract]
    plural: str
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]
    scope: Literal["Namespaced", "Cluster"] = "Namespaced"
    always_reconciled: bool = True
    """Whether every installation writes the kind's status; then an object says from birth that it is not yet seen."""

    @property
    def name(self) -> str:
        """Name of the kind, for example FineTuneJob."""
        return self.model.__name__

    @property
    def crd_name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.plural}.{API_GROUP}"

    @property
    def file_name(self) -> str:
        """Name of the generated file."""
        return f"{API_GROUP}_{self.plural}.yaml"


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_READY = '.status.conditions[?(@.type=="Ready")].status'

KINDS: tuple[Kind, ...] = (
    Kind(
        FineTuneJob,
        "finetunejobs",
        ("ftj",),
        (
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.progress"),
            Column("Version", ".status.version.name"),
            Column("Verdict", ".status.verdict"),
            Column("Metric", ".status.metric", description="Primary metric, baseline->tuned."),
            _AGE,
            Column("Reason", ".status.reason", priority=1),
            Column("Base model", ".spec.model.source", priority=1),
            Column("Method", ".status.plan.method", priority=1),
            Column("Pool", ".status.resolved.pool", priority=1),
            Column("Queue", ".spec.compute.queue", priority=1),
            Column("Run", ".status.run", "integer", priority=1),
            Column("Cost", ".status.cost", "number", priority=1),
            Column("Message", ".status.message", priority=1),
        ),
    ),
    Kind(
        GPUPool,
        "gpupools",
        ("gpool",),
        (
            Column("GPUs", ".status.allocatableGpus", "integer", description="GPUs of the ready nodes."),
            Column("Per node", ".spec.gpusPerNode", "integer", description="GPUs per node."),
            Column("Nodes ready", ".status.readyNodes", "integer", description="Nodes that take pods of the pool."),
            Column("Memory GiB", ".spec.gpuMemoryGib", "number", description="Memory of one GPU."),
            Column("Price", ".spec.price.gpuPerHour", "number", description="Price of one GPU hour."),
            Column("Currency", ".spec.price.currency"),
            Column("Default", ".spec.default", "boolean"),
            Column("Ready", _READY),
            _AGE,
            Column("Nodes", ".status.matchingNodes", "integer", priority=1, description="Nodes the selector matches."),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
            Column("Resource", ".spec.resourceName", priority=1),
            Column("Image", ".spec.image", priority=1),
        ),
        scope="Cluster",
        always_reconciled=False,
    ),
    Kind(
        Adapter,
        "adapters",
        ("adp",),
        (
            Column("Versions", ".status.versions", "integer"),
            Column("Latest", ".status.latestVersion"),
            Column("Stable", '.status.channels[?(@.name=="stable")].version', description="What `stable` serves."),
            Column("Release", ".spec.policy.release"),
            Column("Ready", _READY),
            _AGE,
            Column("Owner", ".spec.owner", priority=1),
            Column("Risk", ".spec.riskClass", priority=1),
            Column("Storage", ".spec.storage.uri", priority=1),
        ),
    ),
    Kind(
        AdapterVersion,
        "adapterversions",
        ("adpv",),
        (
            Column("Adapter", ".spec.adapter"),
            Column("Version", ".spec.version", "integer"),
            Column("Phase", ".status.phase"),
            Column("Verdict", ".spec.verdict"),
            # Not `.status.channels`: the API server prints a list as JSON, and an empty one as `[]`.
            Column("Channels", '.status.conditions[?(@.type=="Released")].message', description="Who serves it."),
            _AGE,
            Column("Job", ".spec.origin.job", priority=1),
            Column("Base model", ".spec.base.source", priority=1),
            Column("Digest", ".spec.digest", priority=1),
            Column("Message", ".status.message", priority=1),
        ),
    ),
)


def kind_named(name: str) -> Kind | None:
    """The kind of a YAML's `kind:` line."""
    return next((kind for kind in KINDS if kind.name == name), None)


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind, as plain values."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": kind.crd_name,
            "labels": {"app.kubernetes.io/part-of": "finetune-operator"},
        },
        "spec": {
            "group": API_GROUP,
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": list(kind.short_names),
                "categories": ["finetune"],
            },
            "scope": kind.scope,
            "versions": [
                {
                    "name": API_VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [column.to_wire() for column in kind.columns],
                    "schema": {"openAPIV3Schema": schema_of(kind)},
                }
            ],
        },
    }


def schema_of(kind: Kind) -> Schema:
    """The structural schema of a kind's whole object."""
    raw = kind.model.model_json_schema(by_alias=True)
    definitions = raw.get("$defs", {})
    parts = raw["properties"]
    schema = {
        "description": raw["description"],
        "type": "object",
        "required": ["spec"],
        "properties": {
            **_STANDARD,
            "kind": {"type": "string", "description": f"`{kind.name}`."},
            "spec": _structural(parts["spec"], definitions),
            "status": _structural(parts["status"], definitions, wish=False)
            | ({"default": {"observedGeneration": UNSEEN}} if kind.always_reconciled else {}),
        },
    }
    rules = raw.get("x-kubernetes-validations")
    return {**schema, "x-kubernetes-validations": rules} if rules else schema


def _structural(
    raw: Mapping[str, Any], definitions: Mapping[str, Any], *, wish: bool = True, listed: bool = False
) -> Schema:
    """One node of pydantic's schema as a node of a structural one.

    Entries of a list (`listed`) have no defaults: whoever compares a list as a whole, as client-side apply and Argo CD
    do, would find it different from Git for ever. The operator fills them in as it reads.
    The members of a status (`wish` is false) have neither defaults nor rules: the operator writes it in full, from
    values that were judged before.
    """
    node, optional = _resolve(raw, definitions)
    result: Schema = {}
    if node.get("x-kubernetes-int-or-string"):
        result["x-kubernetes-int-or-string"] = True
    elif "type" in node:
        result["type"] = node["type"]
    result |= {key: node[key] for key in _COPIED if key in node}
    if wish and "x-kubernetes-validations" in node:
        result["x-kubernetes-validations"] = node["x-kubernetes-validations"]
    if "const" in node:
        result["enum"] = [node["const"]]
    result |= _bounds(node)
    if wish and (low := result.get("minimum", 0)) != int(low):
        result["x-kubernetes-validations"] = [_fractional_minimum(low)]
    if "items" in node:
        result["items"] = _structural(node["items"], definitions, wish=wish, listed=True)
    if "properties" in node:
        result["properties"] = {
            name: _structural(value, definitions, wish=wish, listed=listed)
            for name, value in node["properties"].items()
        }
        if node.get("required"):
            result["required"] = list(node["required"])
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(
            node["additionalProperties"], definitions, wish=wish, listed=listed
        )
    if wish and node.get("default") is not None:
        result["default"] = _minimal(node["default"], node, definitions)
    description = _described(node.get("description", ""), result, optional=optional and wish)
    if listed:
        result.pop("default", None)
    return {"description": description, **result} if description else result


def _resolve(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Replace a reference and an `or null` by what they stand for; what is said beside them wins."""
    node = dict(raw)
    optional = False
    choices = node.get("anyOf", [])
    rest = [choice for choice in choices if choice.get("type") != "null"]
    if len(rest) < len(choices) and len(rest) == 1:
        del node["anyOf"]
        node = {**rest[0], **node}
        optional = True
    if "$ref" in node:
        target = definitions[node.pop("$ref").removeprefix("#/$defs/")]
        node = {**target, **node}
    return node, optional


def _bounds(node: Mapping[str, Any]) -> Schema:
    """Ranges in the form of OpenAPI 3.0: an exclusive bound is a bound with a flag."""
    result: Schema = {}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if bound in node:
            result[bound] = _tidy(node[bound])
        elif exclusive in node:
            result |= {bound: _tidy(node[exclusive]), exclusive: True}
    return result


def _fractional_minimum(low: float) -> dict[str, str]:
    """A bound such as 0.01, once more as CEL: the API server compares a whole number with the bound cut to 0."""
    return {"rule": f"self >= {low}", "message": f"the number is too small; write at least {low:g}"}


def _tidy(number: float) -> float:
    """A whole float as an integer: 100 instead of 100.0 in the YAML."""
    return int(number) if float(number).is_integer() else number


def _minimal(value: Any, raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """A default without what the defaults of its own fields say, so that those apply.

    What a rule of the object mentions stays: the API server judges a default before it fills in the rest.
    """
    node, _ = _resolve(raw, definitions)
    if isinstance(value, dict) and "properties" in node:
        members = {name: _resolve(field, definitions)[0] for name, field in node["properties"].items()}
        rules = " ".join(rule["rule"] for rule in node.get("x-kubernetes-validations", ()))
        result = {}
        for name, member in value.items():
            if member is None:
                continue
            if f"self.{name}" in rules:
                result[name] = _without_nulls(member)
            elif members[name].get("default") != member:
                result[name] = _minimal(member, members[name], definitions)
        return result
    if isinstance(value, list):
        return [_minimal(member, node["items"], definitions) for member in value]
    return _tidy(value) if isinstance(value, float) else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(member) for member in value] if isinstance(value, list) else value


def _described(text: str, schema: Schema, *, optional: bool) -> str:
    """The description, with allowed values, range and default added where it does not name them yet."""
    said = text.lower()
    parts = [text] if text else []
    values = [str(value) for value in schema.get("enum", []) if value]
    if values and not all(value.lower() in said for value in values):
        parts.append(f"One of {', '.join(values)}.")
    span = _span(schema)
    if span and not _says_range(said, schema):
        parts.append(span)
    default = schema.get("default")
    if default not in (None, {}, [], "") and not isinstance(default, (dict, list)) and "default" not in said:
        parts.append(f"Default {str(default).lower() if isinstance(default, bool) else default}.")
    if optional and text and "default" not in said and "optional" not in said:
        parts.append("Optional.")
    return " ".join(parts)


def _span(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return ""
    more = "more than " if schema.get("exclusiveMinimum") else ""
    if high is None:
        return f"At least {low}." if not more else f"Range {more}{low}."
    if low is None:
        return f"At most {high}."
    return f"Range {more}{low} to {high}."


def _says_range(said: str, schema: Schema) -> bool:
    words = said.replace("_", "")
    bounds = [schema[bound] for bound in ("minimum", "maximum") if bound in schema]
    return "range" in said and all(_written(bound, words) for bound in bounds)


def _written(bound: float, words: str) -> bool:
    return str(bound) in words or f"{bound:g}" in words or f"{bound:.0e}".replace("e-0", "e-") in words


@dataclass(frozen=True)
class FieldRow:
    """One line of the reference: a field and all that is known about it."""

    path: str
    type: str
    default: str
    required: bool
    description: str


def fields(schema: Schema, prefix: str = "") -> Iterable[FieldRow]:
    """Every field below a schema, parents before children, in the order of the models."""
    required = schema.get("required", [])
    for name, member in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        yield FieldRow(path, _type_name(member), _default_text(member), name in required, member.get("description", ""))
        inner, suffix = member, ""
        while True:
            if inner.get("type") == "array":
                inner, suffix = inner["items"], f"{suffix}[]"
            elif "additionalProperties" in inner:
                inner, suffix = inner["additionalProperties"], f"{suffix}.*"
            else:
                break
        yield from fields(inner, f"{path}{suffix}")


def _type_name(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_name(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map to {_type_name(schema['additionalProperties'])}"
    return str(schema.get("format") or schema.get("type", "any"))


def _default_text(schema: Schema) -> str:
    default = schema.get("default")
    if default is None or isinstance(default, dict) or default == []:
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)
