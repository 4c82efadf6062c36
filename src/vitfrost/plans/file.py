"""A plan as a file: commented YAML, and the hash that artifacts and results know it by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..files import write_text
from ..records import Format
from ..spelling import american, hashed
from .schema import KIND, VERSION, Plan
from .text import to_yaml

FORMAT = Format("a plan", KIND, VERSION, language="YAML")


def parse_plan(data: Any, source: str) -> Plan:
    """A plan from plain data (of YAML or JSON). Raises VitfrostError that begins with `source` and names the field."""
    return FORMAT.record(Plan, american(FORMAT.check(data, source)), source)


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as commented YAML, atomically. The same plan gives the same bytes."""
    write_text(path, to_yaml(plan.plain()))


def load_plan(path: str | Path) -> Plan:
    """Read a plan. Raises VitfrostError, one line that names file, field, value and what is allowed.

    So for a file that is missing, is no YAML, is of another kind or a newer version, and for any value that makes no sense.
    """
    return FORMAT.load(Plan, path)


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the plan as canonical JSON: comments, layout and the order of keys do not matter."""
    canonical = json.dumps(hashed(plan.plain()), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
