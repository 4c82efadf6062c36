"""What was measured on one variant, one small file each, so that nothing measured is lost and everything can be paired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..errors import VitfrostError
from ..evaluation.results import Row
from ..files import write_json
from ..records import Format
from .recipe import load_study
from .variants import Variant, expand, variant_from

FORMAT = Format("an outcome of a grid", "vitfrost outcome", mend="remove it and resume the run")
OUTCOMES = "outcomes"


@dataclass(frozen=True, eq=False)
class Outcome:
    """One variant's result row and which images it had right (None without labels); `variant` is None for the original.

    `context` is a hash of what the variant does not say: model, images, draws. `frozen` counts frozen attention weights out of
    `entries`.
    """

    variant: Variant | None
    context: str
    row: Row
    correct: Bool[np.ndarray, " images"] | None
    frozen: int
    entries: int

    @property
    def share(self) -> float:
        """The share of attention weights that is frozen."""
        return self.frozen / max(self.entries, 1)

    def save(self, folder: Path) -> None:
        """Write it into the folder of outcomes."""
        data: dict[str, Any] = {
            "kind": FORMAT.kind,
            "version": FORMAT.version,
            "context": self.context,
            "variant": None if self.variant is None else self.variant.as_dict(),
            "row": self.row.model_dump(mode="json"),
            "correct": None if self.correct is None else np.packbits(self.correct).tobytes().hex(),
            "frozen": self.frozen,
            "entries": self.entries,
        }
        write_json(outcome_path(folder, self.variant), data)


def outcome_path(folder: Path, variant: Variant | None) -> Path:
    """Where the outcome of a variant (None: the original) lies."""
    return folder / f"{'original' if variant is None else variant.key}.json"


def load_outcome(path: Path) -> Outcome:
    """Read one outcome. Raises VitfrostError for a file that is missing, damaged or of another kind."""
    data = FORMAT.read(path)
    try:
        row = Row.model_validate(data["row"])
        variant = None if data["variant"] is None else variant_from(data["variant"])
        correct = None
        if data["correct"] is not None:
            packed = np.frombuffer(bytes.fromhex(data["correct"]), dtype=np.uint8)
            if len(packed) != (row.images + 7) // 8:
                raise ValueError(f"it has {len(packed)} bytes of outcomes for {row.images} images")
            correct = np.unpackbits(packed, count=row.images).astype(bool)
        return Outcome(variant, str(data["context"]), row, correct, int(data["frozen"]), int(data["entries"]))
    except (KeyError, TypeError, ValueError, VitfrostError) as error:
        raise FORMAT.damaged(path, str(error).splitlines()[0]) from error


def load_outcomes(folder: Path, variants: Iterable[Variant]) -> list[Outcome]:
    """The original's outcome and those of the variants, in their order; those that are not measured yet are left out.

    A variant keeps the block's name of the recipe, whatever name it was measured under.
    """
    paths = [(None, outcome_path(folder, None)), *((variant, outcome_path(folder, variant)) for variant in variants)]
    found = []
    for variant, path in paths:
        if path.is_file():
            outcome = load_outcome(path)
            found.append(Outcome(variant, outcome.context, outcome.row, outcome.correct, outcome.frozen, outcome.entries))
    return found


def grid_outcomes(run: str | Path) -> list[Outcome]:
    """What has been measured in a grid's folder, in the order of its recipe. Raises VitfrostError for a folder without a grid."""
    return load_outcomes(Path(run) / OUTCOMES, expand(load_study(Path(run) / "recipe.yaml")))
