"""Quantization in steps: what is measured, taken back, saved and loaded; families, and models and images at the edge."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, Compress, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.methods.quantize.layerwise import LayerOptions, LayerWise
from vitfrost.methods.quantize.modules import LogQuantizer, QuantizedLayer, UniformMapQuantizer, UniformQuantizer
from vitfrost.methods.quantize.polish import Polishing, PolishOptions
from vitfrost.methods.quantize.repq import QuantizationSettings
from vitfrost.methods.quantize.trainable import trainable
from vitfrost.model import Model
from vitfrost.passes.compress import start_work
from vitfrost.passes.give_structure import GiveStructure
from vitfrost.passes.quantize_chain import Chain, QuantizeInSteps, is_worse, surely_less
from vitfrost.passes.quantize_steps.polish import Polish
from vitfrost.passes.quantize_steps.ranges import SearchRanges
from vitfrost.passes.quantize_steps.rotate import Rotate
from vitfrost.passes.quantizers import fast
from vitfrost.passes.work import Draws, Record, apply_passes
from vitfrost.plans.choose import unfrozen_plan
from vitfrost.vit.families import find_sites, install_map_attention
from vitfrost.vit.stream import read_by

from ..conftest import unchecked_shapes, write_pictures
from ..models import random_model

pytestmark = pytest.mark.usefixtures("unchecked")
FAST = Quantize(method="fast")
MADE_ONCE = pytest.mark.xdist_group("quantized by fast")  # by one worker


def compressed(shallow: Any, *methods: Any, images: int = 10, source: Any = "pictures") -> Artifact:
    """The shallow model with its pictures."""
    plan = vitfrost.plan(shallow.statistics, *methods)
    source = shallow.pictures if isinstance(source, str) else source
    config = Compress(0, images, compact_images=8)
    return vitfrost.compress(shallow.model, plan, statistics=shallow.statistics, images=source, config=config)


def pixels(count: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size, mode="bilinear")


@pytest.fixture(scope="module")
def made(shallow: Any) -> Artifact:
    """W4/A4 by `fast`."""
    with unchecked_shapes():
        return compressed(shallow, FAST, images=24)


@MADE_ONCE
def test_every_step_is_measured_and_none_that_is_kept_makes_it_worse(made: Artifact) -> None:
    record = made.quantization
    assert (record["method"], record["weight_bits"], record["levels"], record["images"], record["held_out"]) == ("fast", 4, "strict", 24, 4)
    steps = record["steps"]
    assert [step["step"] for step in steps] == ["ranges", "rotation", "ridge", "rounding"]
    assert steps[0]["before"] == pytest.approx(0, abs=1e-6)
    for step, after in itertools.pairwise(steps):
        assert after["before"] == (step["after"] if step["kept"] else step["before"])
        assert after["kept"] or after["after"] > after["before"]
    assert set(steps[2]["penalties"]) == {site.name for site in find_sites(made.blank()).linears}


@torch.no_grad()
def test_it_is_closer_than_nearest_levels_in_fixed_ranges(shallow: Any) -> None:
    """On images of the kind that it was fitted to."""
    seen, source = pixels(32, 5), list(pixels(24, 4))
    wanted = shallow.model.module(seen).log_softmax(-1)
    made = [compressed(shallow, each, images=24, source=source) for each in (FAST, Quantize(levels="strict"))]
    lost = [float((wanted.exp() * (wanted - each.module(seen).log_softmax(-1))).sum(-1).mean()) for each in made]
    assert lost[0] < lost[1], lost


@MADE_ONCE
def test_levels_are_strict_and_ranges_are_by_head(made: Artifact) -> None:
    for module in made.module.modules():
        if isinstance(module, UniformQuantizer):
            assert bool((module.zero_point == module.zero_point.round()).all())
            assert module.scale.shape in ((), (4, 1, 1))
        elif isinstance(module, LogQuantizer):
            assert module.step.shape == (4, 1, 1)
            assert module.levels == "strict"
        elif isinstance(module, QuantizedLayer):
            assert module.codes.max() <= 15
            assert module.weight.flatten(1).unique(dim=1).shape[0] == len(module.weight)
    maps: list[torch.Tensor] = []
    attention = install_map_attention(made.module)
    next(iter(attention.values())).observe(maps=lambda m, v: maps.append(m), quantized=True)
    made.module(pixels(2))
    assert all(len(maps[0][:, head].unique()) <= 16 for head in range(4))
    next(iter(attention.values())).observe()


@torch.no_grad()
@MADE_ONCE
def test_what_was_saved_is_loaded_with_the_same_bits(made: Artifact, tmp_path: Path) -> None:
    made.save(tmp_path / "made")
    loaded = Artifact.load(tmp_path / "made")
    assert torch.equal(loaded.module(pixels(4)), made.module(pixels(4)))
    assert loaded.quantization == made.quantization
    assert loaded.plan.quantize == FAST
    assert loaded.plan_hash == made.plan_hash


@MADE_ONCE
def test_bases_of_maps(shallow: Any, made: Artifact, tmp_path: Path) -> None:
    """Where it is asked for, up to 4 bits each head's maps have the base that leaves least; else there is one base, and files have none."""
    four = compressed(shallow, Quantize(4, 4, method="fast", steps=(), map_base="searched"))
    eight = compressed(shallow, Quantize(4, 8, method="fast", steps=()))
    for name, artifact, some in (("one", made, False), ("four", four, True), ("eight", eight, False)):
        artifact.save(tmp_path / name)
        for module in (artifact.module, Artifact.load(tmp_path / name).module):
            found = [each.octave for each in module.modules() if isinstance(each, LogQuantizer)]
            assert all((octave is not None) == some for octave in found)
            assert not some or {round(float(each), 3) for octave in found for each in octave.flatten()} <= {2.0, 1.333, 1.0}


