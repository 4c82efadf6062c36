"""Headers of statistics files that do not go together."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitfrost.errors import VitfrostError
from vitfrost.statistics.record import FORMAT, Statistics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header["sites"][0]["maps"].__setitem__(1, 5), r"sites\[0\].*heads are 4 .*do not go with maps"),
        (lambda header: header["sites"][0].update(heads="4"), r"sites\[0\].heads is '4'"),
        (lambda header: header["sites"][0].pop("name"), r"sites\[0\].name is missing"),
        (lambda header: header["sites"][1].update(name=header["sites"][0]["name"]), "sites name one twice"),
        (lambda header: header.update(images=0), "images is 0"),
        (lambda header: header.update(precision="int8"), "precision is 'int8'"),
        (lambda header: header["feed_forward"][0].update(width=1.5), r"feed_forward\[0\].width is 1.5"),
        (lambda header: header.update(sites=[]), "sites is"),
    ],
)
def test_what_does_not_go_together_is_named(prepared, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    content = prepared.statistics.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + length])
    header = json.loads(outer["__metadata__"][FORMAT.kind])
    change(header)
    outer["__metadata__"][FORMAT.kind] = json.dumps(header)
    text = json.dumps(outer).encode()
    (tmp_path / "s.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(VitfrostError, match=message):
        Statistics.load(tmp_path / "s.safetensors")
