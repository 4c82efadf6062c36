from __future__ import annotations

import numpy as np
import pytest

from vitfrost.deploy.parity import compare, in_batches, refuse_difference
from vitfrost.errors import VitfrostError

LOGITS = np.random.default_rng(0).normal(0, 3, (40, 10)).astype(np.float32)


@pytest.mark.parametrize(
    ("images", "sizes"), [(1, [1]), (2, [1, 1]), (4, [1, 3]), (5, [1, 3, 1]), (36, [1, 3, 16, 16]), (40, [1, 3, 16, 16, 4])]
)
def test_batches_of_one_three_and_the_rest(images: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def run(pixels: np.ndarray) -> np.ndarray:
        seen.append(len(pixels))
        return pixels.reshape(len(pixels), -1)

    pixels = np.random.default_rng(0).random((images, 3, 2, 2), dtype=np.float32)
    assert np.array_equal(in_batches(run, pixels), pixels.reshape(images, -1))
    assert seen == sizes


def test_rounding_passes_and_more_does_not() -> None:
    refuse_difference(compare(LOGITS, LOGITS + np.float32(1e-5), "fp32", "random"), "a model", "onnx")
    with pytest.raises(VitfrostError, match=r"onnx export of a model does not compute what the model does; logits differ by 1\.00e-02"):
        refuse_difference(compare(LOGITS, LOGITS + np.float32(1e-2), "fp32", "random"), "a model", "onnx")
    refuse_difference(compare(LOGITS, LOGITS + np.float32(1e-2), "bf16", "random"), "a model", "onnx")


def test_int8_is_bounded_by_agreement_and_correlation() -> None:
    noise = np.random.default_rng(1).normal(0, 1, LOGITS.shape).astype(np.float32)
    close = compare(LOGITS, LOGITS + 0.3 * noise, "int8", "images")
    assert close.tolerance is None
    assert close.correlation > 0.98
    refuse_difference(close, "a model", "onnx")
    for broken in (noise, -LOGITS, np.zeros_like(LOGITS), LOGITS[::-1]):
        with pytest.raises(VitfrostError, match="in int8 the best class agrees on"):
            refuse_difference(compare(LOGITS, broken, "int8", "images"), "a model", "onnx")
    with pytest.raises(VitfrostError, match="not finite"):
        refuse_difference(compare(LOGITS, LOGITS * np.float32(np.nan), "int8", "images"), "a model", "onnx")


def test_best_classes_count_on_pictures_alone() -> None:
    ties = np.float32([[5, 5, 0], [4, 4, 1]])
    other = ties + np.float32([[0, 0.1, 0], [0, 0.1, 0]])
    refuse_difference(compare(ties, other, "int8", "random"), "a model", "native")
    with pytest.raises(VitfrostError, match=r"agrees on 0 % of 2 images .*other calibration images"):
        refuse_difference(compare(ties, other, "int8", "images"), "a model", "native")
    with pytest.raises(VitfrostError, match=r"give images to compare on \(--images DIR\)"):
        refuse_difference(compare(ties, -other, "int8", "random"), "a model", "native")
