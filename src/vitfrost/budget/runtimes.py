"""The runtimes that a latency can be asked for on: a runtime and its precision in one word, such as openvino-int8."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import get_args

from ..configs.verbs import SearchRuntime
from ..errors import VitfrostError
from ..evaluation.results import processor_name
from ..runtime.runtimes import OWN_BITS, RUNTIMES, cores, how_to_install
from ..timing.sessions import runtime_version
from .latency_record import LatencySetup

NAMES = get_args(SearchRuntime)


@dataclass(frozen=True)
class Target:
    """A runtime ("onnxruntime", "openvino", "torch") at a precision, with so many threads."""

    runtime: str
    precision: str
    threads: int

    @property
    def name(self) -> str:
        """ "openvino-int8"; of our own engine, which knows integers alone, "native"."""
        return self.runtime if self.runtime in OWN_BITS else f"{self.runtime}-{self.precision}"

    @property
    def packages(self) -> tuple[str, ...]:
        """What exporting to it and running there needs beside torch."""
        return RUNTIMES[self.runtime].needs(self.precision) if self.runtime in RUNTIMES else ()

    def setup(self) -> LatencySetup:
        """What its times depend on beside the model."""
        versions = [runtime_version(self.runtime), *(f"{name} {version(name)}" for name in self.packages if name == "nncf")]
        return LatencySetup(runtime=self.name, threads=self.threads, versions=", ".join(versions), cpu=processor_name())


def find_target(name: str, threads: int) -> Target:
    """The runtime of that name. Raises VitfrostError for another name, one that is not installed, and more threads than cores."""
    if name not in NAMES:
        raise VitfrostError(f"there is no runtime '{name}' to search for; give one of {', '.join(NAMES)}")
    runtime, _, precision = name.partition("-")
    found = Target(runtime, precision or "int8", threads)
    absent = [package for package in found.packages if find_spec(package) is None]
    if absent:
        command = how_to_install(absent[0]) or "pip install 'vitfrost[export]'"
        raise VitfrostError(f"{name} needs {absent[0]}, which is not installed; {command}")
    if not 1 <= threads <= cores():
        raise VitfrostError(f"threads is {threads}; give 1 to {cores()}, the cores of this machine")
    return found
