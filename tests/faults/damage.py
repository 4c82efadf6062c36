"""Damaged and hostile files, made from whole ones by their structure. Everything is drawn from a `random.Random`, which hypothesis can
give and shrink."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import yaml

NAMES = (
    "kind",
    "version",
    "options",
    "checkpoint_path",
    "pretrained_cfg",
    "<script>alert(1)</script>",
    "../../etc/passwd",
    "__class__",
    "",
)
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", "x",
    "x" * 5000, "0", "1e9", "\x00", "\x1b[2J", "<img src=x onerror=alert(1)>", "{{7*7}}", "%s%n", "/dev/zero", "file:///etc/passwd",
    "hf-hub:a/b", [], {}, [None], [[]], [0] * 3, ["a", 1], {"a": 1}, [10**9] * 4, [-1, -1], [0, 0], [1e-320] * 3, [0.0] * 3, {"": {"": {}}},
)  # fmt: skip


def damage_value(value: Any, random: Random) -> Any:
    """Plain data with one to three places changed."""
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _damage_place(value, random)
    return value


def _damage_place(value: Any, random: Random) -> Any:
    if isinstance(value, dict | list) and value and random.random() < 0.85:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        key = random.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        action = random.random()
        if action < 0.12:
            del copy[key]
        elif action < 0.2 and isinstance(copy, list):
            copy.insert(key, copy[key])
        elif action < 0.2:
            copy[random.choice(NAMES)] = random.choice(HOSTILE)
        elif action < 0.25:
            copy[key] = copy[random.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))]
        else:
            copy[key] = _damage_place(copy[key], random)
        return copy
    if isinstance(value, bool) or value is None or random.random() < 0.5:
        return random.choice(HOSTILE)
    if isinstance(value, int | float):
        return random.choice((value + 1, value - 1, -value, value * 1000, value * 10**12, float(value), str(value), [value]))
    if isinstance(value, str):
        return random.choice((value[:-1], value + "x", value.upper(), value * 100, [value], value.replace("_", "-")))
    return _nested(random.choice((70, 2000)))


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def damage_bytes(content: bytes, random: Random) -> bytes:
    """Bits turned over, bytes cut off, taken out, repeated or put in."""
    if not content:
        return b"\x00"
    start = random.randrange(len(content)) if random.random() < 0.5 else random.randrange(min(len(content), 300))
    length = random.choice((1, 1, 2, 4, 8, 64, 1024))
    action = random.randrange(6)
    if action <= 1:
        flipped = bytearray(content)
        for place in range(start, min(start + length, len(flipped))):
            flipped[place] ^= 1 << random.randrange(8) if action else 0xFF
        return bytes(flipped)
    parts = {
        2: content[:start],
        3: content[:start] + content[start + length :],
        4: content[:start] + content[start : start + length] * 3 + content[start + length :],
        5: content[:start] + random.choice((b"\x00", b"\xff\xff\xff\xff", b"\x7f" * 8, b"[" * 200, b"&a [*a,*a]", b'"')) + content[start:],
    }
    return parts[action]


BOMBS = (
    b"[" * 100_000, b'{"a":' * 50_000, b"1" * 50_000, b"1e999999", b"", b"\xff\xfe" * 40, b"\x00" * 4096, b'{"kind": NaN}',
    b"a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\n"
    b"d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n",
    b"!!python/object/apply:os.system ['true']", b"? {a: 1}\n: 2\n", b"x: 2026-11-28\n", b"x: 0x" + b"f" * 5000, b"&a [*a]\n",
)  # fmt: skip


def damage_json(content: bytes, random: Random) -> bytes:
    """A JSON text that says something else, or is none."""
    action = random.random()
    if action < 0.75:
        return json.dumps(damage_value(json.loads(content), random)).encode()
    return random.choice(BOMBS) if action < 0.85 else damage_bytes(content, random)


def damage_yaml(content: bytes, random: Random) -> bytes:
    """A YAML text that says something else, or is none."""
    action = random.random()
    if action < 0.7:
        return yaml.safe_dump(damage_value(yaml.safe_load(content), random), sort_keys=False).encode("utf-8", "surrogatepass")
    return random.choice(BOMBS) if action < 0.85 else damage_bytes(content, random)


def damage_safetensors(content: bytes, random: Random) -> bytes:
    """The header of a safetensors file, the JSON that stands in its metadata, or the numbers."""
    action = random.random()
    if action < 0.3:
        return damage_bytes(content, random)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    notes = header.get("__metadata__") or {}
    if action < 0.6 and notes:
        key = random.choice(list(notes))
        notes[key] = damage_json(notes[key].encode(), random).decode("utf-8", "replace")
    elif action < 0.75:
        data = damage_bytes(data, random)
    else:
        header = damage_value(header, random)
    text = json.dumps(header).encode()
    size = len(text) if random.random() < 0.9 else random.choice((0, 1, 2**40, 2**63))
    return struct.pack("<Q", size) + text + data


def damage_zip(content: bytes, random: Random) -> bytes:
    """One member of an archive (of NumPy's or torch's) changed, or the archive itself."""
    if random.random() < 0.3:
        return damage_bytes(content, random)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(made, "w") as changed:
        names = whole.namelist()
        chosen = random.choice([name for name in names if name.endswith((".pkl", ".npy"))] or names)
        for name in names:
            member = whole.read(name)
            if name == chosen:
                if random.random() < 0.1:
                    continue
                member = _damage_array(member, random) if member[:6] == b"\x93NUMPY" else damage_bytes(member, random)
            changed.writestr(name, member)
    return made.getvalue()


def _damage_array(member: bytes, random: Random) -> bytes:
    """The header of an array: sizes that the file does not have, other types."""
    if random.random() < 0.3:
        return damage_bytes(member, random)
    old = member[10 : 10 + struct.unpack("<H", member[8:10])[0]].decode("latin1")
    shape = old[old.index("(") : old.index(")") + 1]
    kind = old.split("'descr': '")[1].split("'")[0]
    shapes = ("(10**11,)", "(100000000000,)", "(-1,)", "()", "(2, 2)", "(0,)", "(1,)", "('a',)", "(" * 500, shape)
    new = old.replace(shape, random.choice(shapes)).replace(
        kind, random.choice((kind, kind, kind, "|O", "<f8", "|S1", "<U9", "x", "<M8[s]"))
    )
    text = new.strip().encode("latin1")
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return member[:8] + struct.pack("<H", len(text)) + text + member[10 + len(old) :]


def damage_xml(content: bytes, random: Random) -> bytes:
    """A graph of OpenVINO in which numbers, names or bytes have changed."""
    if random.random() < 0.4:
        return damage_bytes(content, random)
    text = content.decode()
    places = [index for index in range(len(text)) if text[index] == '"']
    place = random.randrange(len(places) - 1)
    value = random.choice(("-1", "0", "99999999999999", "x", "", "9" * 30, "../../etc/passwd", "&lol;", "1,3,100000,100000"))
    return (text[: places[place] + 1] + value + text[places[place + 1] :]).encode()


def damage_native(content: bytes, random: Random) -> bytes:
    """A file of the native engine in which a number of its tables has changed: counts, shapes, places, layers and what they name."""
    if random.random() < 0.3:
        return damage_bytes(content, random)
    tensors, layers = struct.unpack_from("<II", content, 12)
    changed, first_layer = bytearray(content), 64 + 64 * tensors
    for _ in range(random.choice((1, 1, 2, 3))):
        part = random.random()
        if part < 0.1:
            form, place = random.choice((("<I", 8), ("<I", 12), ("<I", 16), ("<I", 20), ("<Q", 24)))
        elif part < 0.4:
            form, offset = random.choice((("<I", 0), ("<I", 4), ("<I", 8), ("<Q", 16), ("<Q", 24), ("<Q", 32), ("<Q", 48), ("<Q", 56)))
            place = 64 + 64 * random.randrange(tensors) + offset
        else:
            form, offset = random.choice((("<I", 0), *[("<i", 8 + 4 * random.randrange(94))] * 5))
            place = first_layer + 384 * random.randrange(layers) + offset
        (old,) = struct.unpack_from(form, changed, place)
        values = (0, 1, 2, 255, old + 1, old - 1, 2 * old, 64 * old, 2**16, 2**30, 2**31 - 1, 2**32 - 1, 2**62, -1, 0x7FC00000, 0x7F800000)
        bits = 8 * struct.calcsize(form)
        struct.pack_into(form.upper(), changed, place, random.choice(values) % 2**bits)
    return bytes(changed)


def damage_csv(content: bytes, random: Random) -> bytes:
    """A table in which a cell, a row or the header has changed."""
    if random.random() < 0.4:
        return damage_bytes(content, random)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = random.choice(rows)
    row[random.randrange(len(row))] = random.choice(
        ("", "-1", "9" * 400, "1.5", "../x", "\\\\", '"', "\x00", "nan", "٣", "NaN", "/etc/passwd", "a,b")
    )
    end = random.choice(("\n", "\r\n", "\r", "\n\n"))
    return end.join(",".join(row) for row in rows).encode(random.choice(("utf-8", "utf-16", "utf-8-sig", "latin1")), "replace")


Damage = Callable[[bytes, Random], bytes]
