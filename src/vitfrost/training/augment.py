"""Batched augmentation on the device, mixup and CutMix, and the evaluation transform; an image's result never depends on its batch.

Every random number comes from the image's own seed (`order.item_seeds`). The few numbers that steer an image are computed in
float64 where the seeds lie, so seeds on the CPU cost the accelerator no synchronization and give the same choices on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64, UInt8
from pydantic import AfterValidator, Field
from torch import Tensor

from ..errors import VitfrostError
from ..strict import Strict
from ..vit.compat import import_timm
from .order import uniforms

import_timm()
from timm.data.mixup import Mixup  # noqa: E402  (timm must be imported through the guard)

_CROP, _FLIP, _AFFINE, _THREE, _JITTER, _ERASE, _NOISE = range(7)  # streams: one setting does not move the numbers of another
_ATTEMPTS = 10  # of timm's and torchvision's crops and erased boxes
_REACH = 1.5  # source pixels between samples up to which bilinear sampling needs no average
_BLUR_SIDE = 224  # side of the images DeiT III's blur was meant for


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"{pair[0]}, {pair[1]} is no range; give two numbers above 0, the smaller one first")
    return pair


def _within_the_image(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[1] > 1:
        raise ValueError(f"a crop cannot be {pair[1]} of the image; give at most 1")
    return pair


_Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
_Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentSettings(Strict):
    """What is done to training images; by default nothing.

    `crop_scale` (shares of the area) and `crop_ratio` (width to height): torchvision's random resized crop, without rounding to
    pixels. `flip`: probability of mirroring left and right. `rotate`, `shear` (degrees to either side), `translate` (share of the
    side to either side) and `scale` (factors): torchvision's random affine map. `fill`: what lies outside the image. `three_augment`:
    one of gray, solarize, blur for every image (DeiT III, arXiv 2204.07118, section 3.2); the blur's deviation, 0.1 to 2 pixels
    of 224, shrinks with the image. `color_jitter`: brightness, contrast and saturation, in this order, by factors 1 - j to 1 + j.
    `erase`: probability of timm's random erasing after normalization, of one box with 2 % to a third of the area, by normal noise
    ("pixel") or by the mean ("const").
    """

    crop_scale: Annotated[_Range, AfterValidator(_within_the_image)] | None = None
    crop_ratio: _Range = (3 / 4, 4 / 3)
    flip: _Probability = 0.0
    color_jitter: _Probability = 0.0
    three_augment: bool = False
    rotate: float = Field(0.0, ge=0, le=180)
    translate: float = Field(0.0, ge=0, le=1)
    shear: float = Field(0.0, ge=0, lt=90)
    scale: _Range = (1.0, 1.0)
    erase: _Probability = 0.0
    erase_mode: Literal["pixel", "const"] = "pixel"
    fill: Literal["border", "zeros"] = "border"

    @property
    def warps(self) -> bool:
        """Whether anything but mirroring moves pixels."""
        return bool(self.crop_scale or self.rotate or self.translate or self.shear or self.scale != (1.0, 1.0))


class _Normalize:
    def __init__(self, output_size: int, mean: Sequence[float], std: Sequence[float]):
        if output_size < 1:
            raise VitfrostError(f"the size of the images must be at least 1, not {output_size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise VitfrostError(f"mean {list(mean)} and std {list(std)} must have three numbers each, and those of std be above 0")
        self.output_size = output_size
        self._mean, self._std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))

    def _normalized(self, images: Tensor) -> Tensor:
        return (images - self._mean.to(images.device)) / self._std.to(images.device)


class Augment(_Normalize):
    """Augment and normalize a batch: all geometry in one sampling of the source, then colors, normalization, erasing.

    Sampling is bilinear. Where the whole image would be reduced by more than 1.5, every output pixel is the average of k x k samples,
    k the same for all images: about an area average, so strong reduction does not alias.
    """

    def __init__(self, settings: AugmentSettings, output_size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__(output_size, mean, std)
        self.settings = settings

    def __call__(
        self, pixels: UInt8[Tensor, "batch 3 side side"], item_seeds: Int64[Tensor, " batch"]
    ) -> Float32[Tensor, "batch 3 out out"]:
        """Images on any device; `item_seeds` best stay on the CPU."""
        settings = self.settings
        images = pixels.to(torch.float32) / 255
        if settings.warps or pixels.shape[-1] != self.output_size:
            images = self._warped(images, item_seeds)
        elif settings.flip:
            flipped = _mirrored(settings, item_seeds).to(pixels.device)
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        if settings.three_augment:
            images = three_augment(images, item_seeds)
        if settings.color_jitter:
            images = color_jitter(images, settings.color_jitter, item_seeds)
        images = self._normalized(images)
        if settings.erase:
            images = erase(images, settings.erase, settings.erase_mode, item_seeds)
        return images

    def _warped(self, images: Tensor, seeds: Tensor) -> Tensor:
        reduction = images.shape[-1] / (self.output_size * self.settings.scale[0])
        samples = max(1, math.ceil(reduction / _REACH - 1e-9))
        side = self.output_size * samples
        maps = sampling_maps(self.settings, seeds).to(torch.float32).to(images.device)[:, :, :, None, None]
        line = (2 * torch.arange(side, device=images.device, dtype=torch.float32) + 1) / side - 1
        x, y = line[None, None, :], line[None, :, None]
        grid = torch.stack([maps[:, row, 0] * x + maps[:, row, 1] * y + maps[:, row, 2] for row in (0, 1)], 3)
        warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.settings.fill == "zeros":  # by a mask: padding with zeros would darken the edge of an image that is only enlarged
            warped = warped * (grid.abs() <= 1).all(3)[:, None]
        return warped if samples == 1 else F.avg_pool2d(warped, samples)


def sampling_maps(settings: AugmentSettings, item_seeds: Int64[Tensor, " batch"]) -> Tensor:
    """Maps [batch, 2, 3] (float64) from output to source coordinates, both -1 to 1 over the image: crop, mirror, inverse affine."""
    draws = uniforms(item_seeds, 5, _AFFINE).to(torch.float64)
    signed = 2 * draws - 1
    angle, slant = (torch.deg2rad(signed[:, place] * degrees) for place, degrees in ((0, settings.rotate), (1, settings.shear)))
    shift = signed[:, 2:4] * 2 * settings.translate
    shrink = 1 / (settings.scale[0] + (settings.scale[1] - settings.scale[0]) * draws[:, 4])
    cos, sin, tan = torch.cos(angle), torch.sin(angle), torch.tan(slant)
    inverse = torch.stack([torch.stack([cos + tan * sin, sin - tan * cos], 1), torch.stack([-sin, cos], 1)], 1) * shrink[:, None, None]
    offset = -(inverse * shift[:, None, :]).sum(2)
    center, extent = _crops(settings, item_seeds)
    extent = torch.stack([torch.where(_mirrored(settings, item_seeds), -extent[:, 0], extent[:, 0]), extent[:, 1]], 1)
    return torch.cat([inverse * extent[:, :, None], (offset * extent + center)[:, :, None]], 2)


def _crops(settings: AugmentSettings, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and half sides (x, y) in -1 to 1: the first of ten draws that lies within the image, else the largest crop."""
    if settings.crop_scale is None:
        whole = torch.ones((len(seeds), 2), dtype=torch.float64, device=seeds.device)
        return whole * 0, whole
    (low, high), (narrow, wide) = settings.crop_scale, settings.crop_ratio
    draws = uniforms(seeds, 2 * _ATTEMPTS + 2, _CROP).to(torch.float64)
    area = low + (high - low) * draws[:, :_ATTEMPTS]
    ratio = torch.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * draws[:, _ATTEMPTS : 2 * _ATTEMPTS])
    sides = torch.stack([torch.sqrt(area * ratio), torch.sqrt(area / ratio)], 2)
    square = min(max(1.0, narrow), wide)
    fallback = torch.tensor([min(1.0, square), min(1.0, 1 / square)], dtype=torch.float64, device=seeds.device)
    chosen, found = _first_fitting(sides, sides <= 1)
    extent = torch.where(found[:, None], chosen, fallback)
    places = torch.where(found[:, None], draws[:, 2 * _ATTEMPTS :], torch.full_like(draws[:, :2], 0.5))
    return (2 * places - 1) * (1 - extent), extent


