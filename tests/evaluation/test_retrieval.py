"""Nearest neighbors, prototypes and votes against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.evaluation import retrieval
from vitfrost.evaluation.intervals import mean_likeness
from vitfrost.evaluation.retrieval import by_neighbors, by_prototype, has_company, nearest, unit_rows


def drawn(seed: int, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(images, 6))), rng.integers(0, classes, images)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_without_a_gallery_every_image_is_left_out_for_itself(seed: int, images: int, classes: int) -> None:
    vectors, labels = drawn(seed, images, classes)
    for image in range(images):
        others = [other for other in range(images) if other != image]
        likeness = {other: float(vectors[other] @ vectors[image]) for other in others}
        assert likeness[int(nearest(vectors)[image])] == pytest.approx(max(likeness.values()), abs=1e-6)
        means = {label: vectors[[each for each in others if labels[each] == label]].mean(0) for label in {labels[each] for each in others}}
        scores = {label: float(vectors[image] @ (value / np.linalg.norm(value))) for label, value in means.items()}
        assert scores[by_prototype(vectors, labels)[image]] == pytest.approx(max(scores.values()), abs=1e-5)
        most = sorted(others, key=lambda other: -likeness[other])[:3]
        votes: dict[int, float] = {}
        for other in most:
            votes[labels[other]] = votes.get(labels[other], 0.0) + float(np.exp(likeness[other] / 0.07))
        found = by_neighbors(vectors, labels, 3)[image]
        assert votes[found] == pytest.approx(max(votes.values()), rel=1e-3)


@given(st.integers(0, 10_000))
def test_a_gallery_of_one_image_per_class_makes_all_three_the_same(seed: int) -> None:
    vectors, _ = drawn(seed, 9, 3)
    gallery, labels = drawn(seed + 1, 5, 3)[0], np.array([7, 3, 5, 11, 2])
    wanted = labels[nearest(vectors, gallery)]
    assert (by_prototype(vectors, labels, gallery) == wanted).all()
    assert (by_neighbors(vectors, labels, 1, gallery) == wanted).all()


def test_rows_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = drawn(0, 11, 3)
    whole = nearest(vectors), by_neighbors(vectors, labels, 4)
    monkeypatch.setattr(retrieval, "ROWS", 4)
    assert (nearest(vectors) == whole[0]).all()
    assert (by_neighbors(vectors, labels, 4) == whole[1]).all()


def test_an_image_alone_in_its_class_cannot_be_told() -> None:
    labels = np.array([0, 1, 1, 4])
    assert has_company(labels).tolist() == [False, True, True, False]
    assert has_company(labels, np.array([4, 0])).tolist() == [True, False, False, True]


def test_the_interval_of_a_likeness_ends_at_one() -> None:
    value, interval = mean_likeness(np.array([1.0, 1.0, 0.4]))
    assert value == pytest.approx(0.8)
    assert interval is not None
    assert interval[1] == 1.0
    assert interval[0] == pytest.approx(0.8 - 1.959964 * np.std([1, 1, 0.4], ddof=1) / np.sqrt(3))
    assert mean_likeness(np.array([0.5])) == (0.5, None)
