"""`vitfrost ...`, or a script, in processes of their own that start in milliseconds: forked from one that has imported everything and run
nothing.

Such a process is like any other: it has its own memory and descriptors, can be killed, and ends with a status. What an interpreter does
before it calls anything is left out (test_cli.py starts whole ones).
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import socket
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, TextIO

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["vitfrost.cli", "vitfrost.runs.run", "vitfrost.timing.bench", "vitfrost.training.train", "vitfrost.statistics.calibrate"]
)


class Started:
    """A command line that runs, much like subprocess.Popen with pipes for text.

    `stdout`: a file to write to instead of a pipe; `environment`: variables to set; `file_limit`: bytes that no file may grow beyond;
    `script`: a Python file that gets the words instead of `vitfrost`.
    """

    def __init__(
        self,
        *words: object,
        stdout: IO[Any] | None = None,
        environment: dict[str, str] | None = None,
        file_limit: int | None = None,
        script: Path | None = None,
    ):
        out_reader, out = CONTEXT.Pipe(duplex=False) if stdout is None else (None, Connection(os.dup(stdout.fileno()), readable=False))
        err_reader, err = CONTEXT.Pipe(duplex=False)
        given = {
            "words": [str(word) for word in words], "out": out, "err": err, "environment": environment or {}, "file_limit": file_limit,
            "script": None if script is None else str(script),
        }  # fmt: skip
        self._process = CONTEXT.Process(target=runpy.run_path, args=(__file__, given, "__vitfrost__"), daemon=True)
        self._process.start()
        out.close()
        err.close()
        self.pid = self._process.pid
        self.stdout = None if out_reader is None else _text(out_reader)
        self.stderr = _text(err_reader)

    @property
    def returncode(self) -> int | None:
        """The status, negative where a signal ended the process; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same, as Popen has it."""
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def wait(self) -> int | None:
        """The status, once it has ended."""
        self._process.join()
        return self.returncode

    def communicate(self, timeout: float = 250) -> tuple[str, str]:
        """What it said and complained, once it has ended; it is killed after `timeout` seconds."""
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(self.stdout.read() if self.stdout is not None else ""))
        reader.start()
        guard = threading.Timer(timeout, self.kill)
        guard.start()
        complaint = self.stderr.read()
        reader.join()
        self.wait()
        guard.cancel()
        return said[0], complaint


def torchrun(*words: object, processes: int = 2) -> list[Started]:
    """The same command line in several processes that know of each other, as under torchrun (without what else it does)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Started(*words, environment={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]


def _text(reader: Connection) -> TextIO:
    """A pipe's end as a text file of its own."""
    file = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
    reader.close()
    return file


def _run(
    words: list[str], out: Connection, err: Connection, environment: dict[str, str], file_limit: int | None, script: str | None
) -> None:
    """What the new process does."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.stderr.reconfigure(line_buffering=True)
    os.environ.update(environment)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    if script is not None:
        sys.argv = [script, *words]
        runpy.run_path(script, run_name="__main__")
        return
    from vitfrost.cli import main

    main(words)


if __name__ == "__vitfrost__":
    _run(words, out, err, environment, file_limit, script)  # given by run_path
