"""A plan as a file: commented YAML, and the hash that artifacts and results know it by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import VitfrostError
from ..files import write_text
from ..spelling import american, hashed
from .schema import KIND, VERSION, Plan
from .strict import describe
from .text import from_yaml, to_yaml


def parse_plan(data: Any, source: str) -> Plan:
    """A plan from plain data (of YAML or JSON). Raises VitfrostError that begins with `source` and names the field."""
    if not isinstance(data, dict) or data.get("kind") != KIND:
        found = f"its kind is {data.get('kind')!r}" if isinstance(data, dict) and "kind" in data else "it has no kind"
        raise VitfrostError(f"{source} is not a plan: {found}, and should say 'kind: {KIND}'")
    version = data.get("version")
    if type(version) is int and version > VERSION:
        raise VitfrostError(f"{source} has plan version {version}, this vitfrost reads up to {VERSION}; update vitfrost")
    try:
        return Plan.model_validate(american(data))
    except ValidationError as error:
        raise VitfrostError(f"{source}: {describe(error)}") from error


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as commented YAML, atomically. The same plan gives the same bytes."""
    write_text(path, to_yaml(plan.plain()))


def load_plan(path: str | Path) -> Plan:
    """Read a plan. Raises VitfrostError, one line that names file, field, value and what is allowed.

    So for a file that is missing, is no YAML, is of another kind or a newer version, and for any value that makes no sense.
    """
    try:
        data = from_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise VitfrostError(f"no plan {path}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise VitfrostError(f"{path} is not readable YAML: {error}") from error
    return parse_plan(data, source=str(path))


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the plan as canonical JSON: comments, layout and the order of keys do not matter."""
    canonical = json.dumps(hashed(plan.plain()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
