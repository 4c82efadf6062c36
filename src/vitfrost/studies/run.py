"""From a recipe with a grid, or a list of such recipes, to pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..configs import Run
from ..distributed import contained
from ..errors import VitfrostError
from ..files import refuse_existing
from ..progress import say
from ..reporting.build import REPORT
from ..runs.run import with_paths
from ..runtime.runtimes import reason_of
from ..vit.load import find_device
from .recipe import load_study, load_study_list
from .several import report_several
from .stages import GridRun


def run_study(
    recipe: str | Path,
    out: str | Path,
    config: Run = Run(),
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Measure all plans of a recipe's grid and make their page, in the folder `out`, which is returned.

    Options are those of `vitfrost.run`. The recipes of a list run one after the other, each in its own folder below `out`, and one more
    page compares them. Raises VitfrostError as `vitfrost.run` does; recipes of a list that cannot be run are named at the end.
    """
    find_device(device)
    folder = Path(out)
    listed = load_study_list(recipe)
    if listed is None:
        loaded = with_paths(load_study(recipe, quick=config.quick), config)
        return GridRun(loaded, folder, progress, device).run(resume)
    refuse_existing(folder, overwrite=True)
    run_one = partial(run_study, config=config, device=device, progress=progress)
    made: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for number, path in enumerate(listed, 1):
        target = folder / path.stem
        say(f"({number}/{len(listed)}) {path.name} -> {target}")
        try:
            made[path.stem] = run_one(path, target, resume=resume and target.is_dir())
        except contained() as error:
            failed[path.stem] = reason_of(error)
            say(f"({number}/{len(listed)}) {path.name} cannot be run: {failed[path.stem]}")
    if made:
        report_several(made, folder / REPORT)
    if failed:
        first = next(iter(failed))
        raise VitfrostError(
            f"{len(failed)} of {len(listed)} recipes did not run ({', '.join(failed)}); the first, {first}: {failed[first]}; "
            f"mend it and add --resume"
        )
    return folder
