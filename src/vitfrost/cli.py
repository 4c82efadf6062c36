"""The command line: one subcommand per verb. Everything heavy is imported when a verb starts, so `--help` is instant."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import tyro

from . import __version__
from .errors import VitfrostError
from .progress import doing, messages_on_stderr
from .spelling import american_words
from .vit import compat

MODULES = {
    "demo": "runs", "inspect": "models", "calibrate": "calibrate", "plan": "plan", "search": "plan", "compress": "compress",
    "resize": "models", "evaluate": "evaluate", "export": "export", "predict": "predict", "bench": "bench", "report": "runs",
    "run": "runs", "train": "runs",
}  # fmt: skip
"""The commands in the order of the help, and the module of each."""


def command(name: str) -> Callable[..., None]:
    """The function behind a command."""
    found: Callable[..., None] = getattr(import_module(f".commands.{MODULES[name]}", __package__), name)
    return found


DESCRIPTION = "Make Vision Transformers smaller and faster by using what their attention maps repeat."


def _deferred(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    from .commands.flags import deferred

    return deferred(verb)


def _described(name: str) -> Callable[[], None]:
    """Something with the help of a command, which is read and not imported."""

    def described() -> None:
        raise AssertionError(f"{name} was not loaded")

    source = Path(__file__).with_name("commands") / f"{MODULES[name]}.py"
    functions = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == name]
    described.__doc__ = ast.get_docstring(functions[0])
    return described


def _parse(arguments: list[str] | None, verbs: Sequence[Callable[..., None]] | None, program: str, description: str) -> Callable[[], None]:
    """Turn the command line into something to do; a mistake in it ends in one line."""
    complaint = io.StringIO()
    words = american_words(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        return lambda: print(f"{program} {__version__}")
    named = next((word for word in words if not word.startswith("-")), None)
    if verbs is None:
        commands = {name: _deferred(command(name)) if name == named else _described(name) for name in MODULES}
    else:
        commands = {verb.__name__: _deferred(verb) for verb in verbs}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog=program, args=words, config=(tyro.conf.FlagCreatePairsOff,), description=description,
            )  # fmt: skip
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise VitfrostError(f"{_without_frame(complaint.getvalue())} (see {program} --help or {program} COMMAND --help)") from error


def _without_frame(complaint: str) -> str:
    """The words of a framed complaint of the parser, less its title and the sections that only repeat the help."""
    _title, *lines = complaint.strip().splitlines() or [""]
    sections: list[list[str]] = [[]]
    for line in (line.strip("│╰╯ ") for line in lines):
        if line.strip("─-"):
            sections[-1].append(line)
        else:
            sections.append([])
    said = [" ".join(section) for section in sections if section and "helptext" not in section[0]]
    return "; ".join(said) or "the command line is not understood"


def main(
    arguments: list[str] | None = None,
    *,
    verbs: Sequence[Callable[..., None]] | None = None,
    program: str = "vitfrost",
    description: str = DESCRIPTION,
) -> None:
    """Parse the command line and run a verb; bad input ends in one line on stderr and exit status 2."""
    # OpenMP threads that spin while they wait take the cores that decode images, and slow a busy machine several times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    compat.own_process |= arguments is None
    act: Callable[[], None] | None = None
    try:
        with messages_on_stderr():
            act = _parse(arguments, verbs, program, description)
            doing(_name(act) or program)
            act()
        sys.stdout.flush()
    except VitfrostError as error:
        sys.exit(_fail(_in_flags(str(error), None if act is None or verbs is not None else _name(act))))
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was left")
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()
        sys.exit(0)
    except OSError as error:
        _discard_output()
        sys.exit(_fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"))


def _name(act: Callable[[], None]) -> str | None:
    """The command that is to be done."""
    return getattr(getattr(act, "func", None), "__name__", None)


def _in_flags(text: str, command: str | None) -> str:
    """A message with options as they are typed; those of a recipe's parts are called by their fields."""
    from . import configs
    from .configs.words import as_flags

    if command is None or command in ("run", "train"):
        return as_flags(text, (configs.Run, configs.Train))
    return as_flags(text, [getattr(configs, name) for name in configs.__all__ if name[0].isupper()])


def _discard_output() -> None:
    """Leave nothing in stdout's buffer that the interpreter would fail to write once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print(f"vitfrost: {message}", file=sys.stderr)
    return 2
