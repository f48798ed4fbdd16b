"""The way in which programs run on K draws for N data, found by comparing small runs with runs of single draws."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.densities.arguments import Whole, has_data, is_per_datum, num_data, take
from pyrovae.densities.auxiliary import AuxiliarySite, check_rows, check_separate
from pyrovae.densities.coverage import MissedMass, missed_mass
from pyrovae.densities.data_plate import (
    DataPlate,
    Plates,
    find_data_plate,
    given_sites,
    is_ambiguous,
    plates_of,
    replaced_latents,
    run_once,
)
from pyrovae.densities.masks import is_partial, same_mask
from pyrovae.densities.streamed import Streamed
from pyrovae.densities.sum_checks import difference_of_sums, reason_against_sums, summable_latents
from pyrovae.densities.traces import ParticleTrace, Program, sample_sites
from pyrovae.densities.vectorized import How, VectorizedProgram, stack_latents

ROWS = (5, 7, 11, 13)  # numbers of data of the check; the first that is no width of an argument
_RUNS_OF_GIVEN = 4  # runs that show whether the density of a given site depends on draws
_WAYS: tuple[How, ...] = ("broadcast", "tiled")

# Largest relative differences of log densities for each of these ways.
_ROUNDING = {torch.float32: (5e-5, 1e-3), torch.float64: (1e-9, 1e-6)}

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


class TiledWarning(UserWarning):
    """A program uses dimensions by their position, so that the rows of the data are repeated for each draw."""


class Way(NamedTuple):
    """How programs run on draws; the fields are those of `VectorizedProgram`."""

    how: How
    depth: int
    data_dim: int | None
    divisible: bool
    summed: frozenset[str] = frozenset()
    discrete: frozenset[str] = frozenset()
    own_data: int | None = None
    missed: MissedMass | None = None
    left_out: Mapping[str, frozenset[str]] = {}

    def program(
        self, name: str, program: Program, auxiliaries: Mapping[str, AuxiliarySite] | None = None
    ) -> VectorizedProgram:
        """Return a program that runs so; only the model has sites to sum out."""
        sums = (self.summed, self.discrete) if name == "model" else (frozenset(), frozenset())
        return VectorizedProgram(
            program,
            name,
            self.how,
            self.depth,
            self.data_dim,
            self.divisible,
            *sums,
            auxiliaries=auxiliaries or {},
            own_data=self.own_data,
            missed=self.missed if name == "guide" else None,
            left_out=self.left_out.get(name, frozenset()),
        )


class _NotPerDatumError(ValueError):
    """The programs have no density per datum."""


class _Draws(NamedTuple):
    """Latents and log densities of some data.

    Attributes:
        latents: Values by site, each with shape (K, N, ...).
        model: Log densities of the model's sites, with shape (K, N).
        guide: Log densities of the guide's sites, with shape (K, N); None without any.
    """

    latents: dict[str, Tensor]
    model: Tensor
    guide: Tensor | None

    def at(self, draws: slice) -> "_Draws":
        """Select draws."""
        guide = None if self.guide is None else self.guide[draws]
        return _Draws({name: value[draws] for name, value in self.latents.items()}, self.model[draws], guide)

    @property
    def densities(self) -> Tensor:
        """Both log densities, with shape (1 or 2, K, N)."""
        return torch.stack([self.model] if self.guide is None else [self.model, self.guide]).double()


_DEPENDS_ON_OTHERS = (
    "the log density of a datum depends on which other data the program runs on, or on their order (such as x - "
    "x.mean(0), or a tensor argument of leading length N that is not one row per datum), so log p(x_n) is not defined; "
    "use statistics of the training data, computed once, or pass such a tensor as Whole(tensor)"
)


class WaySearch:
    """Search for the way to run programs on draws.

    Args:
        programs: The model and, if any, the guide, by name.
        args: Positional arguments of both programs, the data first, with shape (N, ...).
        kwargs: Keyword arguments of both programs.
        plate: Name of the plate over the data; None to find it.
        given: Names of the latents that are not summed out, for the model alone; None for all.
        auxiliaries: Auxiliary sites by program and name.
        restore: Function that restores the state of the programs before the search.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        plate: str | None,
        given: frozenset[str] | None,
        auxiliaries: Mapping[str, Mapping[str, AuxiliarySite]],
        restore: Callable[[], None],
    ) -> None:
        self.programs, self.args, self.kwargs, self.plate, self.given = programs, args, kwargs, plate, given
        self.auxiliaries, self.restore = auxiliaries, restore
        self.has_data = has_data(args, kwargs)
        self.size = num_data(args, kwargs) if self.has_data else 0
        self.rows = min(self.size, _rows_of_check(args, kwargs)) if self.has_data else 0
        self.divisible = self.has_data

    @property
    def num_draws(self) -> int:
        """Number of draws of the check, which differs from the number of rows, so that a mistaken dim shows."""
        return 3 if self.rows == 2 else 2

    def result(self) -> Way:
        """Find the way on some of the data, or on all if the programs do not run on some.

        Raises:
            ValueError: As `vectorize`.
        """
        try:
            return self._with_coverage(self._result())
        except _NotPerDatumError:
            raise
        except Exception:
            self.divisible, self.rows = False, self.size
            self.restore()
        try:
            return self._with_coverage(self._result())
        except Exception:
            if "guide" in self.programs:
                check_separate(self.auxiliaries["guide"])
                check_rows(self.programs["guide"], self.size)
            raise

    def _result(self) -> Way:
        """Find the way: with particles, else with repeated rows."""
        traces = run_once(self.programs, *self._rows())
        plates = plates_of(traces)
        while self.divisible and self.rows > 2 and is_ambiguous(plates, self.rows, self.plate, given_sites(traces)):
            self.rows -= 1  # on fewer rows, a plate over other things keeps its size
            traces = run_once(self.programs, *self._rows())
            plates = plates_of(traces)
        self.depth = max([1, *(-dim for found in plates.values() for dim in found)])
        found_plate = self._find_plate(traces, plates)
        self.data_dim = found_plate.dim
        if not self.has_data:
            self.rows = self.size = found_plate.size
        single = self._single_draws()
        self._check_masked(single)
        if not self.divisible and self.has_data:
            self._check_other_rows(single)
        rounding = _tolerances(single.model)
        ways = _WAYS if self.has_data else _WAYS[:1]
        for how, tolerance in zip(ways, rounding, strict=False):
            if self._difference(how, single) <= tolerance:
                found = self._with_sums(self._way(how), traces, single)
                if found.how == "tiled":
                    _warn_of_tiles()
                return found
        raise _NotPerDatumError(self._reason(single, rounding[-1]))

    def _find_plate(self, traces: Mapping[str, poutine.Trace], plates: Plates) -> DataPlate:
        """Find the data plate, and the sites that have no part in log p(x_n) since their values are given."""
        intervened, rows = replaced_latents(traces["model"]), self.rows if self.has_data else None
        drawn = {name for name, site in _sites_of(traces.get("guide")) if not site["is_observed"]}
        replaced = intervened - drawn - (self.given or frozenset())
        hidden = {("model", name) for name in replaced}
        plates = {(program, name): found for (program, name), found in plates.items() if (program, name) not in hidden}
        given = given_sites(traces)
        found = find_data_plate(plates, rows, self.plate, given, intervened)
        if found.outside and not self._is_constant(found.outside):
            try:
                found = find_data_plate(plates, rows, self.plate)
            except ValueError as error:
                raise _NotPerDatumError(str(error)) from error
        left_out = {
            name: frozenset(site for program, site in found.outside if program == name) for name in self.programs
        }
        self.left_out = left_out | {"model": left_out["model"] | replaced}
        return found

    def _is_constant(self, sites: Collection[tuple[str, str]]) -> bool:
        """Return whether the log densities of sites are those of runs with other draws, and on other data."""
        some = take(self.args, self.kwargs, slice(0, (self.rows + 1) // 2)) if self.divisible else self._rows()
        runs = [run_once(self.programs, *arguments) for arguments in [self._rows()] * _RUNS_OF_GIVEN + [some]]
        for program, name in sites:
            densities = []
            for traces in runs:
                site: Any = traces[program].nodes[name]
                scored = scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])
                densities.append(torch.as_tensor(scored).sum().double())
            total = torch.stack(densities)
            if relative_difference(total, total[:1].expand_as(total)) > _tolerances(scored)[1]:
                return False
        return True

    def _with_sums(self, found: Way, traces: Mapping[str, poutine.Trace], single: _Draws) -> Way:
        """Add the sites to sum out, and check the sums; tile if particles change them."""
        discrete = summable_latents(traces["model"], traces.get("guide")) - self.left_out["model"]
        found = found._replace(discrete=discrete)
        summed = discrete if "guide" in traces else discrete - (discrete if self.given is None else self.given)
        if not summed:
            return found
        reason: Exception | None = None
        for how in dict.fromkeys((found.how, "tiled")):
            plain = found._replace(how=how).program("model", self.programs["model"])
            try:
                difference = difference_of_sums(plain, summed, single.latents, *self._rows())
            except Exception as error:
                reason = reason or error
                continue
            if difference <= _tolerances(single.model)[1]:
                return found._replace(how=how, summed=summed)
        raise _NotPerDatumError(reason_against_sums(summed, reason))

    def _with_coverage(self, found: Way) -> Way:
        """Add the part of the posterior that the guide never draws."""
        if "guide" not in self.programs:
            return found
        model, guide = (found.program(name, self.programs[name], self.auxiliaries[name]) for name in ("model", "guide"))
        return found._replace(missed=missed_mass(model, guide, *self._rows()))

    def _way(self, how: How) -> Way:
        own_data = None if self.has_data else self.size
        return Way(how, self.depth, self.data_dim, self.divisible, own_data=own_data, left_out=self.left_out)

    def _rows(self) -> Arguments:
        return take(self.args, self.kwargs, slice(0, self.rows)) if self.has_data else (self.args, self.kwargs)

    def _traces(
        self, how: How, arguments: Arguments, num_particles: int, latents: Mapping[str, Tensor]
    ) -> dict[str, ParticleTrace]:
        """Run guide and model, the model on the guide's latents, and both on the given ones."""
        traces, latents = {}, dict(latents)
        for name in ("guide", "model"):
            if name in self.programs:
                program = self._way(how).program(name, self.programs[name], self.auxiliaries[name])
                traces[name] = program.trace(num_particles, *arguments, latents=latents)
                latents = {name: site.value for name, site in traces[name].draws.items()} | latents
        return traces

    def _draws(
        self, how: How, arguments: Arguments, num_particles: int = 1, latents: Mapping[str, Tensor] | None = None
    ) -> _Draws:
        traces = self._traces(how, arguments, num_particles, latents or {})
        densities = {name: trace.unscaled_log_density() for name, trace in traces.items() if trace.sites}
        values = {name: site.value for trace in traces.values() for name, site in trace.draws.items()}
        return _Draws(values, densities["model"], densities.get("guide"))

    def _single_draws(self) -> _Draws:
        """Draw latents without particles: for all data at once, and for two parts of the data in other orders."""
        draws = [self._draws("tiled", self._rows()) for _ in range(self.num_draws - 1)]
        if self.divisible and self.rows > 1:
            orders = _halves(self.rows)
            parts = [self._draws("tiled", take(self.args, self.kwargs, order)) for order in orders]
            draws.append(_side_by_side(parts, torch.cat(orders).argsort()))
        else:
            draws.append(self._draws("tiled", self._rows()))
        return _joined(draws)

    def _check_masked(self, single: _Draws) -> None:
        """Check that no density depends on latents that a mask leaves out."""
        first, other = single.at(slice(0, 1)), single.at(slice(1, 2))
        traces = self._traces("tiled", self._rows(), 1, first.latents).values()
        sites = [site for trace in traces for site in trace.draws.values()]
        masks = {site.name: site.mask for site in sites}
        if any(not same_mask(masks[site.name], site.mask) for site in sites):  # `matched_latents` refuses these
            return
        kept = {site.name: site.mask_per_datum() for site in sites if is_partial(site.mask)}
        if not kept:
            return
        latents = {
            name: torch.where(kept[name], z, other.latents[name]) if name in kept else z
            for name, z in first.latents.items()
        }
        changed = self._draws("tiled", self._rows(), 1, latents).densities
        if relative_difference(changed, first.densities) > _tolerances(single.model)[1]:
            raise _NotPerDatumError(
                f"latents {sorted(kept)} are used where a mask leaves them out, so the joint density is improper, and "
                "each proposal would give another log p(x); mask what depends on them too"
            )

    def _check_other_rows(self, single: _Draws) -> None:
        """Check for programs that need all data that the densities of one half do not depend on the other half."""
        half = self.rows // 2
        if not half:
            return
        places = torch.arange(self.rows)
        for kept in (places < half, places >= half):
            order = torch.where(kept, places, places[kept][places % int(kept.sum())])
            latents = {name: z[:1, order.to(z.device)] for name, z in single.latents.items()}
            try:
                drawn = self._draws("tiled", take(self.args, self.kwargs, order), 1, latents).densities
            except Exception:
                continue
            if relative_difference(drawn[..., kept], single.densities[:, :1][..., kept]) > _tolerances(single.model)[1]:
                raise _NotPerDatumError(_DEPENDS_ON_OTHERS)

    def _difference(self, how: How, single: _Draws) -> float:
        """Compare log densities of runs on two draws with those of single draws; infinite if the program fails."""
        try:
            drawn = self._draws(how, self._rows(), self.num_draws, single.latents)
        except Exception:
            return torch.inf
        return relative_difference(drawn.densities, single.densities)

    def _reason(self, single: _Draws, tolerance: float) -> str:
        """Say why the programs have no density per datum."""
        first, last = single.at(slice(0, 1)), single.at(slice(-1, None))
        again = self._draws("tiled", self._rows(), 1, first.latents).densities
        if relative_difference(again, first.densities) > tolerance:
            return (
                "the log densities of two runs at the same latents differ, so a program draws random numbers outside "
                "its sample sites; draw them by pyro.sample, or compute them once outside the program"
            )
        together = self._draws("tiled", self._rows(), 1, last.latents).densities
        if relative_difference(together, last.densities) > tolerance:
            return _DEPENDS_ON_OTHERS
        return (
            "the log densities of repeated data differ from those of single data, so a program depends on the number "
            "of rows, or single precision rounds its large terms apart; make the density of each row a function of "
            "this row alone, or use double precision"
        )


