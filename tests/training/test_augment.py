from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vitfrost.errors import VitfrostError
from vitfrost.training.augment import Augment, AugmentSettings, color_jitter, erase, mix, sampling_maps, three_augment
from vitfrost.training.order import batches_of_rank, item_seeds, uniforms
from vitfrost.vit.compat import import_timm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
EVERYTHING: dict[str, Any] = {
    "crop_scale": (0.2, 1.0),
    "flip": 0.5,
    "color_jitter": 0.3,
    "three_augment": True,
    "rotate": 20,
    "translate": 0.1,
    "shear": 10,
    "scale": (0.8, 1.2),
    "erase": 0.5,
    "fill": "zeros",
}


def pictures(count: int, side: int = 32) -> Tensor:
    """Smooth colored pictures."""
    coarse = torch.from_numpy(np.random.default_rng(0).random((count, 3, 6, 6), dtype=np.float32))
    return (F.interpolate(coarse, (side, side), mode="bilinear") * 255).round().to(torch.uint8)


def seeds(count: int, epoch: int = 0) -> Tensor:
    return item_seeds(11, epoch, np.arange(count))


@pytest.mark.parametrize("out", [16, 24, 32, 40])
def test_an_image_does_not_depend_on_its_batch(out: int) -> None:
    augment, images = Augment(AugmentSettings(**EVERYTHING), out, MEAN, STD), pictures(13)
    whole = augment(images, seeds(13))
    assert (whole.shape, whole.dtype) == ((13, 3, out, out), torch.float32)
    alone = torch.cat([augment(images[place : place + 1], seeds(13)[place : place + 1]) for place in range(13)])
    assert torch.equal(alone, whole)
    shuffled = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[shuffled], seeds(13)[shuffled]), whole[shuffled])


