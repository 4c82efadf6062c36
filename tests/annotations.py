"""Annotations are checked under pytest: types by beartype, and shapes by jaxtyping, which costs 40 microseconds a call. Of every function
the first calls in every test are checked, so that loops of thousands run free.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from types import FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping

CHECKED_CALLS = 10


class RunningTest:
    """The test that runs."""

    number = 0


def checked(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """`jaxtyping.jaxtyped`, but for functions within functions, which would be decorated anew in every call, and those without shapes."""

    def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
        with_shapes = jaxtyped(typechecker=typechecker)

        def check(made: Any) -> Any:
            if "<locals>" in getattr(made, "__qualname__", ""):
                return made
            if not inspect.isfunction(made):
                return with_shapes(made)
            checking = with_shapes(made) if has_shapes(made) else with_types(made, typechecker)
            return made if checking is None else sparing(checking, made)

        return check

    return decorator


def has_shapes(function: Any) -> bool:
    """Whether an annotation names a type of jaxtyping, or something that is made of them."""
    names = {name for annotation in function.__annotations__.values() for name in re.findall(r"\w+", str(annotation))}
    return any(_is_array(function.__globals__.get(name)) for name in names)


def _is_array(kind: Any) -> bool:
    if inspect.isclass(kind) and issubclass(kind, jaxtyping.AbstractArray | jaxtyping.AbstractDtype):
        return True
    return any(_is_array(part) for part in get_args(kind))


def resolved(function: Any) -> dict[str, Any]:
    """The types that annotations stand for; Any for those that name what is imported for type checkers only, or is defined further down."""
    found: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        single = SimpleNamespace(__annotations__={name: annotation})
        try:
            found |= get_type_hints(single, function.__globals__, include_extras=True)
        except Exception:  # a NameError, mostly
            found[name] = Any
    return found


def with_types(function: Any, typechecker: Any) -> Any:
    """The function with its types checked, as with jaxtyping those of names that are there already; None where there are none."""
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copied.__annotations__ = {name: kind for name, kind in resolved(function).items() if kind is not Any}
    if not copied.__annotations__:
        return None
    copied.__kwdefaults__, copied.__module__, copied.__qualname__ = function.__kwdefaults__, function.__module__, function.__qualname__
    return typechecker(copied)


def sparing(checking: Any, function: Any) -> Any:
    """The function with the first of its calls in a test checked, unless checks are switched off."""
    test, calls = RunningTest.number, 0

    @wraps(function)
    def either(*given: Any, **named: Any) -> Any:
        nonlocal test, calls
        if jaxtyping.config.jaxtyping_disable:
            return function(*given, **named)
        test, calls = RunningTest.number, 1 if test != RunningTest.number else calls + 1
        return (checking if calls <= CHECKED_CALLS else function)(*given, **named)

    return either
