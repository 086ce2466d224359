"""What gcloud prints of resources: --format, --filter, --limit."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.cloud.flags import Parsed


def show(parsed: Parsed, resources: Any, columns: str) -> str:
    """One resource (a dictionary) or several (a list) in the format that the command line asks for.

    Args:
      parsed: the command line.
      resources: what to print.
      columns: the fields of the table that lists print by default.
    """
    many = isinstance(resources, list)
    if many:
        resources = [one for one in resources if _matches(parsed, one)]
        resources = resources[: int(parsed.get("limit", "1000000"))]
    form = parsed.get("format")
    kind, fields = _format(parsed, form or ("table" if many else "yaml"))
    if kind == "none":
        return ""
    if kind == "json":
        shown = resources if not fields else [_only(one, fields) for one in (resources if many else [resources])]
        return json.dumps(shown, indent=2)
    rows = resources if many else [resources]
    if kind == "yaml":
        return "\n---\n".join(_yaml(_only(one, fields) if fields else one) for one in rows)
    names = fields or columns.split()
    lines = ["\t".join(_text(field(one, name)) for name in names) for one in rows]
    if kind == "table" and many:
        if not rows:
            return "Listed 0 items."
        headings = "  ".join(name.split(".")[-1].upper() for name in names)
        return "\n".join([headings, *(line.replace("\t", "  ") for line in lines)])
    return "\n".join(lines)


def field(resource: Any, path: str) -> Any:
    """The value at a path such as `state` or `networkEndpoints[0].ipAddress`; None if there is none."""
    here = [resource]
    several = False
    for part in re.findall(r"[\w-]+|\[\d*\]", path.removesuffix(".basename()")):
        if part == "[]":
            here = [item for value in here if isinstance(value, list) for item in value]
            several = True
        elif part.startswith("["):
            index = int(part[1:-1])
            here = [value[index] for value in here if isinstance(value, list) and index < len(value)]
        else:
            lists = [value for value in here if isinstance(value, list)]
            here = [value for value in here if isinstance(value, dict)] + [item for value in lists for item in value]
            here = [value[part] for value in here if isinstance(value, dict) and part in value]
            several = several or bool(lists)
    if path.endswith(".basename()"):
        here = [str(value).rsplit("/", 1)[-1] for value in here]
    return here if several else here[0] if here else None


def _format(parsed: Parsed, form: str) -> tuple[str, list[str]]:
    match = re.fullmatch(r"(json|yaml|value|get|table|csv|none|list|flattened)(?:\[[^]]*\])?(?:\((.*)\))?", form)
    if not match:
        raise parsed.refuse(
            f"Format must be one of csv, flattened, get, json, list, none, table, value, yaml; received [{form}]."
        )
    kind = "value" if match[1] == "get" else match[1]
    names = re.split(r",\s*|\s+", re.sub(r":\w+=\S+", "", match[2])) if match[2] else []
    return kind, [name for name in names if name]


def _matches(parsed: Parsed, resource: Any) -> bool:
    for term in re.split(r"\s+AND\s+|\s+(?=[\w.]+[:=])", parsed.get("filter")):
        term = term.strip().strip("()")
        if not term:
            continue
        match = re.fullmatch(r"(-?)([\w.-]+)(!=|[:=~]+)(.*)", term)
        if not match:
            raise parsed.refuse(f"Invalid value for [--filter]: the stand-in does not know [{term}].")
        value = _text(field(resource, match[2]))
        wanted = match[4].strip("'\"()")
        short = value.rsplit("/", 1)[-1]
        met = {
            "=": wanted in (value, short),
            "!=": wanted not in (value, short),
            ":": wanted.rstrip("*") in value,
            "~": re.search(wanted, value) is not None,
        }[match[3]]
        if met == (match[1] == "-"):
            return False
    return True


def _only(resource: Any, fields: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name in fields:
        here = kept
        *parents, last = name.split(".")
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = field(resource, name)
    return kept


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list):
        return ";".join(map(_text, value))
    if isinstance(value, dict):
        return ";".join(f"{key}={_text(item)}" for key, item in value.items())
    return str(value)


def _yaml(value: Any, indent: str = "") -> str:
    """Block style; strings are plain."""
    if isinstance(value, dict):
        lines = []
        for key, item in sorted(value.items()):
            if isinstance(item, dict | list) and item:
                lines.append(f"{indent}{key}:\n{_yaml(item, indent + ('  ' if isinstance(item, dict) else ''))}")
            else:
                lines.append(
                    f"{indent}{key}: {'null' if item is None else json.dumps(item) if item in ({}, []) else item}"
                )
        return "\n".join(lines)
    if isinstance(value, list):
        blocks = [_yaml(item, indent + "  ") for item in value]
        return "\n".join(f"{indent}- {block.removeprefix(indent + '  ')}" for block in blocks)
    return f"{indent}{value}"
