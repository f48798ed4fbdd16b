"""A trained model with everything that the page says about it. What takes time is computed once, when it is needed."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from pyrovae.baselines import Comparison
from pyrovae.data import Data
from pyrovae.densities import isolated_rng, take
from pyrovae.diagnostics import (
    PIT,
    Calibration,
    Codes,
    CodesPCA,
    CodesTSNE,
    Collapse,
    Entropies,
    ForeignData,
    Information,
    Interpolation,
    KhatMap,
    KLByDimension,
    LabelGrids,
    LatentPosteriors,
    PredictiveCheck,
    Redraws,
    Traversals,
    Typicality,
    WeightedCalibration,
    check_predictive,
    collapse,
    decode_means,
    encode_codes,
    entropies,
    foreign_data,
    information,
    interpolate,
    khat_map,
    kl_by_dimension,
    label_grids,
    latent_posteriors,
    noise_like,
    pca_codes,
    pit,
    redraw,
    sbc,
    shuffled_columns,
    traverse,
    tsne_codes,
    typicality,
    weighted_sbc,
)
from pyrovae.evidence import GuideProposal, Refinement, refine
from pyrovae.page.about import about_run
from pyrovae.page.data_columns import DataColumns
from pyrovae.plots import is_image, prior_samples
from pyrovae.runs import Run, Snapshots, read_snapshots
from pyrovae.stats import LogMarginal
from pyrovae.training import History

CODES = 1000  # data whose codes are shown, at most
_REFINED = 40  # data whose gaps are computed, at most
_REFINE_STEPS = 300  # of each round of their optimisation
_SOME = 500  # data of the other diagnostics, at most
_FEW = 200  # data of those that estimate log p(x), at most
_SIMULATIONS, _DRAWS = 300, 99  # of SBC
_REPLICATES = 249
_PIT_PARTICLES = 200
_PIT_ENTRIES = 100  # of an image, from which its pixels are not tested one by one
_LOG_P_PARTICLES = 100  # of the guide, for test and foreign data alike
_KHAT_PARTICLES = 1000
_CHOSEN = 6  # data whose posteriors are shown
_TRAVERSED = 6  # dimensions
_REDRAWS = 15
_LABELS = 10  # with a decoded grid each
_TSNE, _PERPLEXITY = 500, 30.0
_DRAWN, _DRAWN_NUMBERS = 10_000, 2_000_000  # draws from the model and numbers in them, at most
LEVEL = 0.99  # of the tests of the checks


@dataclass(frozen=True, eq=False)
class Fit:
    """Trained model, its data, and what is known of both.

    Attributes:
        name: Name of the run.
        vae: Trained model, an object with the programs `model` and `guide`.
        data: Data of the run.
        history: History of the training.
        summary: Content of evaluation.json.
        values: Estimates log p(x) in nats, with shape (N,), float64, of the data of the evaluation's split.
        errors: Their Monte Carlo standard errors, with shape (N,).
        baselines: Baselines, and the differences of the model from them.
        about: What was run, as pairs of a name and a value.
        command: Command that repeats the run; "" if there is none.
        planned: Number of epochs that the training could have taken.
        seed: Random seed of draws.
        snapshots: Codes and decoded draws by epoch, or in one sentence why there are none; None to leave them out.
        others: Foreign data of the user by name: x, with shape (M, D), and the programs' other arguments.
    """

    name: str
    vae: Any
    data: Data
    history: History
    summary: Mapping[str, Any]
    values: Tensor
    errors: Tensor
    baselines: Comparison
    about: Sequence[tuple[str, str]] = ()
    command: str = ""
    planned: int = 0
    seed: int = 0
    snapshots: Snapshots | str | None = None
    others: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls,
        run: Run,
        config: Namespace,
        vae: Any,
        data: Data,
        baselines: Comparison,
        *,
        history: History | None = None,
        seed: int = 0,
    ) -> Fit:
        """Collect what is known of a finished run.

        Args:
            run: Run folder.
            config: Configuration of the run.
            vae: Trained model.
            data: Data of the run.
            baselines: Baselines, compared over the data of the run's last evaluation.
            history: History of the training; None to read it from the run.
            seed: Random seed of draws.

        Raises:
            ValueError: If the run has no evaluation, or a file is damaged.
        """
        summary, values = run.evaluation()
        return cls(
            name=run.path.name,
            vae=vae,
            data=data,
            history=run.history() if history is None else history,
            summary=summary,
            values=values["log_marginal"],
            errors=values["std_error"],
            baselines=baselines,
            about=about_run(run, config, data),
            command=f"python scripts/train.py --config {shlex.quote(f'{run.path}/config.yaml')}",
            planned=config.epochs,
            seed=seed,
            snapshots=read_snapshots(run.path),
        )

    @property
    def split(self) -> str:
        """Split of the evaluation: "train", "validation" or "test"."""
        split: str = self.summary["split"]
        return split

    @property
    def num_data(self) -> int:
        """Number of data of the evaluation."""
        return len(self.values)

    def arguments(self, rows: slice | Tensor | Sequence[int]) -> tuple[tuple[Tensor], dict[str, Any]]:
        """Return the programs' arguments for some data of the evaluation's split."""
        rows = rows if isinstance(rows, slice | Tensor) else torch.tensor(rows)
        first = next(iter(self.vae.parameters()), None)
        device = "cpu" if first is None else first.device
        args, kwargs = take((getattr(self.data, self.split),), self.data.conditions(self.split), rows)
        return (args[0].to(device),), {name: value.to(device) for name, value in kwargs.items()}

    @cached_property
    def x(self) -> Tensor:
        """Data whose codes are shown, with shape (N, D), at most 1,000."""
        x: Tensor = getattr(self.data, self.split)[:CODES]
        return x

    @cached_property
    def labels(self) -> Tensor | None:
        """Classes of these data, with shape (N,), -1 where unknown; None if there are none."""
        return None if self.data.labels is None else self.data.labels[self.split][: len(self.x)]

    @cached_property
    def label_names(self) -> list[str]:
        """Names of the classes."""
        if self.data.labels is None:
            return []
        columns = () if self.data.table is None else self.data.table.columns.of_role("label")
        if columns and columns[0].levels:
            return list(columns[0].levels)
        return [str(label) for label in range(max(int(part.max()) for part in self.data.labels.values()) + 1)]

    @cached_property
    def columns(self) -> DataColumns:
        """Columns of the data."""
        schema = None if self.data.table is None else self.data.table.columns
        return DataColumns.of(schema, self.x, image=is_image(self.data.shape))

    def decode(self, z: Tensor) -> Tensor:
        """Decode places of latent space, with shape (M, J), given the arguments of the first datum."""
        args, kwargs = self.arguments(slice(0, 1))
        counts = {d: len(names) for d, names in self.columns.levels.items()}
        options: dict[str, Any] = {"sites": self.codes.sites, "levels": counts, "seed": self.seed}
        return decode_means(self.vae.model, *args, z=z, **options, **kwargs)

    @cached_property
    def codes(self) -> Codes:
        """Codes of the data."""
        args, kwargs = self.arguments(slice(0, len(self.x)))
        return encode_codes(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def has_codes(self) -> bool:
        """Whether the model has real latents, and so codes."""
        try:
            return len(self.codes.names) > 0
        except ValueError:
            return False

    @cached_property
    def samples(self) -> Tensor:
        """Draws from the model, as many as there are data, with shape (N, D)."""
        (x,), kwargs = self.arguments(slice(0, len(self.x)))
        return prior_samples(self.vae.model, x, seed=self.seed, **kwargs)[0].cpu()

    @cached_property
    def many_samples(self) -> Tensor:
        """Up to 10,000 draws from the model, with shape (M, D), those of `samples` if data are large."""
        size = min(_DRAWN, _DRAWN_NUMBERS // self.x.shape[1])
        if size <= len(self.x):
            return self.samples
        (x,), kwargs = self.arguments(torch.arange(size) % len(self.x))
        return prior_samples(self.vae.model, x, seed=self.seed, **kwargs)[0].cpu()

    @cached_property
    def classes(self) -> list[int]:
        """Classes that occur in these data, ascending."""
        return [] if self.labels is None else [int(label) for label in self.labels.unique().tolist() if label >= 0]

    @cached_property
    def chosen(self) -> list[int]:
        """Rows of up to 6 of these data: the first ones of their classes, or evenly spread if there are no classes."""
        if self.labels is None or len(self.classes) < 2:
            return torch.linspace(0, len(self.x) - 1, min(_CHOSEN, len(self.x))).round().long().tolist()
        places = torch.linspace(0, len(self.classes) - 1, min(_CHOSEN, len(self.classes))).round().long().tolist()
        return [int((self.labels == self.classes[place]).nonzero()[0]) for place in places]

    @cached_property
    def ends(self) -> tuple[int, int]:
        """Rows of two of these data: the first of two classes, or the farthest two, of equal covariates if any."""
        first = self.chosen[0]
        candidates = torch.ones(len(self.x), dtype=torch.bool)
        if self.data.covariates is not None:
            given = self.data.covariates[self.split][: len(self.x)]
            same = (given == given[first]).all(1)
            candidates = same if int(same.sum()) > 1 else candidates
        elif self.labels is not None and len(self.classes) > 1:
            return first, int((self.labels == self.classes[1]).nonzero()[0])
        scaled = self.codes.mean / self.codes.prior.std(0)
        return first, int((scaled - scaled[first]).norm(dim=1).where(candidates, torch.tensor(-1.0)).argmax())

    @cached_property
    def label_covariates(self) -> tuple[str, ...]:
        """Names of the classes that the covariates tell one-hot; () if they tell something else."""
        if self.data.covariates is None:
            return ()
        given = self.data.covariates[self.split]
        size = given.shape[1]
        if size < 2 or not bool(((given == 0) | (given == 1)).all() and (given.sum(1) == 1).all()):
            return ()
        labels = None if self.data.labels is None else self.data.labels[self.split]
        named = labels is not None and size == len(self.label_names) and bool((given.argmax(1) == labels).all())
        return tuple(self.label_names) if named else tuple(f"class {c}" for c in range(size))

    def rows(self, count: int) -> Tensor:
        """Return at most `count` row numbers, evenly spread over the split."""
        return _evenly(self.num_data, count)

    def _log_p(self, rows: Tensor) -> LogMarginal:
        """Return the estimates log p(x) of the evaluation for some data."""
        unknown = torch.full_like(self.values[rows], math.nan)
        return LogMarginal(self.values[rows], self.errors[rows], unknown, unknown)

    @cached_property
    def kl_by_dimension(self) -> KLByDimension:
        """KL divergence of the guide from the prior by dimension, over at most 500 data."""
        args, kwargs = self.arguments(self.rows(_SOME))
        return kl_by_dimension(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def kl(self) -> Tensor:
        """KL divergence of each dimension of the codes in nats, with shape (J,), NaN if unknown (`kl_by_dimension`)."""
        found = dict(zip(self.kl_by_dimension.labels, self.kl_by_dimension.mean.tolist(), strict=True))
        return torch.tensor([found.get(name, math.nan) for name in self.codes.names], dtype=torch.float64)

    @cached_property
    def order(self) -> list[int]:
        """Dimensions of the codes by falling KL divergence, or by activity if the divergence of one is unknown."""
        try:
            kl = self.kl
        except ValueError:
            return self.codes.order
        return self.codes.order if bool(kl.isnan().any()) else kl.sort(descending=True, stable=True).indices.tolist()

    @cached_property
    def latent_posteriors(self) -> LatentPosteriors:
        """Posteriors of the chosen data."""
        args, kwargs = self.arguments(self.chosen)
        return latent_posteriors(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def traversals(self) -> Traversals:
        """Walks along up to 6 dimensions from the code of the first chosen datum."""
        args, kwargs = self.arguments(self.chosen[:1])
        options: dict[str, Any] = {"codes": self.codes, "kl": self.kl_by_dimension, "base": self.chosen[0]}
        return traverse(self.vae.model, *args, **options, num_dims=_TRAVERSED, seed=self.seed, **kwargs)

    @cached_property
    def interpolation(self) -> Interpolation:
        """Ways between the codes of the two data `ends`."""
        args, kwargs = self.arguments(self.ends[:1])
        ends = self.codes.mean[list(self.ends)]
        return interpolate(self.vae.model, *args, codes=self.codes, ends=ends, seed=self.seed, **kwargs)

    @cached_property
    def redraws(self) -> Redraws:
        """15 draws of the code of the first chosen datum, decoded."""
        args, kwargs = self.arguments(self.chosen[:1])
        options: dict[str, Any] = {"codes": self.codes, "num_draws": _REDRAWS, "seed": self.seed}
        return redraw(self.vae.model, self.vae.guide, *args, **options, **kwargs)

    @cached_property
    def label_grids(self) -> LabelGrids:
        """Decoded grids of up to 10 classes that the covariates tell, in the two dimensions of largest divergence."""
        names = self.label_covariates[:_LABELS]
        args, kwargs = self.arguments([0])
        rows = torch.eye(len(self.label_covariates))[: len(names)].to(kwargs["covariates"])
        options: dict[str, Any] = {"codes": self.codes, "dims": self.dims, "label_covariates": rows, "labels": names}
        return label_grids(self.vae.model, *args, **options, seed=self.seed, **kwargs)

    @cached_property
    def dims(self) -> tuple[int, int]:
        """Both dimensions of a 2-D latent, else the two with the largest KL divergence."""
        first, second = (0, 1) if len(self.codes.names) == 2 else self.order[:2]
        return first, second

    @cached_property
    def pca(self) -> CodesPCA:
        """Codes by the principal components of their means."""
        return pca_codes(self.codes)

    @cached_property
    def tsne(self) -> CodesTSNE:
        """t-SNE of the codes of at most 500 data."""
        size = min(_TSNE, len(self.x))
        return tsne_codes(self.codes, perplexity=min(_PERPLEXITY, (size - 1) / 3), max_data=size, seed=self.seed)

    @cached_property
    def entropies(self) -> Entropies:
        """Entropies of the guide by dimension, in nats, over at most 500 data."""
        args, kwargs = self.arguments(self.rows(_SOME))
        return entropies(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def collapse(self) -> Collapse:
        """Collapse of each dimension, over at most 500 data."""
        args, kwargs = self.arguments(self.rows(_SOME))
        return collapse(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def information(self) -> Information:
        """Information of the latents and distance of the aggregate posterior from the prior, over at most 500 data."""
        args, kwargs = self.arguments(self.rows(_SOME))
        return information(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def calibration(self) -> Calibration:
        """SBC of the guide with 300 simulations."""
        args, kwargs = self.arguments(self.rows(_SIMULATIONS))
        counts: dict[str, Any] = {"num_simulations": _SIMULATIONS, "num_draws": _DRAWS}
        return sbc(self.vae.model, self.vae.guide, *args, **counts, level=LEVEL, seed=self.seed, **kwargs)

    @cached_property
    def weighted_calibration(self) -> WeightedCalibration:
        """SBC of the log weights with 300 simulations."""
        args, kwargs = self.arguments(self.rows(_SIMULATIONS))
        counts: dict[str, Any] = {"num_simulations": _SIMULATIONS, "num_draws": _DRAWS}
        return weighted_sbc(self.vae.model, self.vae.guide, *args, **counts, level=LEVEL, seed=self.seed, **kwargs)

    @cached_property
    def predictive(self) -> PredictiveCheck:
        """Predictive checks of at most 500 data, with z from the prior."""
        args, kwargs = self.arguments(self.rows(_SOME))
        shape = self.data.shape if is_image(self.data.shape) else None
        options: dict[str, Any] = {"num_replicates": _REPLICATES, "shape": shape, "seed": self.seed}
        return check_predictive(self.vae.model, *args, statistics=self.columns.statistics(), **options, **kwargs)

    @cached_property
    def pit(self) -> PIT:
        """Randomised PIT of at most 500 data.

        Raises:
            ValueError: If the data are images of more than 100 entries.
        """
        size = self.x.shape[1]
        if is_image(self.data.shape) and size > _PIT_ENTRIES:
            raise ValueError(
                f"the PIT tests single columns, and images of {size:,} pixels are not tested pixel by pixel"
            )
        args, kwargs = self.arguments(self.rows(_SOME))
        return pit(self.vae.model, *args, num_particles=_PIT_PARTICLES, seed=self.seed, **kwargs)

    @cached_property
    def typicality(self) -> Typicality:
        """Ranks of log p(x) of at most 200 data among the model's own draws, both by draws of the guide."""
        args, kwargs = self.arguments(self.rows(_FEW))
        options: dict[str, Any] = {"num_particles": _LOG_P_PARTICLES, "proposal": GuideProposal(), "seed": self.seed}
        return typicality(self.vae.model, self.vae.guide, *args, **options, **kwargs)

    @cached_property
    def foreign(self) -> dict[str, ForeignData]:
        """Noise, shuffled columns, and others, at most 200 of each against at most 200 data, by draws of the guide."""
        (x,), kwargs = self.arguments(self.rows(_FEW))
        noise = [noise_like(column, seed=self.seed + d) for d, column in enumerate(x.split(1, 1))]
        kinds = {"noise": torch.cat(noise, 1)}
        if x.shape[1] > 1:
            kinds["shuffled columns"] = shuffled_columns(x, seed=self.seed)
        options: dict[str, Any] = {"num_particles": _LOG_P_PARTICLES, "proposal": GuideProposal(), "seed": self.seed}
        compare = partial(foreign_data, self.vae.model, self.vae.guide, x, **options, **kwargs)
        found = {name: compare(foreign=one) for name, one in kinds.items()}
        for name, (other, arguments) in self.others.items():
            (other,), given = take((other,), arguments, _evenly(len(other), _FEW))
            given = {key: value.to(x.device) for key, value in given.items()}
            found[name] = compare(foreign=other, foreign_arguments=given)
        return found

    @cached_property
    def khat_map(self) -> KhatMap:
        """K-hat of 1,000 draws of the guide for at most 200 data."""
        rows = self.rows(_FEW)
        args, kwargs = self.arguments(rows)
        options: dict[str, Any] = {"num_particles": _KHAT_PARTICLES, "log_p": self._log_p(rows), "seed": self.seed}
        return khat_map(self.vae.model, self.vae.guide, *args, **options, **kwargs)

    @cached_property
    def khat_codes(self) -> Codes:
        """Codes of the data of `khat_map`."""
        args, kwargs = self.arguments(self.rows(_FEW))
        return encode_codes(self.vae.model, self.vae.guide, *args, seed=self.seed, **kwargs)

    @cached_property
    def refined(self) -> Refinement:
        """Gaps of the guide for at most 40 data, evenly spread over the split."""
        rows = self.rows(_REFINED)
        args, kwargs = self.arguments(rows)
        log_p = self._log_p(rows)
        with (
            isolated_rng(self.seed),
            warnings.catch_warnings(),
        ):  # data whose optimisation has not converged have NaN gaps, and are left out
            warnings.simplefilter("ignore", UserWarning)
            return refine(
                self.vae.model, self.vae.guide, *args, log_p=log_p, num_particles=400, steps=_REFINE_STEPS, **kwargs
            )


def _evenly(size: int, count: int) -> Tensor:
    """Return at most `count` row numbers below `size`, evenly spread."""
    return torch.linspace(0, size - 1, min(count, size)).round().long()