def test_steps_that_are_left_out(shallow: Any) -> None:
    config = Quantize(method="fast", steps=("rounding",))
    assert [step["step"] for step in compressed(shallow, config).quantization["steps"]] == ["ranges", "rounding"]
    with pytest.raises(VitfrostError, match="steps has melting, which is no step of fast; its steps are rotation, ridge, rounding"):
        compressed(shallow, Quantize(method="fast", steps=("melting",)))
    with pytest.raises(VitfrostError, match="steps has no effect where method is repq"):
        compressed(shallow, Quantize(steps=("rounding",)))
    with pytest.raises(VitfrostError, match="levels is 'published', which goes with the method repq"):
        Quantize(method="fast", levels="published")


def test_without_images(shallow: Any) -> None:
    with pytest.raises(VitfrostError, match="fast is fitted to images"):
        compressed(shallow, FAST, source=None)


@torch.no_grad()
def test_frozen_hallucinated_compact_and_four_bits_together(shallow: Any, tmp_path: Path) -> None:
    methods = (FreezeEntries(0.2), Hallucinate(0.5, by="first", mix="copy"), Compact(0.5), FAST)
    both = compressed(shallow, *methods)
    assert [head["step"] for head in both.quantization["steps"]] == ["ranges", "rotation", "ridge", "rounding"]
    both.save(tmp_path / "both")
    assert torch.equal(Artifact.load(tmp_path / "both").module(pixels(4)), both.module(pixels(4)))
    attention = next(iter(install_map_attention(both.module).values()))
    assert attention.frozen is not None
    assert attention.query_quantizer.scale.shape == (2, 1, 1)
    assert attention.value_quantizer.scale.shape == (4, 1, 1)


@torch.no_grad()
def test_heads_frozen_whole_need_no_quantizers(shallow: Any, tmp_path: Path) -> None:
    whole = compressed(shallow, FreezeHeads(0.5, by="entropy", kind="dense"), FAST)
    mean = compressed(shallow, FreezeHeads(0.5, by="entropy", kind="dense"), Quantize(32, 32))
    fits = [step["penalties"] for step in whole.quantization["steps"] if step["kept"] and "penalties" in step]
    for layer in whole.plan.layers:
        attention = whole.module.get_submodule(layer.site)
        if layer.constant:  # they are fitted to quantized values
            left = not fits or fits[-1][f"{layer.site}.constants"] is None  # every step that fits does so anew
            assert torch.equal(attention.constants.maps(), mean.module.get_submodule(layer.site).constants.maps()) == left
        moving = len(layer.heads) - len(layer.constant)
        assert attention.logit_heads == moving
        for quantizer in (attention.query_quantizer, attention.key_quantizer, attention.map_quantizer):
            assert (quantizer is None) == (moving == 0)
            assert moving == 0 or len(next(iter(quantizer.buffers()))) == moving
        assert len(attention.value_quantizer.scale) == len(layer.heads)
    whole.save(tmp_path / "whole")
    assert torch.equal(Artifact.load(tmp_path / "whole").module(pixels(4)), whole.module(pixels(4)))


