"""The layer that turns the residual stream: the same matrix as `rotation_of_stream`, undone by `back`, and read from files with care."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitfrost.methods.quantize.hadamard import rotation_of_stream, signs_of_stream
from vitfrost.methods.quantize.turn import Turn, restore_turns, turned_places

from ...models import random_model

WIDTHS = [1, 2, 4, 12, 24, 48, 64, 192, 384, 768]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_turn_is_the_rotation_of_the_stream(width: int) -> None:
    x = torch.randn(2, 3, width, dtype=torch.float64) + 1
    wanted = x @ rotation_of_stream(width, torch.Generator().manual_seed(5))
    kept, without = (Turn.of_stream(width, 5, each).double() for each in (False, True))
    torch.testing.assert_close(kept(x), wanted)
    torch.testing.assert_close(without(x), wanted - x.mean(-1, keepdim=True))
    torch.testing.assert_close(kept.back()(kept(x)), x)
    torch.testing.assert_close(without.back()(kept(x)), x - x.mean(-1, keepdim=True))


def test_a_turn_in_float32_is_right_to_rounding() -> None:
    x = torch.randn(7, 768, generator=torch.Generator().manual_seed(0))
    x[:, 11] *= 500
    turn = Turn.of_stream(768, 0, True)
    error = turn(x) - turn.double()(x.double()).float()
    assert float(error.abs().max()) < 1e-6 * float(x.norm(dim=-1).max())


def test_a_file_holds_places_and_signs_alone() -> None:
    turn = Turn.of_stream(768, 0, True)
    assert {name: (value.dtype, len(value)) for name, value in turn.state_dict().items()} == {
        "places": (torch.int32, 768), "signs": (torch.float32, 768),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("places", "signs", "message"),
    [
        (range(36), [1.0] * 36, "no Hadamard matrix of order 36"),
        ([0, 1, 2, 2], [1.0] * 4, "no permutation"),
        ([0, 1, 2, 4], [1.0] * 4, "no permutation"),
        (range(4), [1.0, 1.0, 2.0, 1.0], "signs other than"),
        (range(4), [1.0, float("nan"), 1.0, 1.0], "signs other than"),
    ],
)
def test_what_is_no_turn_is_refused(places: list[int], signs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Turn(torch.tensor(list(places)), torch.tensor(signs))


def test_turns_are_restored_where_the_tensors_have_them() -> None:
    model = random_model("vit_tiny_patch16_224", 32, embed_dim=48, depth=1, num_heads=3, num_classes=0).module
    restore_turns(model, {})
    assert turned_places(model) == []
    places, signs = (each.numpy() for each in signs_of_stream(24, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"norm\.0 is no turn of the model's width"):
        restore_turns(model, {"norm.0.places": places, "norm.0.signs": signs})
    places, signs = (each.numpy() for each in signs_of_stream(48, torch.Generator().manual_seed(0)))
    restore_turns(model, {"norm.0.places": places.astype(np.int32), "norm.0.signs": signs, "norm_pre.1.places": places})
    assert turned_places(model) == ["norm"]