def _first_fitting(sides: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
    """Of `sides` [batch, attempts, 2] the first attempt of which both sides fit, and whether there is one."""
    good = fits.all(2)
    first = (good.cumsum(1) == 0).sum(1).clamp(max=sides.shape[1] - 1)
    return sides[torch.arange(len(sides), device=sides.device), first], good.any(1)


def _mirrored(settings: AugmentSettings, seeds: Tensor) -> Tensor:
    return uniforms(seeds, 1, _FLIP)[:, 0] < settings.flip


def _gray(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, as Pillow has it: [batch, 1, height, width]."""
    return 0.299 * images[:, 0:1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:3]


def three_augment(
    images: Float32[Tensor, "batch 3 side side"], item_seeds: Int64[Tensor, " batch"]
) -> Float32[Tensor, "batch 3 side side"]:
    """Gray, solarized (from one half on) or blurred, each for a third of the images in [0, 1]."""
    draws = uniforms(item_seeds, 2, _THREE).to(torch.float64)
    kind = (3 * draws[:, 0]).floor()
    gray, solarized = ((kind == value).to(images.device)[:, None, None, None] for value in (0, 1))
    blurred = (kind == 2).nonzero()[:, 0]
    result = torch.where(gray, _gray(images), images)
    result = torch.where(solarized & (images >= 128 / 255), 1 - images, result)
    if len(blurred):
        unit = images.shape[-1] / _BLUR_SIDE
        there = blurred.to(images.device)
        result[there] = _blurred(images[there], (0.1 + 1.9 * draws[blurred, 1]) * unit, math.ceil(5 * unit))
    return result


def _blurred(images: Tensor, deviation: Tensor, radius: int) -> Tensor:
    """Gaussian blur, a deviation per image, cut at `radius`; sums of shifted images, so no algorithm depends on the batch."""
    places = torch.arange(-radius, radius + 1, dtype=torch.float64, device=deviation.device)
    weights = torch.exp(-0.5 * (places / deviation[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).to(torch.float32).to(images.device)
    side = images.shape[-1]
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    for axis in (2, 3):
        shifted = [padded.narrow(axis, place, side) for place in range(2 * radius + 1)]
        padded = torch.zeros_like(shifted[0])
        for place, image in enumerate(shifted):
            padded = padded + weights[:, place, None, None, None] * image
    return padded


def color_jitter(
    images: Float32[Tensor, "batch 3 side side"], strength: float, item_seeds: Int64[Tensor, " batch"]
) -> Float32[Tensor, "batch 3 side side"]:
    """Brightness, contrast, saturation of images in [0, 1], each by a factor from 1 - strength to 1 + strength (as Pillow's)."""
    factors = (1 + strength * (2 * uniforms(item_seeds, 3, _JITTER) - 1)).to(images.device)[:, :, None, None, None]
    images = (images * factors[:, 0]).clamp(0, 1)
    fine = (_gray(images) * 2**16).round().to(torch.int64)  # sums of integers do not depend on their order, nor so on the batch
    mean = (fine.sum((1, 2, 3), keepdim=True).to(torch.float64) / (2**16 * fine[0].numel())).to(torch.float32)
    images = (mean + factors[:, 1] * (images - mean)).clamp(0, 1)
    gray = _gray(images)
    return (gray + factors[:, 2] * (images - gray)).clamp(0, 1)


def erase(
    images: Float32[Tensor, "batch 3 side side"], probability: float, mode: Literal["pixel", "const"], item_seeds: Int64[Tensor, " batch"]
) -> Float32[Tensor, "batch 3 side side"]:
    """timm's RandomErasing with its default area (2 % to a third) and aspect (0.3 to 1 / 0.3), one box per normalized image."""
    side = images.shape[-1]
    draws = uniforms(item_seeds, 3 + 2 * _ATTEMPTS, _ERASE).to(torch.float64)
    area = (0.02 + (1 / 3 - 0.02) * draws[:, 3 : 3 + _ATTEMPTS]) * side**2
    aspect = torch.exp(math.log(0.3) * (2 * draws[:, 3 + _ATTEMPTS :] - 1))
    boxes, found = _first_fitting(sides := torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 2).round(), sides < side)
    begins = (draws[:, 1:3] * (side - boxes + 1)).floor()
    erased = (found & (draws[:, 0] < probability)).nonzero()[:, 0]
    if not len(erased):
        return images
    begin, box = begins[erased].to(images.device)[:, :, None], boxes[erased].to(images.device)[:, :, None]
    line = torch.arange(side, device=images.device)
    inside = (line >= begin) & (line < begin + box)
    there = erased.to(images.device)
    seeds = item_seeds[erased].to(images.device)
    noise = _normals(seeds, images[0].numel()).view(-1, *images.shape[1:]) if mode == "pixel" else torch.zeros_like(images[:1])
    images = images.clone()
    images[there] = torch.where(inside[:, None, 0, :, None] & inside[:, None, 1, None, :], noise, images[there])
    return images


def _normals(seeds: Tensor, count: int) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * uniforms(seeds, count, _NOISE) - 1 + 2.0**-24)  # never -1 or 1


def mix(
    pixels: Float32[Tensor, "batch 3 height width"],
    targets: Int64[Tensor, " batch"],
    item_seeds: Int64[Tensor, " batch"],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    switch_prob: float,
    label_smoothing: float,
    classes: int,
    chunk: int = 8,
) -> tuple[Float32[Tensor, "batch 3 height width"], Float32[Tensor, "batch classes"]]:
    """timm's Mixup on each `chunk` of consecutive images, seeded by the chunk's first image; both alphas 0: only soft targets.

    Within a chunk image i meets image chunk - 1 - i, with one weight or box for the chunk. As chunks do not reach over the
    part of a process, the result does not depend on how a global batch is split. NumPy's global generator is left as it was; another
    thread must not use it meanwhile. Keep `item_seeds` on the CPU.

    Raises VitfrostError for a chunk that is odd or does not divide the batch.
    """
    if chunk < 2 or chunk % 2 or len(pixels) % chunk:
        raise VitfrostError(
            f"cannot mix in chunks of {chunk} images; a chunk must be even and divide the batch of {len(pixels)} per process"
        )
    mixing = Mixup(mixup_alpha, cutmix_alpha, switch_prob=switch_prob, label_smoothing=label_smoothing, num_classes=classes)
    mixing.mixup_enabled = mixup_alpha > 0 or cutmix_alpha > 0
    mixed, soft = pixels.clone(), []
    state = np.random.get_state()
    try:
        for begin, seed in zip(range(0, len(pixels), chunk), item_seeds[::chunk].tolist(), strict=True):
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
            soft.append(mixing(mixed[begin : begin + chunk], targets[begin : begin + chunk])[1])
    finally:
        np.random.set_state(state)
    return mixed, torch.cat(soft)
