"""The base of configuration classes: frozen, checked when they are made, described by the docstrings of their fields."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ArgsKwargs

from ..errors import VitfrostError
from ..strict import Positive, describe

C = TypeVar("C")

Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Seed = Annotated[int, Field(strict=True, ge=0)]
Nonnegative = Annotated[float, Field(ge=0)]
Images = Annotated[int, Field(strict=True, ge=1)]

__all__ = ["Flag", "Images", "Nonnegative", "Option", "Positive", "Seed", "Share", "config", "idle_fields", "options_of", "refuse_idle"]


@dataclass(frozen=True)
class Flag:
    """How a field is given on the command line.

    name: of the flag, if not the field's. metavar: what stands for the value in the help. choices: allowed words that a registry knows.
    form: "value"; "words" (several, with spaces); "commas" (several, with commas); "sizes" (likewise, of pixels); "yes-no"; "off" (a switch
    that turns a field off);
    "none" (not on the command line). default: what the help says of it, where it depends on other options.
    """

    name: str | None = None
    metavar: str | None = None
    choices: Callable[[], Sequence[str]] | None = None
    form: str = "value"
    default: str | None = None


PYTHON_ONLY = Flag(form="none")


@dataclass(frozen=True)
class Option:
    """One field of a configuration class: its type, default, help and flag."""

    config: type
    field: str
    type: Any
    default: Any
    help: str
    flag: Flag
    checks: tuple[Any, ...] = ()

    @property
    def checked_type(self) -> Any:
        """The type with its checks, for a field of another class."""
        return Annotated[(self.type, *self.checks)] if self.checks else self.type

    @property
    def name(self) -> str:
        """The flag's name without dashes in front."""
        return self.flag.name or self.field.replace("_", "-")

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """Allowed words or numbers, where they are few."""
        return tuple(self.flag.choices()) if self.flag.choices is not None else _literals(self.type)


def _literals(kind: Any) -> tuple[Any, ...] | None:
    from types import UnionType
    from typing import Literal, Union

    if get_origin(kind) is Annotated:
        return _literals(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, UnionType, tuple):
        return tuple(choice for part in get_args(kind) for choice in _literals(part) or ()) or None
    return None


@dataclass_transform(frozen_default=True)
def config(cls: type[C]) -> type[C]:
    """Make a class a configuration: a frozen dataclass whose fields are checked when it is made and when it is read from a file.

    The docstring under a field is its help. Raises VitfrostError, one line with field, value and what is allowed, for bad values.
    """
    own: Any = cls
    own.only_known_fields = model_validator(mode="before")(cast(Any, classmethod(_only_known_fields)))
    settings = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    made: Any = pydantic_dataclass(frozen=True, config=settings)(own)
    checked = made.__init__

    @functools.wraps(checked)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        names = list(made.__pydantic_fields__)
        by_name = dict(zip(names, args, strict=False))
        if len(args) > len(names) or by_name.keys() & fields.keys():
            raise TypeError(f"{made.__name__} takes each of {', '.join(names)} once")
        try:
            checked(self, **by_name, **fields)
        except ValidationError as error:
            raise VitfrostError(_named(made, describe(error))) from error

    made.__init__ = init
    return cast("type[C]", made)


def _only_known_fields(cls: Any, data: Any) -> Any:
    if isinstance(data, dict) and hasattr(cls, "of_file"):
        data = cls.of_file(data)
    given = (data.kwargs or {}) if isinstance(data, ArgsKwargs) else data if isinstance(data, dict) else {}
    aliases = {alias for info in cls.__pydantic_fields__.values() for alias in getattr(info.validation_alias, "choices", ())}
    for key in given:
        if key not in cls.__pydantic_fields__ and key not in aliases:
            raise ValueError(f"{key} is not known here; the fields are {', '.join(cls.__pydantic_fields__)}")
    return data


def _named(cls: type, problem: str) -> str:
    """The problem with the class in front of the field that it begins with."""
    field = problem.partition(" ")[0].partition("[")[0]
    known = field in cls.__pydantic_fields__ or " is not known here" in problem  # type: ignore[attr-defined]
    return f"{cls.__name__}{'.' if known else ': '}{problem}"


def options_of(cls: type) -> list[Option]:
    """The fields of a configuration class, in order."""
    made = []
    for name, info in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]
        flag = next((each for each in info.metadata if isinstance(each, Flag)), Flag())
        text = " ".join((info.description or "").split())
        made.append(Option(cls, name, info.annotation, info.default, text, flag, tuple(info.metadata)))
    return made


def plain(config: Any) -> dict[str, Any]:
    """The fields as plain data, under the keys of plan and recipe files."""
    return cast("dict[str, Any]", TypeAdapter(type(config)).dump_python(config, mode="json", by_alias=True))


def parsed(cls: type[C], data: Any, names: Mapping[str, str] | None = None) -> C:
    """A configuration out of plain data. Raises VitfrostError that calls the fields by a caller's `names`."""
    try:
        return TypeAdapter(cls).validate_python(data)
    except ValidationError as error:
        if names is None:
            raise VitfrostError(_named(cls, describe(error))) from error
        text = describe(error, _ByField(names))
        if not error.errors(include_url=False)[0]["loc"]:  # of several fields, which the text names
            text = re.sub(rf"\b({'|'.join(names)})\b", lambda field: names[field[0]], text)
        raise VitfrostError(text) from error


class _ByField(dict[str, str]):
    """Names of fields, also of what stands in them: batch[0] is --batch[0]."""

    def get(self, path: str, default: Any = None) -> Any:
        field, bracket, rest = path.partition("[")
        return f"{super().get(field, field)}{bracket}{rest}"


def idle_fields(config: Any) -> dict[str, str]:
    """Fields that have no effect with the values of others, and for each the field whose value makes it so."""
    rules: Callable[[], dict[str, str]] | None = getattr(config, "idle", None)
    return {} if rules is None else rules()


def idle_seed(by: str | None) -> dict[str, str]:
    """For `idle`: a seed is that of the criterion `random` alone."""
    return {} if by == "random" else {"seed": "by"}


def expect(kind: type, value: Any, what: str) -> None:
    """Raise VitfrostError for an argument that is no configuration of this class."""
    if not isinstance(value, kind):
        raise VitfrostError(f"{what} is a {type(value).__name__}; give vitfrost.{kind.__name__}(...)")


def refuse_idle(config: Any) -> None:
    """Raise VitfrostError naming the first field that was changed though it has no effect."""
    defaults = {option.field: option.default for option in options_of(type(config))}
    for field, other in idle_fields(config).items():
        if getattr(config, field) != defaults[field]:
            name = type(config).__name__
            raise VitfrostError(f"{name}.{field} has no effect where {other} is {getattr(config, other)}; leave it out")
