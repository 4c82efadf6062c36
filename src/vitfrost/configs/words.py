"""Configurations as words of a command line, and words as values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from ..errors import VitfrostError
from .base import Option, idle_fields
from .flat import FREEZE, Method, MethodOptions, flat_of, flat_options


def spelled(name: str) -> str:
    """A flag as it is typed."""
    return f"--{name}"


_PYTHON = re.compile(r"\b([A-Z]\w+)(?:\.(\w+)|\((\w+)=((?:\([^()]*\)|[^()])*)\))")


def as_flags(text: str, configs: Sequence[type]) -> str:
    """A message in which Python's names of options, such as Search.over and Compact(init="weights"), are flags."""
    known = {config.__name__: {option.field: option for option in MethodOptions.of(config).options.values()} for config in configs}

    def flag(match: re.Match[str]) -> str:
        name, field, set_field, value = match.groups()
        option = known.get(name, {}).get(field or set_field)
        if option is None:
            return match[0]
        words = [] if value in (None, "True") else re.findall(r"[^\s\"',()]+", value)
        return " ".join([spelled(option.name), *words])

    return _PYTHON.sub(flag, text)


def word_count(option: Option) -> int:
    """How many words a value has: several for a tuple of fixed length."""
    for part in _parts(option.type):
        if get_origin(part) is tuple and Ellipsis not in get_args(part):
            return len(get_args(part))
    return 1


def _parts(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Annotated:
        return _parts(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return tuple(each for part in get_args(kind) for each in _parts(part))
    return (kind,)


def metavar(option: Option) -> str:
    """What stands for the value in help and tables."""
    if option.flag.metavar is not None:
        return option.flag.metavar
    if option.flag.form == "yes-no":
        return "{yes,no}"
    if option.choices is not None:
        word = f"{{{','.join(map(str, option.choices))}}}"
        return f"{word} ..." if option.flag.form == "words" else f"{word},..." if option.flag.form == "commas" else word
    return "INT" if int in _kinds(option.type) else "FLOAT" if float in _kinds(option.type) else "NAME"


def _kinds(kind: Any) -> set[type]:
    found: set[type] = set()
    for part in _parts(kind):
        found |= set().union(*(_kinds(each) for each in get_args(part) if each is not Ellipsis)) if get_origin(part) is tuple else {part}
    return {each for each in found if isinstance(each, type)}


def read(option: Option, words: list[str]) -> Any:
    """A value out of the words behind a flag. Raises ValueError with what is allowed."""
    form = option.flag.form
    if form == "yes-no":
        return _choice(words[0], ("yes", "no")) == "yes"
    if form == "words":
        return tuple(_scalar(option, word) for word in words)
    if form == "commas":
        values = tuple(_scalar(option, word.strip()) for word in words[0].split(",") if word.strip())
        if not values:
            raise ValueError(f"'{words[0]}' holds nothing; give values with commas between them")
        return values
    if form == "sizes":
        try:
            return tuple(read_size(word.strip(), f"--{option.name}") for word in words[0].split(",") if word.strip())
        except VitfrostError as error:
            raise ValueError(str(error)) from error
    if len(words) > 1:
        return tuple(_scalar(option, word) for word in words)
    return _scalar(option, words[0])


def read_size(word: str, flag: str = "--image-size") -> int | tuple[int, int]:
    """Pixels as the command line has them: 224, or 256x128 for height and width. Raises VitfrostError for anything else."""
    sides = [int(side) for side in word.lower().split("x") if re.fullmatch(r"-?[0-9]{1,6}", side)]
    if len(sides) != word.lower().count("x") + 1 or len(sides) > 2:
        raise VitfrostError(f"{flag} is '{word}'; give pixels, such as 224, or height x width, such as 256x128")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _scalar(option: Option, word: str) -> Any:
    kinds = _kinds(option.type)
    if option.choices is not None:
        by_word = {str(choice): choice for choice in option.choices}
        if word in by_word:
            return by_word[word]
        if float not in kinds:
            _choice(word, tuple(by_word))
    for kind, what in ((int, "a whole number"), (float, "a number")):
        if kind in kinds:
            try:
                return kind(word)
            except ValueError as error:
                if kind is float or float not in kinds:
                    raise ValueError(f"'{word}' is not {what}") from error
    return word


def _choice(word: str, allowed: Sequence[str]) -> str:
    if word not in allowed:
        raise ValueError(f"'{word}' is none of {', '.join(allowed)}")
    return word


def default_text(option: Option) -> str | None:
    """The default as a word of the command line; None where there is none, or it is what the help says."""
    if option.flag.default is not None:
        return option.flag.default
    if option.field == getattr(option.config, "SWITCH", None) and option.help != FREEZE.help:
        return None  # without its flag nothing of the configuration is done
    if option.default is None or (isinstance(option.default, bool) and option.flag.form != "yes-no"):
        return None
    if repr(option.default).startswith("Pydantic"):
        return None
    words = words_of(option, option.default)[1:]
    return " ".join(words) or "none"


def words_of(option: Option, value: Any) -> list[str]:
    """The words that give a value on the command line."""
    flag = spelled(option.name)
    if option.flag.form == "yes-no":
        return [flag, "yes" if value else "no"]
    if isinstance(value, bool):
        return [flag] if value != option.default else []
    if option.flag.form == "commas":
        return [flag, ",".join(map(str, value))]
    if option.flag.form == "sizes":
        return [flag, ",".join(size_word(size) for size in value)]
    if option.field == "image_size":
        return [flag, size_word(value)]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def size_word(size: int | tuple[int, int]) -> str:
    """The inverse of `read_size`."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def config_words(config: Any, always: Sequence[str] = ()) -> list[str]:
    """The words that make a configuration again: what differs from the defaults and has an effect, and the fields of `always`."""
    idle, words = idle_fields(config), []
    for option in MethodOptions.of(type(config)).options.values():
        value = getattr(config, option.field)
        if value is not None and option.field not in idle and (value != option.default or option.field in always):
            words += words_of(option, value)
    return words


def method_words(methods: tuple[Method, ...]) -> list[list[str]]:
    """The words that make the methods of a plan again, in one list for each group of flags."""
    flat = flat_of(methods)
    options = flat_options()
    groups: dict[type, list[str]] = {}
    for name in options:
        if name in flat:
            groups.setdefault(options[name].config, []).extend(words_of(options[name], flat[name]))
    return list(groups.values())
