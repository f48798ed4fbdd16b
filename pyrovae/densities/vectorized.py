"""Programs with the way to run them on K draws for N data at once."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.densities.arguments import num_data, plain, tile
from pyrovae.densities.enumeration import SumOut
from pyrovae.densities.layout import Layout
from pyrovae.densities.looped import LoopedTrace
from pyrovae.densities.samplers import correct_draws
from pyrovae.densities.traces import PARTICLE_PLATE, ParticleTrace, Program

if TYPE_CHECKING:
    from pyrovae.densities.auxiliary import AuxiliarySite
    from pyrovae.densities.coverage import MissedMass

How = Literal["broadcast", "tiled", "whole", "looped"]


@dataclass(frozen=True, eq=False)
class VectorizedProgram:
    """Pyro program with the way to run it on K draws for N data.

    Called, it runs the program itself. `trace` runs it on draws: "broadcast" puts a plate of particles left of all
    plates; "tiled" repeats the rows of the data K times and runs the program as it is on K N data; "whole" puts a plate
    of particles left of all plates and counts the whole data set as one datum; "looped" runs the program as it is K
    times, and counts the whole data set as one datum.

    Attributes:
        program: Pyro program.
        name: Name in error messages, "model" or "guide".
        how: How the program runs on draws.
        depth: Number of dims that the program's plates use.
        data_dim: Dim of the data plate; None if `how` is "whole" or "looped".
        divisible: Whether the program runs on some of the data.
        summed: Names of the discrete sites to sum out.
        discrete: Names of all latents that can be summed out and that no guide draws.
        auxiliaries: Auxiliary sites of auto guides, by name.
        own_data: Number of data N of a program that holds its data itself; None if they are arguments.
        missed: Part of the posterior that a guide never draws; None if there is none, or for a model.
        left_out: Names of sites without a part in log p(x_n): those outside the data plate whose values are given, by
            `poutine.condition`, and those that `poutine.do` replaces.
    """

    program: Program
    name: str
    how: How
    depth: int
    data_dim: int | None
    divisible: bool = True
    summed: frozenset[str] = frozenset()
    discrete: frozenset[str] = frozenset()
    auxiliaries: "Mapping[str, AuxiliarySite]" = field(default_factory=dict)
    own_data: int | None = None
    missed: "MissedMass | None" = None
    left_out: frozenset[str] = frozenset()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program."""
        args, kwargs = plain(args, kwargs)
        return self.program(*args, **kwargs)

    def num_data(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """Return the number of data N among the arguments; 1 if the whole data set counts as one datum."""
        if self.data_dim is None:
            return 1
        return num_data(args, kwargs) if self.own_data is None else self.own_data

    def layout(self, num_particles: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout:
        """Return the layout of a run on K draws for each datum among the arguments."""
        particle_dim = None if self.how == "tiled" else -1 - self.depth
        return Layout(num_particles, self.num_data(args, kwargs), particle_dim, self.data_dim)

    def trace(
        self,
        num_particles: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Tensor] | None = None,
    ) -> ParticleTrace:
        """Run the program on K draws for each datum.

        Args:
            num_particles: Number of draws K per datum.
            args: Positional arguments of the program, the data first, with shape (N, ...).
            kwargs: Keyword arguments of the program.
            latents: Values of latent sites by name, with shape (K, N, ...). They stay latent. Other latents are drawn.
                The auxiliary site of an auto guide gets the value that its latents imply, unless it is among them.
        """
        latents = latents or {}
        if self.how == "looped" and num_particles > 1:
            draws = [{name: value[k : k + 1] for name, value in latents.items()} for k in range(num_particles)]
            return LoopedTrace([self.trace(1, args, kwargs, draw) for draw in draws])
        if not self.summed:
            return self._run(num_particles, args, kwargs, latents, frozenset())
        with suppress(_UndrawnError):
            return self._run(num_particles, args, kwargs, latents, self.summed)
        # Latents that depend on a summed site are drawn at one of its values.
        drawn = self._run(num_particles, args, kwargs, latents, frozenset()).latents
        latents = {name: site.value for name, site in drawn.items() if name not in self.summed} | dict(latents)
        return self._run(num_particles, args, kwargs, latents, self.summed)

    def _run(
        self,
        num_particles: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        latents: Mapping[str, Tensor],
        summed: frozenset[str],
    ) -> ParticleTrace:
        layout = self.layout(num_particles, args, kwargs)
        if self.how == "tiled" and self.own_data is None:
            args, kwargs = tile(args, kwargs, num_particles)
        plate_dims = self.depth + (layout.particle_dim is not None)
        with ExitStack() as stack:
            # Outermost, so that the handlers see all plates and distributions expanded to them.
            looped = self.how == "looped"
            handler = _Substitute(
                layout, latents, self.auxiliaries, draws=not summed, free=self.left_out, without_particles=looped
            )
            stack.enter_context(handler)
            if summed:
                stack.enter_context(SumOut(summed, -1 - plate_dims))
            if layout.particle_dim is not None and not looped:
                stack.enter_context(pyro.plate(PARTICLE_PLATE, num_particles, dim=layout.particle_dim))
            tracer = stack.enter_context(poutine.trace())  # its call would append a table of shapes to errors
            self(*args, **kwargs)
        determined_by = {latent: name for name, site in self.auxiliaries.items() for latent in site.prototypes}
        return ParticleTrace(tracer.trace, layout, self.name, summed, plate_dims, determined_by, self.left_out)


class _UndrawnError(Exception):
    """A latent has no value given."""


class _Substitute(Messenger):
    """Handler that sets the values of latent sites and keeps them latent, unlike `poutine.condition`.

    Args:
        layout: Where draws and data lie.
        values: Value of each site by name, with shape (K, N, *further plates, *event).
        auxiliaries: Auxiliary sites of auto guides, by name.
        draws: Whether other sites draw their values; otherwise they raise an `_UndrawnError`.
        free: Names of sites that draw their values in any case.
        without_particles: Whether the program runs on one draw without a plate of particles.
    """

    def __init__(
        self,
        layout: Layout,
        values: Mapping[str, Tensor],
        auxiliaries: "Mapping[str, AuxiliarySite]",
        *,
        draws: bool,
        free: frozenset[str] = frozenset(),
        without_particles: bool = False,
    ) -> None:
        super().__init__()
        self.layout, self.values, self.auxiliaries = layout, values, auxiliaries
        self.draws, self.free, self.without_particles = draws, free, without_particles
        # The guide computes these from its auxiliary sites, and a Delta has density 0 at a value that rounding moved.
        self.determined: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        name, value = msg["name"], None
        if msg["is_observed"] or site_is_subsample(msg) or name in self.free:
            return
        plates = {f.dim: f.size for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE}
        auxiliary = self.auxiliaries.get(name)
        if auxiliary is not None:
            self.determined |= auxiliary.prototypes.keys()
        if name in self.values and name not in self.determined:
            value = self.layout.to_site(self.values[name], plates)
        elif auxiliary is not None and self.values.keys() >= auxiliary.prototypes.keys():
            value = auxiliary.value(self.values, plates, self.layout)
        if not msg["done"]:
            correct_draws(msg["fn"])
        if value is not None:
            if self.without_particles:
                kept = max([0, *(-dim for dim in plates)]) + len(msg["fn"].event_shape)
                value = value.reshape(value.shape[value.dim() - kept :])
            msg["value"], msg["done"] = value, True
        elif not (self.draws or msg["done"] or msg["infer"].get("_deterministic")):
            raise _UndrawnError
        elif self.layout.data_dim is not None and plates.get(self.layout.data_dim) == -1 and not msg["done"]:
            self._fill_plate(msg)

    def _fill_plate(self, msg: Any) -> None:
        """Expand the distribution to the rows of a data plate without a size, so that each datum has its own draw."""
        dim = self.layout.data_dim
        assert dim is not None
        batch = list(msg["fn"].batch_shape)
        batch = [1] * (-dim - len(batch)) + batch
        batch[dim] = self.layout.leading[dim]
        msg["fn"] = msg["fn"].expand(torch.Size(batch))


def stack_latents(*latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate draws by site along K."""
    return {name: torch.cat([each[name] for each in latents]) for name in latents[0]}
