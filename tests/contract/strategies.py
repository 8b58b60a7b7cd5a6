"""Random FineTuneJob specs, built from the structural schema: every field, every bound, every choice.

What a rule of the contract forbids is repaired afterwards instead of filtered: hypothesis would give up otherwise.
"""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

from finetune_api.common import DURATION
from finetune_api.crd import Schema, kind_named, schema_of
from finetune_api.job.evaluation import ALWAYS_MEASURED
from finetune_api.job.method import WHOLE_MODULES
from finetune_api.job.model import CHAT_TEMPLATES, SOURCE

_kind = kind_named("FineTuneJob")
assert _kind is not None
SPEC_SCHEMA: Schema = schema_of(_kind)["properties"]["spec"]

_PATHS = st.from_regex(r"[a-zA-Z0-9 _.ä-]{1,20}", fullmatch=True).filter(lambda text: text.strip() and ".." not in text)
_MODELS = st.one_of(
    st.from_regex(r"hf://[A-Za-z0-9][A-Za-z0-9._-]{0,20}/[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.from_regex(r"s3://[a-z0-9]{3,20}", fullmatch=True).flatmap(
        lambda bucket: _PATHS.map(lambda key: f"{bucket}/{key}")
    ),
    st.from_regex(r"pvc://[a-z0-9]{1,20}", fullmatch=True),
    st.from_regex(r"oci://[a-z0-9]{1,9}(:[0-9]{1,5})?/[a-z0-9]{1,9}(:v[0-9]{1,3}(/[a-z]{1,9})?)?", fullmatch=True),
    _PATHS.map(lambda path: f"file:///{path}"),
)
_DATASETS = _MODELS.map(lambda source: source.replace("hf://", "hf://datasets/"))
_DURATIONS = st.sampled_from(["1s", "90m", "24h", "1h30m", "2h0m1s", "0h1m"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=2),
    max_leaves=4,
)


def specs() -> st.SearchStrategy[dict[str, Any]]:
    """Specs that the contract accepts."""
    return _values(SPEC_SCHEMA, "spec").map(_repaired)


def _values(schema: Schema, path: str) -> st.SearchStrategy[Any]:
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return st.dictionaries(st.text(min_size=1, max_size=5), _JSON, max_size=3)
    if schema.get("x-kubernetes-int-or-string"):
        return st.just("auto") | st.integers(1, 10_000_000)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        members = {name: _values(member, f"{path}.{name}") for name, member in schema["properties"].items()}
        required = {name: members.pop(name) for name in schema.get("required", [])}
        return st.fixed_dictionaries(required, optional=members)
    if kind == "array":
        keys = schema.get("x-kubernetes-list-map-keys")
        return st.lists(
            _values(schema["items"], f"{path}[]"),
            min_size=schema.get("minItems", 0),
            max_size=min(3, schema["maxItems"]),
            unique_by=(lambda item: tuple(item[key] for key in keys)) if keys else None,
        )
    if kind == "string":
        return _texts(schema, path)
    if kind == "integer":
        return st.integers(schema["minimum"], schema["maximum"])
    if kind == "number":
        return st.floats(schema["minimum"], schema["maximum"], exclude_min=schema.get("exclusiveMinimum", False))
    return st.booleans()


def _texts(schema: Schema, path: str) -> st.SearchStrategy[str]:
    pattern, low, high = schema.get("pattern"), schema.get("minLength", 0), schema.get("maxLength", 64)
    if pattern == SOURCE:
        return _MODELS if path == "spec.model.source" else _DATASETS
    if pattern == DURATION:
        return _DURATIONS
    if pattern is None:
        return st.text(min_size=low, max_size=min(high, 64))
    return st.from_regex(pattern, fullmatch=True).filter(lambda text: low <= len(text) <= high and ".." not in text)


