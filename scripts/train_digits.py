"""Train the bundled model `vitfrost_digits` on scikit-learn's handwritten digits and write its weights.

    OMP_WAIT_POLICY=passive python scripts/train_digits.py

Two CPU cores, two to five minutes (waiting passively matters where the cores are shared); held-out accuracy about 99 %.
The same machine, seed and number of threads give the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitfrost.example.data import Split, load_split
from vitfrost.files import atomic_file
from vitfrost.images.preprocess import Preprocess
from vitfrost.vit.digits import MODEL_NAME, WEIGHTS
from vitfrost.vit.load import create_model


def preprocessed(model: nn.Module, name: Split) -> tuple[Float[Tensor, "images 1 32 32"], Int64[Tensor, " images"]]:
    """One split as the model sees it at evaluation; the three equal channels are kept as one."""
    from timm.data import resolve_model_data_config

    preprocess = Preprocess(resolve_model_data_config(model))
    images, labels = load_split(name)
    pixels = torch.stack([preprocess(Image.fromarray(image).convert("RGB")) for image in images])
    return pixels[:, :1].contiguous(), torch.from_numpy(labels)


def augmented(images: Float[Tensor, "n 1 h w"], generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Random rotation (15 degrees), scale (12 %), shear (0.15) and shift (one and a quarter of the original pixels) of each image."""
    n = len(images)

    def uniform(limit: float) -> Float[Tensor, " n"]:
        return (2 * torch.rand(n, generator=generator) - 1) * limit

    angle, shear = uniform(math.radians(15)), uniform(0.15)
    width, height = 1 + uniform(0.12), 1 + uniform(0.12)
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * width, (shear - sin) * height, uniform(0.3125), sin * width, cos * height, uniform(0.3125)]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def accuracy(model: nn.Module, images: Float[Tensor, "n 1 h w"], labels: Int64[Tensor, " n"]) -> float:
    """Top-1 accuracy in percent."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(part.expand(-1, 3, -1, -1)).argmax(1) for part in images.split(128)])
    return 100 * (predicted == labels).double().mean().item()


def train(args: argparse.Namespace) -> nn.Module:
    """AdamW with a warm-up and a cosine, label smoothing, and an exponential moving average of the weights, which is returned.

    Part of the patches is left out (a regulariser, and a third of the time) in all but the last fifth of the epochs.
    """
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = create_model(MODEL_NAME, patch_drop_rate=args.patch_drop).train()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(args.ema))
    images, labels = preprocessed(model, "training")
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98))
    steps_per_epoch = len(images) // args.batch
    steps, warm_up = args.epochs * steps_per_epoch, 2 * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))
    )
    started = time.perf_counter()
    for epoch in range(args.epochs):
        if epoch == args.epochs - args.epochs // 5:
            model.patch_drop = nn.Identity()
        order = torch.randperm(len(images), generator=generator)[: steps_per_epoch * args.batch]
        total = 0.0
        for chosen in order.split(args.batch):
            logits = model(augmented(images[chosen], generator).expand(-1, 3, -1, -1))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item()
        print(f"epoch {epoch + 1:3d}/{args.epochs}  loss {total / steps_per_epoch:.4f}  {time.perf_counter() - started:6.1f} s", flush=True)
    return average.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=48, help="images per step")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--patch-drop", type=float, default=0.5, help="share of the patches left out, but for the last fifth of the epochs")
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the average of the weights, per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    model = train(args)
    images, labels = preprocessed(model, "test")
    print(f"held-out accuracy {accuracy(model, images, labels):.2f} % of {len(labels)} images")
    with atomic_file(args.out) as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    print(f"{args.out}: {os.path.getsize(args.out) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
