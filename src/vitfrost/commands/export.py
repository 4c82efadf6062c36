"""The command `export`."""

from __future__ import annotations

from pathlib import Path

from ..configs import Export
from .arguments import ArtifactOrNone, Flags, ModelFlags
from .flags import Given, Group, takes


@takes(Group.of(Export))
def export(
    artifact: ArtifactOrNone = None,
    /,
    *,
    given: Given,
    out: Path,
    model: Flags = ModelFlags(),
    images: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model or an artifact as a graph that runs without torch, checked against the original.

    Args:
        out: folder for the exported model.
        images: folder of real pictures, to calibrate int8 and to compare with the original.
        overwrite: replace an existing folder.
    """
    config = given.config(Export)
    from .. import export as verb
    from ..files import read_json
    from ..runtime.folder import EXPORT_FILE, model_bytes

    loaded = model.open(artifact)
    folder = verb(loaded, config, out=out, images=images, overwrite=overwrite)
    about = read_json(folder / EXPORT_FILE)
    parity = about["parity"]
    what, on = "logits", f"{parity['images']} {parity['pixels']} ({about['checked']['runtime']})"
    same = f"best classes agree on {100 * parity['agreement']:.1f} % of {on}" if "agreement" in parity else None
    if same is None:
        what, same = "features", f"their cosine is {parity['cosine']:.6f} on {on}"
    print(f"{folder}: {model_bytes(folder, about) / 1e6:.3f} MB; {what} differ by at most {parity['max_abs_difference']:.2e}, {same}")