def _sites_of(trace: poutine.Trace | None) -> Iterable[tuple[str, Any]]:
    return () if trace is None else sample_sites(trace).items()


def _warn_of_tiles() -> None:
    warnings.warn(
        "the programs use dimensions by their position (such as softmax(dim=1), z.sum(1) or view(-1, D)), so a plate "
        "of particles would change their densities; the rows of the data are repeated for each draw instead, which "
        "gives the right densities",
        TiledWarning,
        stacklevel=2,
    )


def _rows_of_check(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Choose a number of rows that differs from the widths of all arguments, so that a mistaken dim shows."""
    values, size = (*args, *kwargs.values()), num_data(args, kwargs)
    tensors = [value.tensor if isinstance(value, Whole) else value for value in values]
    tensors = [value for value in tensors if isinstance(value, Tensor | Streamed)]
    shapes = (tuple(value.shape[is_per_datum(value, size) :]) for value in tensors)
    widths = {width for shape in shapes for width in shape}
    return next((rows for rows in ROWS if rows not in widths), ROWS[0])


def _halves(size: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the first half in reverse order, and those of the second half from its second one on."""
    return torch.arange(size // 2).flip(0), torch.arange(size // 2, size).roll(-1)


def _side_by_side(parts: Sequence[_Draws], places: Tensor) -> _Draws:
    """Concatenate draws of several parts of the data, and select data by their places."""

    def of(values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values), 1)[:, places.to(values[0].device)]

    latents = {name: of([part.latents[name] for part in parts]) for name in parts[0].latents}
    guides = [part.guide for part in parts if part.guide is not None]
    return _Draws(latents, of([part.model for part in parts]), of(guides) if guides else None)


def _joined(draws: Sequence[_Draws]) -> _Draws:
    """Concatenate draws of the same data."""
    guides = [each.guide for each in draws if each.guide is not None]
    latents = stack_latents(*(each.latents for each in draws))
    return _Draws(latents, torch.cat([each.model for each in draws]), torch.cat(guides) if guides else None)


def rounding_of(log_density: Tensor) -> float:
    """Return the largest relative difference by rounding between log densities of one draw and of several."""
    return _tolerances(log_density)[0]


def _tolerances(log_density: Tensor) -> tuple[float, float]:
    """Return the largest relative differences of log densities of this type, for each of `_WAYS`."""
    return _ROUNDING.get(log_density.dtype, _ROUNDING[torch.float32])


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to 1 + |value|; 0 where both are equal, infinite or NaN."""
    equal = (one == other) | (one.isnan() & other.isnan())
    relative = (one - other).abs() / (1 + other.abs())
    return torch.where(equal, 0.0, relative).nan_to_num(torch.inf).max().item()
