"""A table of labels beside a folder of pictures: `file,label` rows as people and spreadsheets write them."""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from ..errors import VitfrostError, shown
from ..regular import open_regular
from .classes import ClassSpace

LABELS_FILE = "labels.csv"
MOST_BYTES = 256 << 20
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SEPARATORS = ",;\t"


def read_labels(
    table: Path, root: Path, found: list[str], space: ClassSpace | None = None, left_out: Collection[str] = ()
) -> dict[str, int]:
    """Read `file,label` rows (other columns are ignored) into {file: label} and check them against the folder.

    A label is a 0-based class index; with `space` also a synset or the name of a class. Columns may be separated by commas, semicolons
    or tabs, the header may be in capitals, the text in UTF-8 or UTF-16, folders may end in a backslash. Rows of what is `left_out` of the
    folder, or lies below that, count for nothing.
    Raises VitfrostError naming the first offender and the number of others: no such header, a label that is no class, a file named
    twice, a row whose file is not in `root`, an image of `found` without a row.
    """
    label_of: dict[str, int] = {}
    no_class: list[str] = []
    out_of_range: list[str] = []
    twice: list[str] = []
    absent: list[str] = []
    known, left_out = set(found), set(left_out)
    for line, name, text in _rows(table):
        file = _normal(name, known)
        if left_out and any(part in left_out for part in (file, *map(str, PurePosixPath(file).parents))):
            continue
        label = _label(text, space)
        if label is None:
            no_class.append(f"{shown(text)} for {_row(name, line)}")
            continue
        if label < 0 or (space is not None and label >= space.count):
            out_of_range.append(f"{label} for {_row(name, line)}")
        if file in label_of:
            twice.append(_row(name, line))
        elif file not in known and not _inside(root, file):
            absent.append(_row(name, line))
        label_of[file] = label
    missed = [file for file in found if file not in label_of]
    bounds = "0 or more" if space is None else f"0 to {space.count - 1}"
    if space is not None and out_of_range and label_of and (min(label_of.values()), max(label_of.values())) == (1, space.count):
        bounds += "; these count from 1, so take 1 off each"
    classes = "0-based class indices" + ("" if space is None or not (space.names or space.synsets) else ", synsets or class names")
    for offenders, what, mend in (
        (no_class, "has a label that is not an integer" if space is None or not space.names else "has a label that is no class",
         f"give {classes}"),
        (out_of_range, "has a label out of range", f"labels must be {bounds}"),
        (twice, "names a file twice", "keep one row per file"),
        (absent, f"names a file that is not in {root}", "paths are relative to that folder"),
        (missed, "misses an image of the folder", "add a row or remove the image"),
    ):  # fmt: skip
        if offenders:
            raise VitfrostError(f"the labels CSV {table} {what}: {listed(offenders)}; {mend}")
    return label_of


def listed(offenders: list[str]) -> str:
    """The first, and how many others."""
    return offenders[0] + (f" and {len(offenders) - 1} more" if len(offenders) > 1 else "")


def _row(name: str, line: int) -> str:
    return f"'{name}' (line {line})"


def _normal(name: str, known: set[str]) -> str:
    file = name if name in known else Path(os.path.normpath(name)).as_posix()
    return os.path.normpath(file.replace("\\", "/")) if file not in known and "\\" in file else file


def _label(text: str, space: ClassSpace | None) -> int | None:
    if re.fullmatch(r"\d{1,9}\.0+", text):  # as tables with a gap somewhere are written
        text = text.partition(".")[0]
    try:
        return int(text) if text.isascii() and len(text) < 20 else None if space is None else space.find(text)
    except ValueError:
        return None if space is None else space.find(text)


def _rows(table: Path) -> Iterator[tuple[int, str, str]]:
    """(line, file, label) of every row that is not empty."""
    content = _text(table)
    header, _, _ = content.partition("\n")
    separator = max(_SEPARATORS, key=header.count)
    reader = csv.reader(content.splitlines(keepends=True), delimiter=separator, skipinitialspace=True)
    try:
        columns = [name.strip().casefold() for name in next(reader, [])]
        if not {"file", "label"} <= set(columns):
            raise VitfrostError(f"the labels CSV {table} has no header with the columns file,label; make it the first line")
        file, label = columns.index("file"), columns.index("label")
        for row in reader:
            if any(cell.strip() for cell in row):
                name, text = (row[column].strip() if column < len(row) else "" for column in (file, label))
                yield reader.line_num, name, text
    except csv.Error as error:
        raise VitfrostError(f"the labels CSV {table} is not readable: {error}") from error


def _text(table: Path) -> str:
    try:
        with open_regular(table) as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise VitfrostError(f"no labels CSV {table}; name an existing file") from error
    except OSError as error:
        raise VitfrostError(f"the labels CSV {table} is not readable: {error}") from error
    if len(content) > MOST_BYTES:
        raise VitfrostError(f"the labels CSV {table} is not readable: it is larger than {MOST_BYTES >> 20} MB")
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise VitfrostError(f"the labels CSV {table} is not readable: {error}; save it as UTF-8") from error


def _inside(root: Path, file: str) -> bool:
    try:
        return not Path(file).is_absolute() and not file.startswith("../") and (root / file).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
