"""A plan as a file: YAML of short lines that a person reads, edits and diffs."""

from __future__ import annotations

from typing import Any

import yaml

from ..records import Format

KIND, VERSION = "vitfrost plan", 1
HEADER = """\
# A plan: what vitfrost does to every head of the model, and how the model is quantized. You may edit it.
# - layers, one line per head: {source: computed} leaves its maps alone; {source: frozen, entries: N} replaces the N entries
#   that rank lowest by freeze.by with their means (zeros: M, with ties: strict, makes the last M of them zero).
{constants}{windowed}{hallucinate}# - freeze.ratio, scope and ties tell how the counts came about; to change them run 'vitfrost plan' again.
# - freeze.by, seed and protect rank the entries; bits, grid, order and renormalize say how constants are stored and merged.
{feed_forward}{latency}\
# - Bits are 2 to 8, or 32 for floating point. Leave model, statistics, site, maps, prefix_tokens and unmasked as they are.
"""
# Said only where a plan has the part, so that the files of plans without it keep their bytes.
PART_LINES = {
    "constants": """\
#   {source: frozen, constant: KIND} drops a head's queries and keys and makes its map a constant: dense, toeplitz (by relative
#   position on the patch grid), or local with an odd window: K (and one number for all patches outside it).
""",
    "windowed": """\
#   {source: windowed, window: K} lets a head look at the K x K patches around each patch only, and at prefix tokens; K is odd.
""",
    "hallucinate": """\
#   {source: hallucinated, like: K} drops its queries and keys and makes its maps of the other heads', starting as head K's.
""",
    "feed_forward": """\
# - feed_forward, one line per block: the rank of its factorized second projection; without rank it stays as it is.
""",
    "latency": """\
# - latency: what the search measured of the plan as it was written, relative to the original; it says nothing of what you edit.
""",
}
MAPPING, SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


class _Inline(dict[str, Any]):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Lists of scalars and inline mappings on one line, everything else in blocks, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    scalars = not any(isinstance(item, dict) for item in data)
    return dumper.represent_sequence(SEQUENCE, data, flow_style=scalars)


def _represent_inline(dumper: yaml.SafeDumper, data: _Inline) -> yaml.Node:
    return dumper.represent_mapping(MAPPING, list(data.items()), flow_style=True)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(_Inline, _represent_inline)


def _layer_data(layer: dict[str, Any]) -> dict[str, Any]:
    heads = [_Inline((key, value) for key, value in head.items() if value != 0 or key == "like") for head in layer["heads"]]
    return {key: value for key, value in layer.items() if value is not None} | {"heads": heads}


def to_yaml(data: dict[str, Any]) -> str:
    """The commented text of a plan's plain data. Keys keep their order; the same data gives the same text."""
    document = data | {"layers": [_layer_data(layer) for layer in data["layers"]]}
    if "feed_forward" in data:
        blocks = [{key: value for key, value in block.items() if value is not None} for block in data["feed_forward"]]
        document["feed_forward"] = [_Inline(block) for block in blocks]
    header = HEADER
    for part, lines in PART_LINES.items():
        header = header.replace(f"{{{part}}}", lines if part in data else "")
    return header + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def overlaid(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`data` with the values of `changes` in place of its own, part by part; None takes a key away."""
    merged = dict(data)
    for key, value in changes.items():
        ours = merged.get(key)
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = overlaid(ours, value) if isinstance(ours, dict) and isinstance(value, dict) else value
    return merged


FORMAT = Format("a plan", KIND, VERSION, language="YAML")
