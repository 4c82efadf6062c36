"""The templates of all pages."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from .. import __version__
from . import summary

PACKAGE = "vitfrost.reporting"


def fill(template: str, package: str = PACKAGE, **values: Any) -> str:
    """A page as text; `values` are what its template names. Another package's templates may build on those of this one."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, "") for name in dict.fromkeys((package, PACKAGE))]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["operations"] = summary.operations
    return environment.get_template(template).render(version=__version__, **values)
