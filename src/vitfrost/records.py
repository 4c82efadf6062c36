"""Files that say what they are: a kind, a version, and one reader that answers whatever is wrong with them in one line.

A file may come from anybody, so its size, its depth and its numbers are bounded. PyYAML and pydantic are imported where they are
needed only: `vitfrost.runtime` reads its files without them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import VitfrostError, field_path, shown
from .regular import open_regular
from .spelling import american

T = TypeVar("T")
Language = Literal["JSON", "YAML"]
MOST_BYTES: dict[Language, int] = {"JSON": 64 << 20, "YAML": 8 << 20}
MOST_VALUES: dict[Language, int] = {"JSON": 5_000_000, "YAML": 200_000}
DEEPEST = 64
SMALLEST_NUMBER, LARGEST_NUMBER = -(2**63), 2**64 - 1


@dataclass(frozen=True)
class Format:
    """A kind of file. `title`: what it is, with its article, such as "a plan"; `kind` and `version`: what it says of itself, `version` the
    newest that is read; `mend`: what to do where one is damaged ("measure again"), None for files that people write.
    """

    title: str
    kind: str
    version: int = 1
    mend: str | None = None
    language: Language = "JSON"

    @property
    def name(self) -> str:
        """The title without its article."""
        return self.title.partition(" ")[2]

    def read(self, path: str | Path) -> dict[str, Any]:
        """The fields of a file. Raises VitfrostError where it is missing, unreadable, of another kind or of a newer version."""
        return self.check(self.plain(path), path)

    def plain(self, path: str | Path) -> Any:
        """What is in a file, of whatever kind. Raises VitfrostError where it is missing or unreadable."""
        try:
            return read_plain(path, self.language)
        except FileNotFoundError as error:
            raise VitfrostError(f"no {self.name} {path}") from error

    def check(self, data: Any, where: str | Path) -> dict[str, Any]:
        """Plain data as fields, with today's spelling. Raises VitfrostError, which names `where`, for another kind and a newer version."""
        if not isinstance(data, dict) or data.get("kind") != self.kind:
            found = f"its kind is {shown(data['kind'])}" if isinstance(data, dict) and "kind" in data else "it has no kind"
            raise VitfrostError(f"{where} is not {self.title}: {found}, and should say 'kind: {self.kind}'")
        self.check_version(data, where)
        return data

    def check_version(self, data: dict[str, Any], where: str | Path) -> None:
        """Raise VitfrostError for a newer version, and for one that is no number."""
        version = data.get("version", self.version)
        if type(version) is int and version > self.version:
            raise VitfrostError(f"{where} has {self.name} version {version}, this vitfrost reads up to {self.version}; update vitfrost")
        if type(version) is not int or version < 1:
            raise self.damaged(where, f"version is {shown(version)}; it should be {self.version}")

    def record(self, kind: type[T], data: Any, where: str | Path) -> T:
        """Plain data as a pydantic model or a dataclass. Raises VitfrostError that names `where` and the first field that is wrong."""
        from pydantic import ValidationError

        from .strict import describe

        try:
            found: T = _adapter(kind).validate_python(data)  # type: ignore[arg-type]
        except ValidationError as error:
            raise self.damaged(where, describe(error)) from error
        return found

    def load(self, kind: type[T], path: str | Path) -> T:
        """Read a file whose fields are those of a pydantic model. Raises VitfrostError as `read` and `record` do."""
        return self.record(kind, self.read(path), path)

    def damaged(self, where: str | Path, problem: object) -> VitfrostError:
        """The error for a file in which something is wrong."""
        return VitfrostError(f"{where}: {problem}" if self.mend is None else f"{where} is damaged: {problem}; {self.mend}")


@cache
def _adapter(kind: type[T]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_plain(path: str | Path, language: Language) -> Any:
    """Plain data of a file with today's spelling. Raises FileNotFoundError, and VitfrostError where it is unreadable or out of bounds."""
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES[language] + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VitfrostError(f"{path} is not readable {language}: {error}") from error
    if len(content) > MOST_BYTES[language]:
        raise VitfrostError(f"{path} is not readable {language}: it is larger than {MOST_BYTES[language] >> 20} MB")
    return parse(content, language, path)


def parse(content: str | bytes, language: Language, where: str | Path) -> Any:
    """Plain data of a text with today's spelling. Raises VitfrostError that begins with `where`."""
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        data = json.loads(text) if language == "JSON" else _yaml(text)
    except RecursionError as error:
        raise VitfrostError(f"{where} is not readable {language}: it is nested too deeply") from error
    except Exception as error:  # PyYAML raises types of its own, and others where a tag has a value without a meaning
        raise VitfrostError(f"{where} is not readable {language}: {error}") from error
    problem = _out_of_bounds(data, MOST_VALUES[language])
    if problem is not None:
        raise VitfrostError(f"{where}: {problem}")
    return american(data)


def _out_of_bounds(data: Any, most_values: int) -> str | None:
    """What no file of ours holds: too many values or too deep (a YAML alias may repeat without end), no finite number, other types."""
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(data, ())]
    count = 0
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, dict | list):
            count += len(value)
            if count > most_values:
                return "it holds too many values"
            if len(path) < DEEPEST:
                waiting.extend((item, (*path, key)) for key, item in (value.items() if isinstance(value, dict) else enumerate(value)))
                waiting.extend((key, path) for key in value if isinstance(value, dict))
                continue
        if (problem := _problem(value)) is not None:
            return f"{field_path(path) or 'it'} is {problem}"
    return None


def _problem(value: Any) -> str | None:
    if isinstance(value, dict | list):
        return "nested too deeply"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value}; it should be a finite number"
    if isinstance(value, int):
        return None if SMALLEST_NUMBER <= value <= LARGEST_NUMBER else "a number of more than 64 bits"
    if isinstance(value, str):
        if "\0" in value:
            return f"{shown(value)}, text with a null character, which no name of a file has"
        halves = not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)
        return f"{shown(value)}, half of a pair of UTF-16" if halves else None
    return None if value is None else f"of the type {type(value).__name__}, which no file of vitfrost has; write text in quotes"


def _yaml(text: str) -> Any:
    import yaml

    depth = 0
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for count, event in enumerate(yaml.parse(text, Loader=base)):  # without recursion
        depth += {"SequenceStart": 1, "MappingStart": 1, "SequenceEnd": -1, "MappingEnd": -1}.get(type(event).__name__[:-5], 0)
        if depth > DEEPEST:
            raise RecursionError
        if count > 3 * MOST_VALUES["YAML"]:
            raise ValueError("it holds too many values")
    return yaml.load(text, Loader=_loader(base))


@cache
def _loader(base: Any) -> Any:
    import yaml

    class Loader(base):  # type: ignore[misc]
        """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    return Loader
