"""A search by the fields of its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vitfrost
from vitfrost.configs import Search
from vitfrost.plans.schema import Plan

VERB = ("labels", "record", "resume", "out", "progress")
QUICK: dict[str, Any] = {"images": 10, "batch_size": 4, "progress": False}


def search(known: Any, pictures: Path, *methods: Any, **options: Any) -> Plan:
    """Search for a plan of a known model: `options` are those of the verb and the fields of Search."""
    given = {name: options.pop(name) for name in VERB if name in options}
    return vitfrost.search(known.model, pictures, Search(**options), *methods, statistics=known.statistics, **given)