@torch.no_grad()
def test_heads_are_turned_as_those_of_the_original(shallow: Any) -> None:
    """Also where frozen heads stand behind the others: their constants are fitted to the original's heads."""
    plan = vitfrost.plan(shallow.statistics, FreezeHeads(0.5, by="entropy", kind="dense"), FAST)
    work = start_work(shallow.model, plan, shallow.statistics, Draws(shallow.model, shallow.pictures, 0))
    apply_passes([GiveStructure(8)], work)
    chain = QuantizeInSteps("own", QuantizationSettings(4, 4, "strict"), (), 10).start(work, pixels(10)[:8], pixels(10)[8:])
    Rotate().apply(chain)
    name = plan.layers[0].site
    found = []
    for model in (chain.float_model, chain.teacher):
        attention = model.get_submodule(name)
        with read_by(attention.proj) as seen:
            model(pixels(2))
        heads = seen[0].unflatten(-1, (-1, attention.site.head_dim)).movedim(-2, 0)
        found.append(torch.stack([heads[attention.order.index(head)] for head in range(attention.site.heads)]))
    computed = [head for head in range(len(found[0])) if head not in plan.layers[0].constant]
    assert 0 < len(computed) < len(found[0])
    assert torch.allclose(found[0][computed], found[1][computed], atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-4)


@dataclass(frozen=True)
class Spoil:
    """A step that makes things worse, or breaks them."""

    factor: float
    name = "spoiled"
    needed = False

    def apply(self, chain: Chain) -> Record:
        """Scale every bias."""
        chain.model = chain.copied()
        for module in chain.model.modules():
            if isinstance(module, QuantizedLayer) and module.bias is not None:
                module.bias.data = module.bias * self.factor
        return {}


def test_less_by_chance_is_not_surely_less() -> None:
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    others = 1 + 0.1 * noise.flip(0)
    assert surely_less(others - 0.1 + 0.1 * noise, others)
    assert not surely_less(others - 0.01 + 0.1 * noise, others)
    assert not surely_less(others, others)
    broken = torch.full((100,), torch.inf)
    assert surely_less(others, broken)
    assert not surely_less(broken, others)
    assert not surely_less(broken, broken)
    assert not surely_less(others[:1] - 1, others[:1])  # of one image nothing is sure
    few = torch.tensor([0.001, 0.001, 0.001])
    assert not surely_less(few, torch.tensor([0.001, 0.001, 3.0]))
    assert is_worse(few, torch.tensor([0.001, 0.001, 3.0]))
    assert not is_worse(few, torch.tensor([0.001, 0.0009, 0.0013]))


def test_what_a_step_does_to_a_lost_model_says_nothing_about_it() -> None:
    lost = torch.tensor([4.3, 4.2, 4.4])
    assert not is_worse(lost, lost + 0.2)
    assert is_worse(lost, 2 * lost)  # but a step may do harm to it
    assert is_worse(lost / 4, lost / 4 + 0.2)
    for broken in (torch.inf, torch.nan):
        assert is_worse(lost, torch.full((3,), broken))


