"""A backbone with a share of its heads frozen or windowed, seen through a task head: intersection over union and absolute error.

    python benchmarks/dense_task.py --weights dinov2/model.safetensors --head decoder.onnx --calibration DIR --images DIR --work DIR \
        --json docs/results/saliency.json --cases "frozen 25%" "frozen 25%, repaired"

Nothing is fetched. `--head`: the decoder as an ONNX file that reads patches [B, C, rows, columns]. Statistics, searches (measurement by
measurement), artifacts and a row for every case lie in `--work` and are not made again. `--bf16`: searches, repairs and rows compute the
models' products in bfloat16, the original's as well; statistics and the sums that repairs are fitted to are in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vitfrost as vf
from vitfrost.evaluation.description import executed_macs
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.files import read_json, write_json
from vitfrost.images.batches import BatchLoader
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.methods.output_distance import distances
from vitfrost.model import Model
from vitfrost.plans.heads import HeadPlan, LayerPlan
from vitfrost.plans.schema import Plan
from vitfrost.plans.select import share
from vitfrost.vit.stream import ResidualStream

DINO = "vit_small_patch14_dinov2"
SEARCHED, BY_EFFECT = "searched", "by effect"
SHARES = (0.1, 0.25, 0.5)
PLANS: dict[str, Sequence[Any]] = {
    **{f"frozen {share:.0%}": [vf.FreezeHeads(share, by="fisher")] for share in SHARES},
    **{f"windowed {side} x {side}, {share:.0%}": [vf.WindowHeads(share, side)] for side in (9, 15) for share in SHARES[1:]},
    "frozen 10%, windowed 15 x 15, 15%": [vf.FreezeHeads(0.1, by="fisher"), vf.WindowHeads(0.15, 15)],
    "frozen 10%, windowed 15 x 15, 40%": [vf.FreezeHeads(0.1, by="fisher"), vf.WindowHeads(0.4, 15)],
    "frozen 25%, windowed 15 x 15, 25%": [vf.FreezeHeads(0.25, by="fisher"), vf.WindowHeads(0.25, 15)],
}
"""`frozen 25%, searched` takes as many multiply-accumulates as `frozen 25%`, of heads that a search chose; in `frozen 25%, windows 15,
searched` it froze heads or windowed them 15 x 15; `windowed 15 x 15, 25%, by
effect` the heads that change the tokens least when each is changed alone; `, repaired` refits any of them."""


def with_heads(plan: vf.Plan, heads: Mapping[tuple[int, int], HeadPlan]) -> vf.Plan:
    """A plan whose heads are computed but for those given by layer and number."""
    layers = []
    for place, layer in enumerate(plan.layers):
        lines = [heads.get((place, number), HeadPlan(source="computed")) for number in range(len(layer.heads))]
        layers.append(LayerPlan.model_validate(layer.model_dump() | {"heads": [line.model_dump() for line in lines]}))
    return plan.model_copy(update={"layers": tuple(layers)})


class Work:
    """What is made once and kept in a folder."""

    def __init__(self, model: Model, options: argparse.Namespace):
        self.model, self.options, self.folder = model, options, options.work
        path = self.folder / "statistics.safetensors"
        if not path.is_file():
            config = vf.Calibrate(limit=options.calibration_images, sensitivity=True, detail="heads")
            vf.calibrate(model, options.calibration, config, out=path)
        self.statistics = vf.Statistics.load(path)

    def plan(self, name: str) -> vf.Plan:
        """The plan of that name."""
        if name.endswith(BY_EFFECT):
            return self.by_effect(PLANS[name.removesuffix(f", {BY_EFFECT}")])
        if not name.endswith(SEARCHED):
            return vf.plan(self.statistics, *PLANS[name])
        if (found := self.folder / f"{name}.yaml").is_file():
            return Plan.load(found)
        like, _, side = name.removesuffix(f", {SEARCHED}").partition(", windows ")
        equal = vf.compress(self.model, self.plan(like), statistics=self.statistics)
        over: tuple[Any, ...] = ("heads", "windows") if side else ("heads",)
        methods = [vf.WindowHeads(window=int(side))] if side else []
        budget = vf.Search(
            target_macs=executed_macs(equal) / executed_macs(self.model) + 1e-6, over=over, images=self.options.search_images,
            batch_size=4,
        )  # fmt: skip
        with self.products():
            out, record = self.folder / f"{name}.yaml", self.folder / f"search{side}.json"
            return vf.search(
                self.model, str(self.options.calibration), budget, *methods, statistics=self.statistics, record=record, resume=True, out=out
            )

    def by_effect(self, methods: Sequence[Any]) -> vf.Plan:
        """The heads that change the tokens least, method after method."""
        chosen: dict[tuple[int, int], HeadPlan] = {}
        for method in methods:
            every = vf.plan(self.statistics, replace(method, ratio=1.0))
            lines = {(place, number): head for place, layer in enumerate(every.layers) for number, head in enumerate(layer.heads)}
            effects = self.effects(every, "frozen" if isinstance(method, vf.FreezeHeads) else f"windowed_{method.window}")
            left = sorted(lines.keys() - chosen.keys(), key=lambda key: (effects[f"{key[0]}.{key[1]}"], key))
            chosen |= {key: lines[key] for key in left[: share(method.ratio, len(lines))]}
        return with_heads(vf.plan(self.statistics, *methods), chosen)

    @torch.inference_mode()
    def effects(self, every: vf.Plan, title: str) -> dict[str, float]:
        """The relative error of the tokens with each head of a plan changed alone, on the images of the searches."""
        path = self.folder / f"effects_{title}.json"
        known: dict[str, float] = read_json(path) if path.is_file() else {}
        lines = {(place, number): head for place, layer in enumerate(every.layers) for number, head in enumerate(layer.heads)}
        if all(f"{place}.{number}" in known for place, number in lines):
            return known
        images = open_images(self.options.calibration).subset(self.options.search_images, 0)
        pixels = next(iter(BatchLoader(images, Preprocess(self.model.preprocessing), self.options.search_images))).pixels
        with self.products():
            original = ResidualStream(self.model.module)
            streams = [original.enter(pixels)]
            for block in range(len(original.blocks)):
                streams.append(original.run(streams[-1], block, block + 1))
            aim = original.leave(streams[-1]).double()
            for (place, number), head in lines.items():
                if f"{place}.{number}" in known:
                    continue
                plan = with_heads(every, {(place, number): head})
                changed = ResidualStream(vf.compress(self.model, plan, statistics=self.statistics).module)
                block = changed.block_of(plan.layers[place].site)
                found = changed.leave(changed.run(streams[block], block)).double()
                known[f"{place}.{number}"] = float(distances("tokens", aim, found).mean())
                write_json(path, known)
        return known

    def products(self) -> Any:
        """Within it, products are in bfloat16 where they are wanted so."""
        return torch.autocast("cpu", torch.bfloat16) if self.options.bf16 else nullcontext()

    def artifact(self, case: str) -> Path:
        """The folder of a case, made where it is not there."""
        folder: Path = self.folder / case.replace(", ", "-").replace(" ", "_")
        if not folder.is_dir():
            name, _, repaired = case.partition(", repaired")
            repair = vf.Repair(images=self.options.repair_images) if case.endswith(", repaired") else None
            assert not repaired
            vf.compress(self.model, self.plan(name), statistics=self.statistics, images=self.options.calibration, repair=repair, out=folder)
        return folder

    def rows(self, cases: Sequence[str]) -> dict[str, Any]:
        """Rows of the cases; those that have none yet are measured in one pass over the images, beside the original."""
        folders = {case: self.artifact(case) for case in cases}
        path = self.folder / f"rows_{self.options.limit}{'_bf16' * self.options.bf16}.json"
        known: dict[str, Any] = read_json(path) if path.is_file() else {}
        left = [case for case in cases if case not in known]
        if left:
            models: dict[str, Model] = {case: vf.Artifact.load(folders[case]) for case in left}
            config = vf.Evaluate(limit=self.options.limit, batch_size=2)
            with self.products():
                made = evaluate_many(models, self.options.images, reference=self.model, config=config, head=self.options.head)
            whole = executed_macs(self.model)
            for case, row in zip(left, made, strict=True):
                heads = [head for layer in models[case].plan.layers for head in layer.heads]  # type: ignore[attr-defined]
                counts = {source: sum(head.source == source for head in heads) for source in ("frozen", "windowed")}
                about = counts | {"heads": len(heads), "macs_share": executed_macs(models[case]) / whole}
                known[case] = about | row.model_dump(mode="json")
            write_json(path, known)
        return {case: known[case] for case in cases}


def shown(case: str, row: dict[str, Any]) -> str:
    """One line of figures with their intervals."""
    patches, head = row["features"]["likeness"]["patches"], row["features"]["head"]
    return (
        f"{case:44s} {row['frozen']:2d} frozen, {row['windowed']:2d} windowed of {row['heads']}  macs {row['macs_share']:.3f}  "
        f"IoU {head['overlap']:.3f} {head['overlap_interval']}  error {head['absolute_error']:.4f} {head['absolute_error_interval']}  "
        f"patches {patches['cosine']:.4f} {patches['cosine_interval']}"
    )


def main() -> None:
    """Measure the cases, print a line for each and write them all where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DINO)
    for name in ("weights", "head", "calibration", "images", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", required=True, metavar="CASE")
    parser.add_argument("--bf16", action="store_true", help="compute the products of models in bfloat16")
    for name, count in (("calibration-images", 32), ("search-images", 4), ("repair-images", 64), ("limit", 100)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = Model.open(options.model, weights=options.weights, outputs="tokens", options={"num_classes": 0})
    work = Work(model, options)
    rows = work.rows(options.cases)
    for case, row in rows.items():
        print(shown(case, row), flush=True)
    names = ("model", "bf16", "calibration_images", "search_images", "repair_images", "limit")
    settings = {name: getattr(options, name) for name in names}
    write_json(options.json, {"settings": settings, "weights": model.state_hash, "image_size": model.image_size, "rows": rows})


if __name__ == "__main__":
    main()
