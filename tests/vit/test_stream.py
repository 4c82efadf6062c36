"""A model that runs from a block on gives what it gives as a whole, in every family; the flat test over architectures checks all sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitfrost.errors import UnsupportedModel
from vitfrost.model import Model
from vitfrost.vit.families import find_sites, install_map_attention
from vitfrost.vit.stream import ResidualStream, output_in_place_of

MODELS: dict[str, Callable[[], Model]] = {
    "distilled": lambda: Model.open("deit_tiny_distilled_patch16_224", weights="random", image_size=(48, 80), options={"depth": 2}),
    "registers": lambda: Model.open(
        "vit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 2, "reg_tokens": 3, "init_values": 0.1, "pre_norm": True}
    ),
    "average pooling": lambda: Model.open(
        "vit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 2, "global_pool": "avg", "class_token": False}
    ),
    "swin": lambda: Model.open(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=40,
        options={"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "strict_img_size": True},
    ),
    "pvt": lambda: Model.open(
        "vitfrost_pvt_tiny", weights="random", image_size=(64, 96), options={"depths": (1, 2, 1, 1), "embed_dims": (16, 32, 40, 64)}
    ),
    "pvt_v2": lambda: Model.open(
        "pvt_v2_b0", weights="random", image_size=(64, 96), options={"depths": (1, 1, 1, 2), "embed_dims": (16, 32, 40, 64)}
    ),
    "pvt_v2 linear": lambda: Model.open(
        "pvt_v2_b2_li", weights="random", image_size=64, options={"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64)}
    ),
    "nextvit": lambda: Model.open("nextvit_small", weights="random", image_size=64, options={"depths": (1, 1, 5, 1)}),
}


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_what_runs_from_a_block_on_is_the_whole_model(kind: str) -> None:
    """Every block reads and puts out the bits that it does in the whole; so does the head, from whatever block it is run."""
    loaded = MODELS[kind]()
    model, names = loaded.module, [site.name.rpartition(".")[0] for site in find_sites(loaded.module).feed_forward]
    install_map_attention(model)
    stream = ResidualStream(model)
    assert stream.names == names
    pixels = torch.randn(3, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[Tensor, Tensor]] = []
    handles = [block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output))) for block in stream.blocks]
    whole = model(pixels)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(names)
    current = stream.enter(pixels)
    for index, (read, put_out) in enumerate(seen):
        assert torch.equal(current, read)
        assert torch.equal(stream.leave(stream.run(current, index)), whole)
        assert torch.equal(stream.through(index, current), put_out)
        current = stream.run(current, index, index + 1)
    assert torch.equal(stream.leave(current), whole)
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_a_layer_is_found_in_its_block() -> None:
    stream = ResidualStream(MODELS["swin"]().module)
    assert [stream.block_of(f"{name}.attn.qkv") for name in stream.names] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="in no block"):
        stream.block_of("patch_embed.proj")


def test_a_model_that_does_more_than_its_blocks_is_refused() -> None:
    model = MODELS["distilled"]().module
    ResidualStream(model)
    model.register_forward_hook(lambda _, inputs, output: 2 * output)
    with pytest.raises(UnsupportedModel, match="something else than its blocks"):
        ResidualStream(model)


def test_an_output_stands_in_for_a_module_only_meanwhile() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    before, own = copy.deepcopy(model.state_dict()), list(model.modules())
    with output_in_place_of(model, "1.0", torch.full((2, 4), 5.0)):
        assert torch.equal(model(torch.zeros(2, 3)), torch.full((2, 4), 5.0))
    assert list(model.modules()) == own
    assert model.state_dict().keys() == before.keys()
