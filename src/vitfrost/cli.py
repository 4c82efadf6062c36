"""The command line: one subcommand per verb. Everything heavy is imported when a verb starts, so `--help` is instant."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from .commands.bench import bench
from .commands.calibrate import calibrate
from .commands.compress import compress
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.inspect import inspect
from .commands.plan import plan
from .commands.predict import predict
from .commands.report import report
from .commands.resize import resize
from .commands.run import run
from .commands.train import train
from .errors import VitfrostError
from .progress import messages_on_stderr
from .spelling import american_words


def _deferred(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same signature and help, but called it only returns what is to be done: parsing and doing stay apart."""

    @functools.wraps(verb)
    def collect(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(verb, *args, **options)

    return collect


VERBS = (demo, inspect, calibrate, plan, compress, resize, evaluate, export, predict, bench, report, run, train)
DESCRIPTION = "Make Vision Transformers smaller and faster by using what their attention maps repeat."


def _parse(arguments: list[str] | None, verbs: Sequence[Callable[..., None]], program: str, description: str) -> Callable[[], None]:
    """Turn the command line into something to do; a mistake in it ends in one line."""
    complaint = io.StringIO()
    words = american_words(sys.argv[1:] if arguments is None else arguments)
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                {verb.__name__: _deferred(verb) for verb in verbs}, prog=program, args=words, config=(tyro.conf.FlagCreatePairsOff,),
                description=description,
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
    verbs: Sequence[Callable[..., None]] = VERBS,
    program: str = "vitfrost",
    description: str = DESCRIPTION,
) -> None:
    """Parse the command line and run a verb; bad input ends in one line on stderr and exit status 2."""
    # OpenMP threads that spin while they wait take the cores that decode images, and slow a busy machine several times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        with messages_on_stderr():
            _parse(arguments, verbs, program, description)()
        sys.stdout.flush()
    except VitfrostError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was left")
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()
        sys.exit(0)
    except OSError as error:
        _discard_output()
        sys.exit(_fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"))


def _discard_output() -> None:
    """Leave nothing in stdout's buffer that the interpreter would fail to write once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print(f"vitfrost: {message}", file=sys.stderr)
    return 2
