"""Train the bundled model `vitfrost_digits` with recipes/training/digits.yaml and put its weights into the package.

    OMP_WAIT_POLICY=passive python scripts/train_digits.py

About four minutes on one CPU core. The same machine, seed and number of threads give the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch

from vitfrost import Train, train
from vitfrost.artifact import WEIGHTS_FILE
from vitfrost.example.data import write_digit_images
from vitfrost.files import atomic_file
from vitfrost.progress import messages_on_stderr
from vitfrost.training.train import ARTIFACT, result_of
from vitfrost.vit.digits import WEIGHTS

RECIPE = Path(__file__).parents[1] / "recipes" / "training" / "digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", action="append", default=[], help="a variant of the recipe, such as quick")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="weights file; the package's own if not given")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    with messages_on_stderr(), tempfile.TemporaryDirectory() as folder:
        write_digit_images(folder, ("training", "test"))
        run = train(RECIPE, Path(folder) / "run", Train(variants=tuple(args.variant), data=folder))
        row = result_of(run)
        assert row is not None
        print(f"held-out accuracy {row.top1:.2f} % of {row.images} images")
        with atomic_file(args.out) as temporary:
            shutil.copyfile(run / ARTIFACT / WEIGHTS_FILE, temporary)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