def test_epochs_differ_and_repeat() -> None:
    augment, images = Augment(AugmentSettings(**EVERYTHING), 24, MEAN, STD), pictures(6)
    first, again, next_epoch = (augment(images, seeds(6, epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert ((first - next_epoch).abs().amax((1, 2, 3)) > 0.1).all()


def test_settings_draw_from_streams_of_their_own() -> None:
    images = pictures(8)
    with_crop = AugmentSettings(crop_scale=(0.5, 1), flip=0.5)
    assert torch.equal(sampling_maps(with_crop, seeds(8))[:, 0, 0] < 0, uniforms(seeds(8), 1, 1)[:, 0] < 0.5)
    plain, erased = (Augment(AugmentSettings(flip=0.5, erase=share), 32, MEAN, STD)(images, seeds(8)) for share in (0.0, 1.0))
    assert (plain == erased).flatten(1).float().mean(1).min() > 0.5  # the same images outside of the boxes


def test_without_settings_only_normalized() -> None:
    images = pictures(3)
    expected = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(Augment(AugmentSettings(), 32, MEAN, STD)(images, seeds(3)), expected)


def test_flip_mirrors_its_share() -> None:
    images = pictures(400, 4)
    done = Augment(AugmentSettings(flip=0.3), 4, *PLAIN)(images, seeds(400))
    same, mirrored = ((done == other / 255).flatten(1).all(1) for other in (images, images.flip(3)))
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.3) < 0.08


def test_halving_is_an_area_average_and_doubling_is_bilinear() -> None:
    images = pictures(2)
    halved, doubled = (Augment(AugmentSettings(), out, *PLAIN)(images, seeds(2)) for out in (16, 64))
    torch.testing.assert_close(halved, F.avg_pool2d(images / 255, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(doubled, F.interpolate(images / 255, scale_factor=2, mode="bilinear"), atol=1e-5, rtol=0)
    fine = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)  # the finest stripes become gray, not an alias
    assert (Augment(AugmentSettings(crop_scale=(0.9, 1)), 16, *PLAIN)(fine, seeds(1)) - 0.5).abs().max() < 0.26


def test_zeros_lie_outside_and_do_not_darken_the_edge() -> None:
    white = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8)
    kept = Augment(AugmentSettings(crop_scale=(0.3, 1), fill="zeros"), 24, *PLAIN)(white, seeds(64))
    torch.testing.assert_close(kept, torch.ones_like(kept))
    moved = Augment(AugmentSettings(translate=0.5, fill="zeros"), 16, *PLAIN)(white, seeds(64))
    assert set(moved.round(decimals=5).unique().tolist()) == {0, 1}
    border = Augment(AugmentSettings(translate=0.5), 16, *PLAIN)(white, seeds(64))
    torch.testing.assert_close(border, torch.ones_like(border))


def test_the_affine_map_is_torchvisions() -> None:
    import_timm()
    from torchvision.transforms.functional import _get_inverse_affine_matrix

    settings = AugmentSettings(rotate=40, translate=0.3, shear=25, scale=(0.5, 1.5))
    found = sampling_maps(settings, seeds(10))
    signed = 2 * uniforms(seeds(10), 5, 2).double() - 1
    for place in range(10):
        angle, slant, right, down, size = signed[place].tolist()
        shift = [2 * 0.3 * right, 2 * 0.3 * down]
        expected = _get_inverse_affine_matrix([0.0, 0.0], 40 * angle, shift, 1 + 0.5 * size, [-25 * slant, 0.0])
        np.testing.assert_allclose(found[place].flatten(), expected, atol=1e-12)


@given(st.integers(0, 2**60), st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)), st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)))
def test_crops_lie_within_the_image_and_their_ranges(seed: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    low, high = sorted(scale)
    narrow, wide = sorted(ratio)
    settings = AugmentSettings(crop_scale=(low, high), crop_ratio=(narrow, wide))
    maps = sampling_maps(settings, item_seeds(seed, 0, np.arange(20)))
    extent, center = torch.stack([maps[:, 0, 0], maps[:, 1, 1]], 1), maps[:, :, 2]
    assert (maps[:, 0, 1] == 0).all()
    assert (center.abs() + extent <= 1 + 1e-9).all()
    shape = extent[:, 0] / extent[:, 1]
    assert ((shape >= narrow * (1 - 1e-6)) & (shape <= wide * (1 + 1e-6))).all()
    drawn = (center.abs() > 1e-12).any(1)  # the others may be the largest crop that has the ratio
    assert (extent.prod(1)[drawn] >= low * (1 - 1e-6)).all()
    assert (extent.prod(1)[drawn] <= high * (1 + 1e-6)).all()


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def test_three_augment_is_one_of_pillows_three() -> None:
    images, number = pictures(60, 32) / 255, seeds(60)
    done = three_augment(images, number)
    draws = uniforms(number, 2, 3).double()
    kinds = (3 * draws[:, 0]).floor().long().tolist()
    assert min(kinds.count(kind) for kind in range(3)) > 8
    for place, kind in enumerate(kinds):
        if kind == 0:
            torch.testing.assert_close(done[place], from_pillow(as_pillow(images[place]).convert("L")), atol=1.01 / 255, rtol=0)
        elif kind == 1:
            torch.testing.assert_close(done[place], from_pillow(ImageOps.solarize(as_pillow(images[place]))), atol=1e-6, rtol=0)
        else:
            deviation = float(0.1 + 1.9 * draws[place, 1]) * 32 / 224
            blurred = [gaussian_filter(channel.double().numpy(), deviation, mode="nearest", radius=1) for channel in images[place]]
            np.testing.assert_allclose(done[place], np.stack(blurred), atol=1e-6)


def test_color_jitter_is_pillows() -> None:
    images, number = pictures(12) / 255, seeds(12)
    done = color_jitter(images, 0.4, number)
    factors = (1 + 0.4 * (2 * uniforms(number, 3, 4) - 1)).tolist()
    for place in range(12):
        image = as_pillow(images[place])
        for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors[place], strict=True):
            image = enhance(image).enhance(factor)
        torch.testing.assert_close(done[place], from_pillow(image), atol=4 / 255, rtol=0)


def test_erased_boxes_are_like_timms() -> None:
    import_timm()
    from timm.data.random_erasing import RandomErasing

    flat = torch.full((3000, 3, 24, 24), 9.0)
    ours = erase(flat, 0.7, "pixel", seeds(3000)) != 9
    torch.manual_seed(0)
    theirs = RandomErasing(0.7, mode="pixel", device="cpu")(flat.clone()) != 9
    assert (ours.any(1) == ours.all(1)).all()
    areas = [changed[:, 0].sum((1, 2)).double() for changed in (ours, theirs)]
    for mine, other in ((area > 0, area[area > 0] / 576) for area in areas):
        assert abs(mine.double().mean() - 0.7) < 0.03
        assert abs(other.mean() - 0.174) < 0.012
    assert areas[0].max() <= 576 / 3 * 1.1
    rows, columns = (ours[:, 0].any(axis).sum(1).double() for axis in (2, 1))
    assert torch.equal(rows * columns, areas[0])  # boxes
    assert abs((rows[rows > 0].log() - columns[rows > 0].log()).mean()) < 0.06  # neither tall nor wide on average
    where = ours[:, 0].double().mean(0)
    assert abs(where - where.flip(0)).max() < 0.05
    noise = erase(flat, 1.0, "pixel", seeds(3000))
    noise = noise[noise != 9]
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert set(erase(flat, 1.0, "const", seeds(3000)).unique().tolist()) == {0, 9}