@pytest.mark.parametrize("factor", [30.0, float("nan")])
def test_a_step_that_makes_it_worse_is_taken_back(shallow: Any, factor: float) -> None:
    settings = QuantizationSettings(4, 4, "strict")
    plan = unfrozen_plan(shallow.model.identity, find_sites(shallow.model.module).signature(), FAST)
    work = start_work(shallow.model, plan, None, Draws(shallow.model, shallow.pictures, 0))
    record = QuantizeInSteps("own", settings, (SearchRanges(), Spoil(factor)), 10).apply(work)
    alone = start_work(shallow.model, plan, None, Draws(shallow.model, shallow.pictures, 0))
    QuantizeInSteps("own", settings, (SearchRanges(),), 10).apply(alone)
    assert [step["kept"] for step in record["steps"]] == [True, False]
    assert record["steps"][1]["after"] is None or factor == 30
    states = (work.model.state_dict(), alone.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def polished(options: PolishOptions) -> tuple[Any, Record]:
    model = Model.open("vitfrost_digits")
    plan = unfrozen_plan(model.identity, find_sites(model.module).signature(), FAST)
    work = start_work(model, plan, None, Draws(model, list(pixels(24)), 0))
    steps = (SearchRanges(), Polish(options))
    return work, QuantizeInSteps("own", QuantizationSettings(4, 4, "strict"), steps, 24).apply(work)


def test_gradient_steps_come_closer_on_images_held_out() -> None:
    work, record = polished(PolishOptions(steps=12, batch=8, every=4))
    step = record["steps"][1]
    assert step["after"] < step["before"]
    assert step["kept"]
    assert step["best_step"] in (4, 8, 12)
    for module in work.model.modules():
        assert not type(module).__name__.startswith("Trainable")
        if isinstance(module, UniformQuantizer):
            assert bool((module.zero_point == module.zero_point.round()).all())


def test_a_loss_that_is_not_finite_ends_it_with_the_best_state(messages: Any) -> None:
    work, record = polished(PolishOptions(steps=6, batch=8, every=2, scales=1e4))
    step = record["steps"][1]
    assert 1 < step["broke_at"] <= 6
    assert f"numbers were not finite at gradient step {step['broke_at']}" in messages()
    assert all(bool(value.isfinite().all()) for value in work.model.state_dict().values())
    assert bool(work.model(pixels(2)).isfinite().all())


@pytest.mark.parametrize("what", ["loss", "gradient", "last gradient"])
def test_what_was_reached_before_a_number_that_is_not_finite_is_kept(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Polishing._loss
    last = 6 if what == "last gradient" else 5

    def broken(self: Polishing, *streams: Any) -> torch.Tensor:
        loss = taken(self, *streams)
        if self.done + 1 == last and what == "loss":
            return loss * torch.nan
        if self.done + 1 == last:
            next(each.grad for each in self.twin.parameters() if each.grad is not None)[0] = torch.inf
        return loss

    falling = iter((0.3, 0.2))  # whether so few steps help differs from processor to processor
    monkeypatch.setattr(Chain, "divergence_of", lambda self, model: next(falling))
    monkeypatch.setattr(Polishing, "_loss", broken)
    step = polished(PolishOptions(steps=6, batch=8, every=10))[1]["steps"][1]
    assert step["broke_at"] == last
    assert step["measured"] == {"0": 0.3, str(last - 1): 0.2}
    assert step["best_step"] == last - 1


def test_where_no_gradient_step_helps_the_model_stays_as_it_is() -> None:
    record = polished(PolishOptions(steps=1, batch=8, codes=0.0, scales=1.0, shifts=0.0))[1]
    assert record["steps"][1]["best_step"] == 0
    assert record["steps"][1]["after"] == record["steps"][1]["before"]


def test_images_held_out_were_not_read_by_a_repair(shallow: Any, tmp_path: Path) -> None:
    given = write_pictures(tmp_path / "pictures", 30)
    draws = Draws(shallow.model, given, 0)
    repaired = torch.cat(list(draws.batches("repair", 20, 8)))
    kept, held_out, record = draws.batch_apart("calibration", 25, 5, 128)
    assert (len(kept), len(held_out), record["images"]) == (20, 5, 25)
    assert "held_out_seen" not in record
    for picture in held_out:
        assert not any(torch.equal(picture, other) for other in (*repaired, *kept))
    later = draws.batch_apart("calibration", 60, 5, 128)[2]
    assert later["images"] == 30
    draws = Draws(shallow.model, given, 0)
    list(draws.batches("repair", 27, 8))
    assert draws.batch_apart("calibration", 25, 5, 128)[2]["held_out_seen"] == 2


def test_a_picture_that_stands_twice_is_held_out_only_where_no_other_is_left(shallow: Any) -> None:
    draws = Draws(shallow.model, list(torch.cat([pixels(6), pixels(6), pixels(4, 1)])), 0)
    kept, held_out, record = draws.batch_apart("calibration", 16, 4, 128)
    assert len(held_out) == 4
    assert not any(torch.equal(picture, other) for picture in held_out for other in kept)
    assert "held_out_seen" not in record


def test_one_image_and_images_of_one_color(shallow: Any) -> None:
    one = torch.full((3, 32, 32), 0.5)
    for images in ([one], [one] * 6):
        lone = compressed(shallow, FAST, images=6, source=images)
        assert bool(lone.module(pixels(4)).isfinite().all())


def broken(model: nn.Module) -> nn.Module:
    """Dead and huge channels, zero gains."""
    state = model.state_dict()
    with torch.no_grad():
        state["blocks.0.norm2.weight"][3] = 0
        state["blocks.1.norm1.weight"][:] = 0
        state["blocks.0.attn.qkv.weight"][5] = 0
        state["blocks.0.mlp.fc1.weight"][:, 7] *= 1e4
        state["blocks.0.mlp.fc2.weight"][2] = 0
    return model


SMALL: dict[str, Any] = {"num_classes": 7}
PVT: dict[str, Any] = SMALL | {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "num_heads": (1, 2, 5, 8), "sr_ratios": (2, 2, 1, 1)}
FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "deit_small_patch16_224": (32, SMALL | {"embed_dim": 48, "depth": 2, "num_heads": 6}),
    "deit_tiny_distilled_patch16_224": (32, SMALL | {"embed_dim": 48, "depth": 2, "num_heads": 3}),
    "swin_tiny_patch4_window7_224": (56, SMALL | {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
    "pvt_v2_b0": (64, PVT),
    "nextvit_small": (64, SMALL | {"depths": (1, 1, 5, 1)}),
}


def chained(model: Model, size: int, steps: tuple[Any, ...]) -> tuple[nn.Module, list[dict[str, Any]]]:
    plan = unfrozen_plan(model.identity, find_sites(model.module).signature(), FAST)
    work = start_work(model, plan, None, Draws(model, list(pixels(10, 1, size)), 0))
    record = QuantizeInSteps("own", QuantizationSettings(4, 4, "strict"), steps, 10).apply(work)
    return work.model, record["steps"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_goes_through_every_step(name: str) -> None:
    size, options = FAMILIES[name]
    model = random_model(name, size, **options)
    all_steps = (*fast.STEPS, Polish(PolishOptions(steps=2, batch=4, every=1)))
    few = {"nextvit_small": 1, "pvt_v2_b0": 3}  # they take long, and are not rotated
    steps = tuple(step for step in all_steps if step.name != "rotation")[: few[name]] if name in few else all_steps
    module, records = chained(model, size, steps)
    assert [record["step"] for record in records] == [step.name for step in steps]
    assert len(records) < 5 or records[1].get("rotated", True) == ("deit" in name)
    assert bool(module(pixels(2, 2, size)).isfinite().all())
    quantized = {name for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer)}
    assert quantized == {site.name for site in find_sites(model.module).linears}


def test_dead_and_huge_channels(shallow: Any) -> None:
    model = replace(shallow.model, module=broken(copy.deepcopy(shallow.model.module)))
    module, records = chained(model, 32, fast.STEPS)
    assert bool(module(pixels(2)).isfinite().all())
    assert all(record["after"] is not None for record in records if record["kept"])


@torch.no_grad()
def test_layers_are_fitted_towards_the_residual_stream_of_the_original(shallow: Any) -> None:
    """With floating point everywhere, the ridge behind a changed layer finds the original again."""
    teacher = shallow.model.module
    changed = copy.deepcopy(teacher)
    install_map_attention(changed)
    changed.blocks[0].mlp.fc2.bias += 1.0
    settings = QuantizationSettings(32, 32, "strict")
    walk = LayerWise(changed, teacher, find_sites(teacher), LayerOptions(settings, ridge=True), {})
    assert len(list(walk.run([pixels(6), pixels(6, 1)]))) == walk.count
    assert torch.allclose(changed(pixels(4, 2)), teacher(pixels(4, 2)), atol=1e-3)


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def states(scratch: Path | None, die_at: int | None = None) -> dict[str, torch.Tensor]:
        model = Model.open("vitfrost_digits")
        plan = unfrozen_plan(model.identity, find_sites(model.module).signature(), FAST)
        work = start_work(model, plan, None, Draws(model, list(pixels(24)), 0))
        work.scratch = scratch
        chain = QuantizeInSteps("own", QuantizationSettings(4, 4, "strict"), (), 24).start(work, pixels(24)[:20], pixels(24)[20:])
        SearchRanges().apply(chain)
        measured = 0

        def divergence_of(module: nn.Module) -> float:
            nonlocal measured
            measured += 1
            if measured == die_at:
                raise Killed
            return Chain.divergence_of(chain, module)

        chain.divergence_of = divergence_of  # type: ignore[method-assign]
        record = Polish(PolishOptions(steps=6, batch=8, every=2)).apply(chain)
        counted.append(measured)
        assert record["best_step"] in (0, 2, 4, 6)
        return chain.model.state_dict()

    counted: list[int] = []
    whole, path = states(None), tmp_path / "artifact.unfinished"
    with pytest.raises(Killed):
        states(path, die_at=3)  # at the start, and after two and four steps
    assert (path / "gradient_steps").is_file()
    again = states(path)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    late = states(path)  # what was killed behind the last step has it, too
    assert all(torch.equal(value, late[name]) for name, value in whole.items())
    assert counted == [4, 3, 1]
    for file in path.iterdir():
        file.write_bytes(b"damaged")
    assert all(torch.equal(value, whole[name]) for name, value in states(path).items())


@pytest.mark.parametrize(
    "methods",
    [(FreezeEntries(0.2), Hallucinate(0.5, by="first", mix="copy"), Compact(0.5)), (FreezeHeads(0.2, kind="dense"),)],
    ids=["entries", "heads"],
)
def test_what_a_killed_run_quantized_is_taken_up(methods: Any, shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, and nothing is left beside the artifact."""
    plan = vitfrost.plan(shallow.statistics, *methods, replace(FAST, heads={"*:0": 8}))
    config = Compress(calibration_images=12, compact_images=8)
    run, walks = LayerWise.run, []

    def counted(self: LayerWise, batches: Any) -> Any:
        walks.append(len(walks))
        return run(self, batches)

    monkeypatch.setattr(LayerWise, "run", counted)

    def made(out: Path) -> dict[str, bytes]:
        vitfrost.compress(shallow.model, plan, statistics=shallow.statistics, images=shallow.pictures, config=config, out=out)
        assert not Path(f"{out}.unfinished").exists()
        return {file.name: file.read_bytes() for file in out.iterdir()}

    whole = made(tmp_path / "whole")
    every, walks[:] = len(walks), []
    assert every == 4
    with monkeypatch.context() as patch:
        patch.setattr(Artifact, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(tmp_path / "again")
    (tmp_path / "again.unfinished" / sorted(each.name for each in (tmp_path / "again.unfinished").iterdir())[0]).write_bytes(b"damaged")
    walks[:] = []
    assert made(tmp_path / "again") == whole
    assert len(walks) == 1


def test_maps_of_eight_bits_may_have_a_uniform_grid(shallow: Any, tmp_path: Path) -> None:
    """Also where entries are frozen, so that a part of the heads is quantized at a time."""
    made = compressed(shallow, FreezeEntries(0.3), Quantize(4, 8, method="fast"), images=24)
    found = install_map_attention(made.module).values()
    kinds = [type(each.map_quantizer) for each in found]
    assert UniformMapQuantizer in kinds
    assert all(
        each.map_quantizer.scale.shape == (each.moving_heads, 1, 1) for each in found if type(each.map_quantizer) is UniformMapQuantizer
    )
    made.save(tmp_path / "artifact")
    again = Artifact.load(tmp_path / "artifact")
    assert [type(each.map_quantizer) for each in install_map_attention(again.module).values()] == kinds
    assert torch.equal(again(pixels(4)), made(pixels(4)))
    with torch.no_grad():
        assert torch.allclose(trainable(made.module)(pixels(4)), made(pixels(4)), atol=1e-4)


@torch.no_grad()
@MADE_ONCE
def test_relu_in_place_of_gelu(shallow: Any, made: Artifact, tmp_path: Path) -> None:
    relu = compressed(shallow, Quantize(3, 3, method="fast", relu=True))
    assert relu.passes["relu"] == {"blocks": len(find_sites(relu.blank()).feed_forward)}
    assert relu.quantization["steps"][0]["before"] > 0.0 == made.quantization["steps"][0]["before"]
    assert isinstance(relu.module.blocks[0].mlp.act, nn.ReLU)
    assert isinstance(shallow.model.module.blocks[0].mlp.act, nn.GELU)
    relu.save(tmp_path / "relu")
    loaded = Artifact.load(tmp_path / "relu")
    assert loaded.plan.quantize == Quantize(3, 3, method="fast", relu=True)
    assert torch.equal(loaded.module(pixels(4)), relu.module(pixels(4)))
    assert "relu" not in made.plan.plain()["quantize"]


def test_relu_where_there_is_none(shallow: Any) -> None:
    for without in ({"method": "repq"}, {"method": "fast", "weights": 32, "activations": 32}):
        with pytest.raises(VitfrostError, match="relu needs a quantizer that fits layers to it"):
            Quantize(relu=True, **without)
    gated = random_model("eva02_tiny_patch14_224", depth=1, img_size=28)
    plan = unfrozen_plan(gated.identity, find_sites(gated.module).signature(), Quantize(4, 8, method="fast", relu=True))
    with pytest.raises(VitfrostError, match=r"blocks\.0\.mlp is a \w+ feed-forward block, whose activation is part of a gate"):
        vitfrost.compress(gated, plan, images=shallow.pictures)
