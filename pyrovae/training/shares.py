"""Programs on the shares of several processes: the plates over the rows, and the weights that make losses add up.

One process weighs site i of a batch of B data by s_i(B), the product of its scales. A process with r of these data runs
the programs on r rows. The losses of all processes then add up to that of one if a site counts by

    s_i(B) / s_i(r) inside the plates over the rows,   r / B s_i(B) / s_i(r) outside,

so that what lies outside counts once, and a scale such as N / B, that of a subsampling plate, is that of the batch.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities import Program
from pyrovae.execution import Share, Workers
from pyrovae.training.batch_sites import AnyBatches, BatchSite, find_changing, sites_of

_ROUNDING = 1e-5  # relative, between scales


@dataclass(frozen=True)
class Sharing:
    """Way of programs to run on a share of a batch.

    Attributes:
        plates: Names of the plates over the rows.
        rows: Names of sites without such a plate that have a row per datum.
        powers: By site, the power of r / B by which its log density is multiplied, unless 0.
    """

    plates: frozenset[str]
    rows: frozenset[str]
    powers: Mapping[str, int]

    def counts_once(self, site: BatchSite) -> bool:
        """Return whether a site lies outside the plates over the rows and has no row per datum."""
        return site.name not in self.rows and self.plates.isdisjoint(frame.name for frame in site.frames)

    def weighed(self, share: Share) -> AbstractContextManager[Any]:
        """Weigh the sites so that the losses of all shares add up to that of the batch."""
        if not self.powers:
            return nullcontext()
        return _Weigh(self.powers, (share.rows.stop - share.rows.start) / share.size)


class _Weigh(Messenger):
    """Handler that multiplies log densities by powers of a factor."""

    def __init__(self, powers: Mapping[str, int], factor: float) -> None:
        super().__init__()
        self.powers, self.factor = powers, factor

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and msg["name"] in self.powers:
            msg["scale"] = msg["scale"] * self.factor ** self.powers[msg["name"]]


def find_sharing(
    sites: list[BatchSite], model: Program, guide: Program, batches: AnyBatches, workers: Workers
) -> Sharing | None:
    """Find how the processes share the batches, by a run on fewer rows; None for a single process.

    Args:
        sites: Sites of a full batch.
        model: Pyro program p(z) p(x|z).
        guide: Pyro program q(z|x), with the model's arguments.
        batches: Batches of the training data.
        workers: Processes.

    Raises:
        ValueError: If the programs do not run on some rows of a batch, or their losses do not add up, as with a factor
            outside the plates that depends on the rows.
    """
    batch = min(batches.batch_size, batches.size)
    if workers.size == 1 or batches.size == 1:
        return None
    fewer = max(batch // workers.size, 1)
    fewer = fewer if fewer < batch else 2
    try:
        others = {(site.program, site.name): site for site in sites_of(model, guide, batches, fewer)}
    except Exception as error:
        raise ValueError(
            f"each of several processes runs the programs on some rows of a batch, but they do not run on {fewer} of "
            f"{batch} rows ({str(error).splitlines()[0] if str(error) else type(error).__name__}); train with one "
            "process"
        ) from error
    if others.keys() != {(site.program, site.name) for site in sites}:
        raise ValueError(
            "the names of the sites depend on the number of rows, so several processes cannot share a batch; use a "
            "vectorized plate over the rows, or train with one process"
        )
    sharing = _compare(sites, others, batch, fewer)
    once = [site for site in sites if sharing.counts_once(site)]
    observed = [site for site in once if site.is_observed]
    latents = {site.name for site in once if not site.is_observed}
    changing = find_changing(observed, latents, model, guide, batches, fewer)
    if changing is not None:
        raise ValueError(
            f"site {changing.name!r} of the {changing.program} is an observation or factor outside a plate over the "
            "rows, but its log density depends on the rows of the batch, so losses of several processes do not add up; "
            "put it into the plate, one term per row, or train with one process"
        )
    return sharing


def _compare(sites: list[BatchSite], others: Mapping[tuple[str, str], BatchSite], batch: int, fewer: int) -> Sharing:
    """Compare the sites of runs on a batch and on fewer rows."""
    plates: set[str] = set()
    rows: set[str] = set()
    powers: dict[str, int] = {}
    drawn = {site.name for site in sites if site.program == "guide" and not site.is_observed}
    following = {f.name for s in sites for f in s.frames if f.size == -1 and s.shape != others[s.key].shape}
    for site in sites:
        other = others[site.key]
        follows = site.shape != other.shape
        sizes = {frame.name: frame.size for frame in other.frames}
        over_rows = {frame.name for frame in site.frames if (frame.size, sizes.get(frame.name)) == (batch, fewer)}
        over_rows |= {f.name for f in site.frames if f.name in following and (follows or site.name not in drawn)}
        changed = {frame.name for frame in site.frames if frame.size != sizes.get(frame.name)}
        where = f"site {site.name!r} of the {site.program}"
        if len(over_rows) > 1 or changed - over_rows:
            raise ValueError(
                f"{where} lies in plates {sorted(over_rows | changed)}, whose sizes depend on the batch, so several "
                "processes cannot share its rows; use one plate over the rows, or train with one process"
            )
        plates |= over_rows
        inside = bool(over_rows) or follows
        if inside and not over_rows:
            rows.add(site.name)
        power = int(not inside) + _power_of_scale(site, other, batch, fewer)
        if powers.setdefault(site.name, power) != power:
            raise ValueError(
                f"{where} has another scale or other plates there than in the model, so that losses of several "
                "processes do not add up; use the same in both, or train with one process"
            )
    if not plates and not rows:
        raise ValueError(
            "no plate takes its size from the rows of the batch, so several processes cannot share them; write "
            "pyro.plate(name, len(x)), or train with one process"
        )
    return Sharing(frozenset(plates), frozenset(rows), {name: power for name, power in powers.items() if power})


def _power_of_scale(site: BatchSite, other: BatchSite, batch: int, fewer: int) -> int:
    """Find the power of 1 / rows in the scale of a site: 0 for a constant, 1 for one such as N / B."""
    scale, less = (torch.as_tensor(each.scale, dtype=torch.float64) for each in (site, other))
    if scale.shape != less.shape:  # a weight for each row
        row_dim = next((d for d, size in enumerate(scale.shape) if (size, less.shape[d]) == (batch, fewer)), None)
        scale = scale if row_dim is None else scale.narrow(row_dim, 0, fewer)
    for power in (0, 1):
        expected = scale * (batch / fewer) ** power
        if less.shape == expected.shape and bool(((less - expected).abs() <= _ROUNDING * expected.abs()).all()):
            return power
    raise ValueError(
        f"site {site.name!r} of the {site.program} carries a scale that depends on the batch, but not as 1 / rows, so "
        "losses of several processes do not add up; train with one process"
    )


def check_enumerated(elbo: ELBO, sites: list[BatchSite], batches: AnyBatches, sharing: Sharing | None) -> None:
    """Check that no discrete latent outside the plate over the rows is summed out of some of the data.

    Raises:
        ValueError: If one is, since its sum joins all data.
    """
    if not isinstance(elbo, TraceEnum_ELBO) or (batches.batch_size >= batches.size and sharing is None):
        return
    for site in sites:
        if site.program == "model" and site.enumerated and not site.over_rows:
            raise ValueError(
                f"TraceEnum_ELBO sums out {site.name!r}, which lies outside the plate over the data, so that its sum "
                f"joins all data; train on all at once (batch_size={batches.size}) with one process, or draw "
                f"{site.name!r} in the guide"
            )


def check_alike(workers: Workers, parameters: list[Tensor], values: list[Any]) -> None:
    """Check that all processes start alike: parameters, first batch, and random state.

    Raises:
        ValueError: If they differ.
    """
    if workers.size == 1:
        return
    tensors = {
        "parameters": parameters,
        "data": [value for value in values if isinstance(value, Tensor)],
        "random states": [torch.get_rng_state()],
    }
    different = workers.differing(tensors)
    if different:
        raise ValueError(
            f"all processes must start alike, but their {' and '.join(different)} differ; call pyro.set_rng_seed with "
            "the same number in each, before the programs are made, and give all the same data"
        )