MIX: dict[str, Any] = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.5, "label_smoothing": 0.1, "classes": 7}


def test_mixing_does_not_depend_on_the_split() -> None:
    images, targets = pictures(32) / 255, torch.arange(32) % 7
    before = np.random.get_state()[1].copy()
    mixed, soft = mix(images, targets, seeds(32), **MIX)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for split in (8, 16):
        parts = [mix(images[a : a + split], targets[a : a + split], seeds(32)[a : a + split], **MIX) for a in range(0, 32, split)]
        assert torch.equal(torch.cat([part[0] for part in parts]), mixed)
        assert torch.equal(torch.cat([part[1] for part in parts]), soft)
    np.random.seed(1)
    assert torch.equal(mix(images, targets, seeds(32), **MIX)[0], mixed)
    assert not torch.equal(mix(images, targets, seeds(32, epoch=1), **MIX)[0], mixed)
    assert torch.equal(images, pictures(32) / 255)


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_see_what_one_sees(world: int) -> None:
    images, labels, augment = pictures(70), torch.arange(70) % 7, Augment(AugmentSettings(**EVERYTHING), 24, MEAN, STD)

    def seen(rank: int, world: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        batches = batches_of_rank(70, 32 // world, rank, world, 5, epoch)
        drawn = [(torch.from_numpy(chosen), item_seeds(5, epoch, chosen)) for chosen in batches]
        return [mix(augment(images[chosen], number), labels[chosen], number, **MIX) for chosen, number in drawn]

    for epoch in (0, 3):
        parts = zip(*(seen(rank, world, epoch) for rank in range(world)), strict=True)
        for (pixels, soft), part in zip(seen(0, 1, epoch), parts, strict=True):
            assert torch.equal(torch.cat([mine for mine, _ in part]), pixels)
            assert torch.equal(torch.cat([mine for _, mine in part]), soft)


@pytest.mark.parametrize(("change", "pure"), [({"cutmix_alpha": 0.0}, False), ({"mixup_alpha": 0.0}, True)])
def test_targets_are_mixed_as_the_pixels_are(change: dict[str, float], pure: bool) -> None:
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 10, 10)
    mixed, soft = mix(images, torch.arange(16), seeds(16), **MIX | change | {"classes": 16, "label_smoothing": 0.0})
    torch.testing.assert_close(soft.sum(1), torch.ones(16))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), soft @ torch.arange(16.0), atol=1e-4, rtol=0)
    assert (mixed == mixed.round()).all() == pure


def test_without_mixing_targets_are_only_smoothed() -> None:
    images, targets = pictures(8) / 255, torch.arange(8) % 7
    mixed, soft = mix(images, targets, seeds(8), **MIX | {"mixup_alpha": 0.0, "cutmix_alpha": 0.0})
    assert torch.equal(mixed, images)
    torch.testing.assert_close(soft, F.one_hot(targets, 7) * 0.9 + 0.1 / 7)


@pytest.mark.parametrize("chunk", [0, 3, 5, 6])
def test_a_chunk_must_be_even_and_divide_the_batch(chunk: int) -> None:
    with pytest.raises(VitfrostError, match=f"chunks of {chunk} images; a chunk must be even and divide the batch of 15"):
        mix(pictures(15) / 255, torch.arange(15), seeds(15), **MIX | {"classes": 15, "chunk": chunk})


@pytest.mark.parametrize(
    "wrong",
    [
        {"flipp": 0.5},
        {"flip": 1.5},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.5, 1.2)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
        {"scale": (0.0, 1.0)},
        {"shear": 90},
        {"erase": math.nan},
        {"fill": "reflect"},
    ],
)
def test_settings_are_strict(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentSettings(**wrong)


def test_transforms_refuse_what_cannot_be() -> None:
    for arguments, message in (
        ((0, MEAN, STD), "size of the images"),
        ((8, MEAN, (1.0, 0.0, 1.0)), "three numbers each"),
        ((8, MEAN[:2], STD), "three numbers each"),
    ):
        with pytest.raises(VitfrostError, match=message):
            Augment(AugmentSettings(), *arguments)
