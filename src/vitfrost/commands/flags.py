"""Command lines out of configuration classes: one group of flags per class, and only what was given comes out of them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from tyro.conf import OmitArgPrefixes, arg
from tyro.constructors import PrimitiveConstructorSpec

from ..configs.base import Option
from ..configs.flat import MethodOptions, build
from ..configs.words import default_text, metavar, read, spelled, word_count
from ..errors import VitfrostError

C = TypeVar("C")


@dataclass(frozen=True)
class Group:
    """Flags under one heading of the help."""

    title: str
    options: tuple[Option, ...]

    @classmethod
    def of(cls, config: Any, without: Sequence[str] = ()) -> Group:
        """Those of a configuration class, less the fields that a command does not take."""
        options = (option for option in MethodOptions.of(config).options.values() if option.field not in without)
        return cls(config.TITLE, tuple(options))


@dataclass(frozen=True)
class Given:
    """What was given on a command line, by flag without dashes."""

    values: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def config(self, cls: type[C]) -> C:
        """A configuration. Raises VitfrostError that names the flag, for a bad value and for one without effect."""
        made: C = build(MethodOptions.of(cls), self.values, spelled)
        return made

    def optional(self, cls: type[C]) -> C | None:
        """A configuration if the flag that turns it on was given. Raises VitfrostError for others without that one."""
        about = MethodOptions.of(cls)
        if about.switch in self.values:
            return self.config(cls)
        self.refuse(about.options, f"goes with {spelled(str(about.switch))}; give that too, or leave it out")
        return None

    def refuse(self, names: Iterable[str], why: str) -> None:
        """Raise VitfrostError for the first of these flags that was given."""
        for name in names:
            if name in self.values:
                raise VitfrostError(f"{spelled(name)} {why}")


def takes(*groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of the groups; it gets what was given of them as its argument `given`."""

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        made = {re.sub(r"\W", "_", group.title): _dataclass_of(group) for group in groups}
        signature = inspect.signature(verb, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "given"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=flags(), annotation=Annotated[flags, OmitArgPrefixes])
            for name, flags in made.items()
        ]

        @functools.wraps(verb)
        def command(*args: Any, **named: Any) -> None:
            values: dict[str, Any] = {}
            for name, group in zip(made, groups, strict=True):
                flags = named.pop(name)
                shown = {option.name: getattr(flags, option.name.replace("-", "_")) for option in group.options}
                values |= {flag: value for flag, value in shown.items() if value is not None}
            verb(*args, given=Given(values), **named)

        command.__signature__ = signature.replace(parameters=own + added)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in own + added} | {"return": None}
        return command

    return decorate


def _dataclass_of(group: Group) -> type:
    fields = [(option.name.replace("-", "_"), _annotation(option), field(default=None)) for option in group.options]
    made = make_dataclass("Flags", fields)
    made.__doc__ = ""
    return made


def _annotation(option: Option) -> Any:
    """Optional, so that what was not given is None; the help tells the default."""
    default = default_text(option)
    hint = "" if default is None else f"(default: {default})"
    about = arg(name=option.name, prefix_name=False, help=option.help, help_behavior_hint=hint)
    if option.type is bool and option.flag.form != "yes-no":
        value = option.flag.form != "off"
        spec: Any = PrimitiveConstructorSpec(
            nargs=0, metavar="", instance_from_str=lambda _: value, is_instance=lambda _: True, str_from_instance=lambda _: []
        )
        return Annotated[Any, spec, about]
    several = option.flag.form == "words"
    spec = PrimitiveConstructorSpec(
        nargs="*" if several else word_count(option),
        metavar=metavar(option),
        instance_from_str=functools.partial(read, option),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [] if value is None else [str(value)],
    )
    return Annotated[Any, spec, about]


def deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same flags and help, but called it only returns what is to be done: parsing and doing stay apart.

    Optional arguments are shown as those of groups are: what they take, and no default where it is nothing.
    """
    parameters = [
        each.replace(annotation=_optional(each.annotation)) if each.default in (None, False, (), each.empty) else each
        for each in inspect.signature(command, eval_str=True).parameters.values()
    ]

    @functools.wraps(command)
    def shown(*args: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **named)

    del shown.__wrapped__  # type: ignore[attr-defined]  # the parser would read the command's own annotations
    shown.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    shown.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    return shown


def _optional(annotation: Any) -> Any:
    """An annotation such as `Path | None` with a name for the value, unless it has one, and without the default's; of what is required,
    such as `Path`, itself."""
    kind, *about = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    named = any(getattr(each, "metavar", None) for each in about)
    kinds = get_args(kind)
    if annotation is kind and not kinds:
        return Annotated[annotation, arg(help_behavior_hint="")] if kind is bool else annotation
    word = None if named else "PATH" if Path in kinds else "NAME" if str in kinds else "INT" if int in kinds else None
    return Annotated[(kind, arg(metavar=word, help_behavior_hint=""), *about)]  # what the command itself says comes after, and holds
