"""The templates of all pages."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from .. import __version__
from . import summary


def fill(template: str, **values: Any) -> str:
    """A page as text; `values` are what its template names."""
    environment = Environment(
        loader=FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["operations"] = summary.operations
    return environment.get_template(template).render(version=__version__, **values)
