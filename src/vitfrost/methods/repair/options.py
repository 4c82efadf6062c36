"""How a repair is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ...errors import VitfrostError

Method = Literal["ridge", "bias"]


@dataclass(frozen=True)
class RepairOptions:
    """`ridge`: dense constants of frozen heads, weights and biases of output projections and second feed-forward projections; `bias`:
    biases of those projections only.

    `penalty` holds weights to what they were, relative to the mean variance of an input. `prefix_weight`: what a prefix token's row
    counts, where a patch's counts 1. `skip_last`: how many of the last blocks are left as they are; None leaves the last one where the
    classifier reads prefix tokens only: its patches then mean nothing, and a few hundred class tokens do not determine a layer.
    `constants_penalty` holds dense constants to the mean maps, relative to the mean square of a value; None leaves them.
    """

    # Chosen on DeiT-Tiny with a third of its maps hallucinated, blocks of rank d/2 and a fifth of the other weights frozen, fitted on 200
    # calibration images and judged by the KL divergence on 200 others. Penalty 0.01 / 0.1 / 0.3 / 1 with equal rows: 1.18 / 1.05 / 1.03 /
    # 1.08 nats; 0.1 with prefix weight 20: 0.91. The last block fitted as well: 1.83 (0.01), 1.46 (0.1). The penalty of constants was not
    # chosen among others (docs/results/freezing.md has what it does).
    method: Method = "ridge"
    penalty: float = 0.1
    prefix_weight: float = 20.0
    roles: tuple[Literal["proj", "fc2"], ...] = ("proj", "fc2")
    skip_last: int | None = None
    constants_penalty: float | None = 0.01

    def plain(self) -> dict[str, Any]:
        """For a record."""
        return asdict(self) | {"roles": list(self.roles)}


def repair_options(repair: str | RepairOptions | None, penalty: float | None) -> RepairOptions | None:
    """The options of a method's name (None: no repair). Raises VitfrostError for an unknown one, and for a penalty out of range or for
    what has none."""
    if isinstance(repair, RepairOptions) or (repair is None and penalty is None):
        return repair
    if repair is None:
        raise VitfrostError("a repair penalty without a repair; add --repair ridge, or leave the penalty out")
    if repair not in get_args(Method):
        raise VitfrostError(f"there is no repair '{repair}'; choose {' or '.join(get_args(Method))}")
    if penalty is None:
        return RepairOptions(method=repair)  # type: ignore[arg-type]
    if repair == "bias":
        raise VitfrostError("a repair of biases has no penalty; leave it out, or repair with ridge")
    if not 0 <= penalty < float("inf"):
        raise VitfrostError(f"the repair penalty {penalty} is out of range; give a number of at least 0, such as 0.01")
    return RepairOptions(penalty=penalty)
