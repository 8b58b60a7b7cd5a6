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
