"""Write everything generated from the contract: `python -m finetune_api.generate` (or `make generate`)."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from finetune_api.crd import KINDS, FieldRow, Kind, Schema, crd, fields, schema_of

ROOT = Path(__file__).resolve().parents[2]
_HEADER = "# Generated from crds/finetune_api by `make generate`; edit the models, not this file.\n"


def generated() -> dict[Path, str]:
    """Every generated file with its text, the same for the same models."""
    files = {ROOT / "crds" / kind.file_name: crd_yaml(kind) for kind in KINDS}
    files[ROOT / "docs" / "reference" / "api.md"] = reference()
    return files


def crd_yaml(kind: Kind) -> str:
    """The CustomResourceDefinition of a kind as YAML text."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 100_000  # a folded line would end in a space
    # Texts that repeat must not become anchors: several tools that read CRDs do not follow them.
    yaml.representer.ignore_aliases = lambda _: True
    text = StringIO()
    yaml.dump(crd(kind), text)
    return _HEADER + text.getvalue()


def reference() -> str:
    """The table of all fields, for people."""
    lines = [
        "# API reference",
        "",
        "<!-- Generated from crds/finetune_api by `make generate`; edit the models, not this file. -->",
        "",
        "Group `finetune.dev`, version `v1alpha1`. The same texts are shown by `kubectl explain`.",
        "`[]` is an entry of a list, `.*` a value of a map. The API server fills in the defaults.",
    ]
    for kind in KINDS:
        schema = schema_of(kind)
        scope = "one per cluster" if kind.scope == "Cluster" else "namespaced"
        lines += ["", f"## {kind.name}", "", f"{schema['description']} Short name `{kind.short_names[0]}`, {scope}."]
        for part in ("spec", "status"):
            lines += [
                "",
                f"### {kind.name} {part}",
                "",
                "| field | type | default | description |",
                "|---|---|---|---|",
            ]
            lines += [_row(row) for row in fields(schema["properties"][part], part)]
        if rules := _rules(schema):
            lines += ["", f"### {kind.name} rules", "", "| at | what is refused, and the fix |", "|---|---|"]
            lines += [f"| `{path}` | {_cell(message)} |" for path, message in rules]
    return "\n".join(lines) + "\n"


def _rules(schema: Schema, path: str = "") -> list[tuple[str, str]]:
    found = [
        ((path + rule.get("fieldPath", "")).lstrip(".") or "object", rule["message"])
        for rule in schema.get("x-kubernetes-validations", [])
        if schema["type"] == "object"  # a number's rule repeats its range
    ]
    for name, member in schema.get("properties", {}).items():
        if name != "status":
            found += _rules(member, f"{path}.{name}")
    if isinstance(items := schema.get("items"), dict):
        found += _rules(items, f"{path}[]")
    return found


def _row(row: FieldRow) -> str:
    default = "required" if row.required else f"`{row.default}`" if row.default else ""
    return f"| `{row.path}` | {_cell(row.type)} | {default} | {_cell(row.description)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write the files; those that are already right keep their time stamp."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
