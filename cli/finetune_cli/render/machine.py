"""Results as JSON or YAML."""

from __future__ import annotations

import json
import sys
from typing import Any

from ruamel.yaml import YAML


def print_machine(value: Any, form: str) -> None:
    """Print a JSON-like value to stdout as `json` or `yaml`."""
    if form == "json":
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(value, sys.stdout)


def print_object(wire: dict[str, Any], form: str, full_name: str) -> None:
    """One object of the API as `json`, `yaml` or `name` (`finetunejob.finetune.dev/NAME`, as kubectl has it)."""
    if form == "name":
        singular = full_name.replace("s.", ".", 1)
        print(f"{singular}/{wire['metadata']['name']}")
        return
    metadata = {name: value for name, value in wire["metadata"].items() if name != "managedFields"}
    print_machine(wire | {"metadata": metadata}, form)