def _repaired(spec: dict[str, Any]) -> dict[str, Any]:
    """Move a spec to the nearest one that keeps the rules."""
    if not spec["model"]["source"].startswith("hf://"):
        spec["model"].pop("revision", None)
    if "chatTemplate" in spec["model"] and spec["model"]["chatTemplate"] not in CHAT_TEMPLATES:
        spec["model"]["chatTemplate"] += "{{ messages }}"
    data = spec["data"]
    for dataset in data["train"]:
        if dataset.get("format") in ("preference", "text"):
            dataset["format"] = "chat"
    for columns in [dataset["columns"] for dataset in data["train"] if "columns" in dataset]:
        for kind in ("messages", "conversations", "text", "label"):
            if kind in columns and len(columns) > 1:
                del columns[kind]
    for split in [data[name] for name in ("validation", "test") if name in data]:
        if "source" not in split:
            split.pop("secretRef", None)
            split.pop("format", None)
        if split.get("fraction", 0) > 0.25:
            split["fraction"] = 0.25
    _repair_method(spec)
    compute = spec.get("compute", {})
    if compute.get("strategy") == "single":
        compute["strategy"] = "ddp"
    if compute.get("strategy") != "deepspeed":
        compute.pop("deepspeed", None)
    if compute.get("deepspeed", {}).get("offload") == "parameters":
        compute["deepspeed"]["stage"] = 3
    if spec["model"].get("dtype") == "fp32" and spec.get("method", {}).get("type") == "qlora":
        del spec["model"]["dtype"]
    if "queue" not in compute:
        compute.pop("priorityClass", None)
    output = spec["output"]
    output.pop("exports", None)
    if output.get("storage", {}).get("uri", "").startswith("file://"):
        output["storage"] = {"uri": output["storage"]["uri"]}
    if "evaluation" in spec:
        _repair_evaluation(spec["evaluation"])
    _repair_combinations(spec)
    return spec


def _repair_method(spec: dict[str, Any]) -> None:
    method, training, output = spec.get("method", {}), spec.get("training", {}), spec["output"]
    if training.get("bestBy") == "metric":
        training.pop("validationSamples", None)
    objective = method.get("objective", "sft")
    if objective == "sft":
        method.pop("beta", None)
        training.pop("bestBy", None)
    elif training.get("packing") == "enabled":
        training["packing"] = "auto"
    if method.get("type") == "lora" or method.get("useDora"):
        method.pop("bits", None)
    if method.get("useDora") or method.get("rank", 16) > 512:
        output["servedAs"] = "merged"
    if re.search(WHOLE_MODULES, method.get("targetModules", "")):
        method.pop("targetModules")
    if method.get("type") == "qlora" and training.get("precision") == "fp32":
        training.pop("precision")
    if training.get("precision", "auto") != "auto":
        spec["model"].pop("dtype", None)
    if "extendTo" in training:
        training["maxSteps"] = min(training.get("maxSteps", 1), training["extendTo"] - 1)
        training["scheduler"] = "wsd"
    if training.get("globalBatchSize", 16) % training.get("microBatchSize", 1):
        training.pop("microBatchSize")


def _repair_combinations(spec: dict[str, Any]) -> None:
    """What 8 bit, DoRA, high ranks, and weights in parts forbid elsewhere."""
    method, compute, evaluation = spec.get("method", {}), spec.get("compute", {}), spec.get("evaluation", {})
    if method.get("bits") == 8 or compute.get("strategy") in ("fsdp", "deepspeed"):
        spec.get("training", {}).pop("torchCompile", None)
    merges = method.get("type") != "lora"
    if method.get("bits") == 8:
        if compute.get("strategy") in ("fsdp", "deepspeed"):
            compute.pop("deepspeed", None)
            compute["strategy"] = "ddp"
        if evaluation.get("engine") == "vllm":
            method["bits"] = 4
    if merges and (method.get("useDora") or method.get("rank", 16) > 512) and evaluation.get("engine") == "vllm":
        evaluation["engine"] = "transformers"


def _repair_evaluation(evaluation: dict[str, Any]) -> None:
    if evaluation.get("generation", {}).get("temperature", 0) == 0:
        evaluation.get("generation", {}).pop("topP", None)
    task = evaluation.setdefault("task", {})
    if task.get("type") != "classification":
        task.pop("labelPath", None)
    metrics = evaluation.get("metrics", [{"name": "loss"}])
    for metric in metrics:
        if metric["name"] == "f1":
            task["type"] = "classification"
        else:
            metric.pop("average", None)
        if metric["name"] == "schemaValid":
            task.setdefault("schema", {"type": "object"})
    measured = {metric["name"] for metric in metrics} | ALWAYS_MEASURED
    for gate in evaluation.get("gates", []):
        if gate["metric"] == "outOfDomainLoss":
            evaluation.setdefault("outOfDomain", {"source": "s3://shared/general.jsonl"})
            gate["over"] = "base"
        elif gate["metric"] not in measured:
            gate["metric"] = "loss"
        bounds = ("minimumGain", "maximumRegression") if "over" in gate else ("minimum", "maximum")
        kept = next((bound for bound in bounds if bound in gate), None)
        value = gate[kept] if kept else 0.5
        for bound in ("minimum", "maximum", "minimumGain", "maximumRegression"):
            gate.pop(bound, None)
        gate[kept or bounds[0]] = value
