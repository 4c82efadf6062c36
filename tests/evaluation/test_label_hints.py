"""Where a classifier is worse than chance, its labels may be at fault."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import vitfrost
from vitfrost.evaluation.label_hints import label_hint

from ..conftest import write_pictures


@pytest.mark.parametrize(
    ("offsets", "classes", "hint"),
    [
        ([-1] * 70 + [3] * 30, 1000, "70% .* one too high throughout; labels count from 0"),
        ([1] * 30 + [0] * 5 + [4] * 65, 1000, "one too low"),
        ([7] * 50, 1000, "another order"),
        ([3, -2, 1, 5, 6, -3] * 10 + [0] * 2, 10, "another order"),
    ],
)
def test_shifted_and_permuted_labels_are_hinted_at(offsets: list[int], classes: int, hint: str) -> None:
    assert re.search(hint, label_hint(np.array(offsets), classes) or "")


@pytest.mark.parametrize(("offsets", "classes"), [([0] * 60 + [1] * 40, 10), ([0, 1, -1] * 20, 1000), ([5] * 9, 1000), ([0, 1] * 9, 2)])
def test_a_classifier_better_than_chance_is_left_alone(offsets: list[int], classes: int) -> None:
    assert label_hint(np.array(offsets), classes) is None


def test_evaluate_gives_the_hint(messages, tmp_path: Path) -> None:
    """Against its own predictions, shifted by one, the model gets nothing right."""
    folder = write_pictures(tmp_path / "images", 12)
    model = vitfrost.Model.open("vitfrost_digits")
    from vitfrost.images.batches import take_usable
    from vitfrost.images.preprocess import Preprocess
    from vitfrost.images.source import open_images

    seen = model(take_usable(open_images(folder), Preprocess(model.preprocessing), 12).pixels).argmax(1).tolist()
    rows = [f"{index:04d}.png,{(found + 1) % 10}" for index, found in enumerate(seen)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert vitfrost.evaluate(model, folder, progress=False).top1 == 0
    assert "labels" in messages()
