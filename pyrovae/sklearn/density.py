"""`VAEDensity`: a variational autoencoder as an estimator of scikit-learn."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyrovae.data import Table
from pyrovae.densities import evaluating, isolated_rng
from pyrovae.encoders import NormalEncoder
from pyrovae.evidence import KHAT_LIMIT, impute, log_marginal
from pyrovae.nn import MLP
from pyrovae.objectives import ImportanceWeightedELBO
from pyrovae.priors import StandardNormalPrior
from pyrovae.programs import Blueprint
from pyrovae.sklearn.forms import Form, is_frame
from pyrovae.sklearn.means import expectation, posterior_mean
from pyrovae.sklearn.registry import class_of, labelled, part, parts_of
from pyrovae.sklearn.rows import NumberRows, TableRows, draw_splits
from pyrovae.training import fit

_RECORDED_FROM = 1000  # steps of a fit from which recording them pays
_MANY = 0.1  # share of data with a high k-hat that is worth a warning
_LEAST_DRAWS = 21  # for a k-hat


class VAEDensity(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """Density estimator and transformer for scikit-learn: a variational autoencoder of the rows of X.

        p(x) = integral of p(z) p(x|z) dz,  z the latent of a row

    `score_samples` is that of KernelDensity, `transform` that of PCA, `sample` that of KernelDensity. X is an array, or
    a frame of pandas or polars, and may have missing cells (NaN, None), which the density integrates out. Cells are
    missing at random, given the observed ones.

    The columns of an array are real numbers, with scales of at least their resolution, unless `columns` gives other
    kinds. The columns of a frame may be mixed: `read_table` guesses the kinds that `columns` does not give. Densities
    are in the units of X, so that no scaler is needed. Behind a scaler in a `Pipeline`, they are densities of the
    scaled data, which differ by the logarithms of the scales.

    Columns that are constant, and columns of a frame that identify the rows, have no density. They are left out, with a
    warning. `sample` and `inverse_transform` give constants back, and missing cells for the others.

    No call changes the global random states of Python, NumPy, torch and Pyro. Equal random_state and data give equal
    results on the same machine. Do not fit in several threads of one process, since Pyro's parameter store is shared;
    the processes of n_jobs are independent.

    An estimator may be pickled. Loading a pickle runs code, so load only those that you trust; the run folder of
    scripts/train.py holds plain values and tensors, and is safe to load.

    Args:
        latent_dim: Dimension Z of the latent.
        likelihood: Likelihood p(x|z). None for a `MixedLikelihood` of the columns, with normals and log-normals whose
            scale depends on z. A mapping changes it by kind or name of a column, as in {"real": StudentTLikelihood}.
            A class, functools.partial of one, or its name, is the likelihood of the whole row, which must then be
            numbers; learned scales have the floors of `floor_of` then.
        prior: Class of the prior p(z), functools.partial of one, or its name; None for `StandardNormalPrior`.
        encoder: Class of the encoder q(z|x), functools.partial of one, or its name; None for `NormalEncoder`.
        network: Class of the networks, functools.partial of one, or its name; None for `MLP` with one hidden layer of
            64 units.
        output_bias: Start of the decoder's last bias, "data" or "random" (see `Blueprint`); None to choose.
        mask_extra: Probability with which the encoder hides an observed cell in training, for data with few missing
            cells that will have more.
        elbo: Objective, such as `Trace_ELBO()` of Pyro; None for `ImportanceWeightedELBO(10)`.
        epochs: Maximum number of passes over the training rows.
        batch_size: Number of rows per step.
        learning_rate: Learning rate of Adam.
        patience: Number of epochs without improvement on the validation rows before training stops; None disables
            early stopping.
        validation_fraction: Share of the rows of X that choose the best epoch and are not trained on; 0 to train on all
            rows for all epochs.
        fit_options: Further arguments of `pyrovae.fit` by name, such as {"kl_weight": LinearWarmup(10)}; None for none.
        num_particles: Number of draws K of the latent per row, for log p(x).
        columns: Kinds by name, such as {"age": "positive"} (x0, x1, ... in an array); or `Columns`, or the path of a
            YAML file of them. None to guess those of a frame.
        unseen: Whether to "refuse" levels that the training data do not have, or to treat them as "missing".
        device: Device of torch; "auto" for a GPU if there is one.
        random_state: Seed, RandomState, or None for another seed in each `fit`.
        verbose: Whether to print the columns, questions about guesses, and the progress.

    Attributes:
        vae_: The trained `VAE`, with the programs `vae_.model` and `vae_.guide`.
        columns_: The columns, as `Columns`; printed, a table of kinds and likelihoods.
        history_: `History` of the training.
        n_iter_: Number of epochs.
        seed_: Random seed of the results.
        n_features_in_: Number of columns of X.
        feature_names_in_: Names of the columns of X, if it was a frame whose names are texts.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x = load_iris().data
        >>> density = VAEDensity(latent_dim=2, epochs=20, random_state=0).fit(x[::2])
        >>> density.transform(x).shape
        (150, 2)
        >>> log_p, std_error = density.score_samples(x[1::2], return_std=True)
        >>> bool(log_p.mean() == density.score(x[1::2])), bool(std_error.max() < 0.5)
        (True, True)
        >>> density.sample(3).shape
        (3, 4)
        >>> density.get_feature_names_out()
        array(['vaedensity0', 'vaedensity1'], dtype=object)
    """

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        likelihood: Any = None,
        prior: Any = None,
        encoder: Any = None,
        network: Any = None,
        output_bias: Any = None,
        mask_extra: float = 0.0,
        elbo: Any = None,
        epochs: int = 1000,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        patience: int | None = 40,
        validation_fraction: float = 0.1,
        fit_options: Any = None,
        num_particles: int = 500,
        columns: Any = None,
        unseen: Any = "refuse",
        device: str = "cpu",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.prior = prior
        self.encoder = encoder
        self.network = network
        self.output_bias = output_bias
        self.mask_extra = mask_extra
        self.elbo = elbo
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.fit_options = fit_options
        self.num_particles = num_particles
        self.columns = columns
        self.unseen = unseen
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Train the model.

        Args:
            X: Data, an array with shape (N, D) or a frame; NaN or None where missing.
            y: Ignored.

        Raises:
            ValueError: If X is no such table, a parameter is not valid, or as `pyrovae.fit`.
        """
        # Case weights have their place here: an argument sample_weight, which goes on to `_train` and `pyrovae.fit`.
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}; 0.1 is usual")
        rows = self._checked(X, reset=True)
        self.seed_ = _seed(self.random_state)
        form = Form.of(X if is_frame(X) else rows)
        splits = draw_splits(len(rows), self.validation_fraction, self.seed_)
        if self._reads_tables:
            self._rows: Any
            self._rows, table = TableRows.read(rows, form, splits, self.columns, self.unseen)
            data = table.arguments()
        else:
            table, data = None, self._numbers(rows, form)
        self.columns_ = labelled(self._rows.columns, self.likelihood)
        modelled = {column.name for column in self.columns_.data}
        self._constants = form.constants(X if is_frame(X) else rows, set(form.names) - modelled)
        if self.verbose:
            print(self.columns_, *([] if table is None else table.questions), sep="\n")
        with isolated_rng(self.seed_):
            self.vae_ = self._blueprint(table, data, splits).vae().to(self._device())
            self.history_ = self._train(data, splits)
        self.n_iter_ = len(self.history_)
        first = {name: value[:1].to(self._parameter_device) for name, value in data.items()}
        self._latent_shape = tuple(self._posterior_mean(first).shape[1:])
        self._n_features_out = int(np.prod(self._latent_shape))
        return self

    def score_samples(self, X: Any, return_std: bool = False) -> Any:  # noqa: N803
        """Estimate log p(x) of each row by `log_marginal`: of its observed cells, in nats and the units of X.

        Columns of levels and counts have probabilities, the others densities.

        Args:
            X: Data, an array with shape (N, D) or a frame.
            return_std: Whether to return the Monte Carlo standard errors too.

        Returns:
            Log p(x), with shape (N,), float64; with return_std, the pair of it and its standard errors.

        Raises:
            ValueError: If X does not fit the training data, or lies outside the support.
        """
        check_is_fitted(self)
        arguments = self._arguments(X)
        with isolated_rng(self.seed_):
            found = log_marginal(self.vae_.model, self.vae_.guide, **arguments, num_particles=self.num_particles)
        self._warn_of_khat(found.khat)
        value, std_error = found.value.cpu().numpy(), found.std_error.cpu().numpy()
        if "mask" in arguments:  # without an observed cell, log p is 0 exactly
            empty = ~arguments["mask"].any(1).cpu().numpy()
            value[empty], std_error[empty] = 0.0, 0.0
        return (value, std_error) if return_std else value

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        """Return the mean of `score_samples` in nats per row, as GaussianMixture; KernelDensity returns the sum.

        Args:
            X: Data, an array with shape (N, D) or a frame.
            y: Ignored.
        """
        return float(np.mean(self.score_samples(X)))

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the means of the guide q(z|x), which approximate the posterior means of the latents.

        The mean of a guide without a closed form is that of 1,000 draws.

        Args:
            X: Data, an array with shape (N, D) or a frame.

        Returns:
            Means, with shape (N, Z), float64.
        """
        check_is_fitted(self)
        return self._posterior_mean(self._arguments(X)).flatten(1).double().cpu().numpy()

    def inverse_transform(self, X: Any) -> Any:  # noqa: N803
        """Return E[x|z] of each latent, and the most probable level of columns with levels.

        Args:
            X: Latents, with shape (N, Z).

        Returns:
            Rows in the form of the training data: an array with shape (N, D), or a frame.

        Raises:
            ValueError: If X has another shape.
        """
        check_is_fitted(self)
        z = check_array(X, input_name="X", dtype=np.float64)
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"X must have shape (N, {self._n_features_out}), one column per latent, got {z.shape}; give the result "
                "of transform"
            )
        latents = torch.tensor(z).to(next(self.vae_.parameters())).view(len(z), *self._latent_shape)
        with isolated_rng(self.seed_), evaluating(self.vae_.model):
            x = expectation(self.vae_.model.likelihood(latents), self.columns_)
        return self._in_form(self._rows.values(x.cpu()))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows from the model.

        Args:
            n_samples: Number of rows.
            random_state: Seed, or RandomState; None for that of the estimator, so that equal calls give equal rows
                unless it is None too.

        Returns:
            Rows in the form of the training data: an array with shape (n_samples, D), or a frame.
        """
        check_is_fitted(self)
        if not n_samples >= 1:
            raise ValueError(f"n_samples must be at least 1, got {n_samples}")
        seed = _seed(self.random_state if random_state is None else random_state)
        with isolated_rng(seed), evaluating(self.vae_.model):
            x = self.vae_.model(size=int(n_samples))
        return self._in_form(self._rows.values(x.cpu()))

    def complete(self, X: Any) -> Any:  # noqa: N803
        """Fill missing cells by E[x | observed cells] (see `impute`), and levels by the most probable one.

        Means have less variance than the cells that they replace; use `pyrovae.evidence.impute` for draws.

        Args:
            X: Data, an array with shape (N, D) or a frame.

        Returns:
            Rows in the form of the training data, where observed cells are as given.
        """
        check_is_fitted(self)
        rows = self._checked(X, reset=False)
        arguments = self._rows.arguments(rows)
        x = arguments["x"]
        if "mask" in arguments:
            on_device: dict[str, Any] = {name: value.to(self._parameter_device) for name, value in arguments.items()}
            with isolated_rng(self.seed_):
                found = impute(
                    self.vae_.model, self.vae_.guide, **on_device, num_particles=self.num_particles, num_draws=0
                )
            self._warn_of_khat(found.log_marginal.khat)
            x = found.value.cpu()
        return self._in_form(self._rows.completed(rows, x))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling, with the parameters on the CPU."""
        state = dict(super().__getstate__())
        if "vae_" in state and self._parameter_device.type != "cpu":
            state["vae_"] = copy.deepcopy(self.vae_).cpu()
        return state

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: missing cells are allowed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    @property
    def _reads_tables(self) -> bool:
        """Whether `fit` makes the likelihood from the columns."""
        return self.likelihood is None or isinstance(self.likelihood, Mapping)

    @property
    def _parameter_device(self) -> torch.device:
        return next(self.vae_.parameters()).device

    def _checked(self, rows: Any, *, reset: bool) -> Any:
        """Check names and numbers of columns. Return a frame as it is, and other rows as an array.

        Numbers become float64. An array for an estimator that was fitted to a frame keeps its values.
        """
        of_table = self._reads_tables if reset else isinstance(self._rows, TableRows)
        of_frame = is_frame(rows) if reset else self._rows.form.library != "numpy"
        if not (of_table and of_frame):
            least = 2 if reset else 1
            return validate_data(
                self, rows, reset=reset, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=least
            )
        if not is_frame(rows):
            return validate_data(self, rows, reset=reset, dtype=None, ensure_all_finite=False)
        validate_data(self, rows, reset=reset, skip_check_array=True)
        if reset and len(rows) < 2:
            raise ValueError(f"VAEDensity needs at least 2 samples to fit, got n_samples = {len(rows)}; give more rows")
        return rows

    def _arguments(self, rows: Any) -> dict[str, Any]:
        """Return the arguments of the programs, on their device."""
        arguments = self._rows.arguments(self._checked(rows, reset=False))
        return {name: value.to(self._parameter_device) for name, value in arguments.items()}

    def _numbers(self, rows: np.ndarray, form: Form) -> dict[str, Tensor]:
        """Set up rows for a likelihood of whole rows, and return their arguments."""
        if self.columns is not None:
            raise ValueError(
                "columns needs likelihood=None or a mapping of kinds to likelihoods, got one for the whole row; leave "
                "out one of them"
            )
        made = class_of(part("likelihood", self.likelihood, None))
        network = class_of(part("network", self.network, MLP))
        self._rows = NumberRows(
            rows,
            form,
            likelihood=made.__name__,
            are_counts=getattr(made, "starts_at_means", False),
            structured_by=network.__name__ if getattr(network, "structured", False) else None,
        )
        return self._rows.arguments(rows)

    def _blueprint(self, table: Table | None, data: Mapping[str, Tensor], splits: list[str]) -> Blueprint:
        options: dict[str, Any] = {
            "prior": part("prior", self.prior, StandardNormalPrior),
            "encoder": part("encoder", self.encoder, NormalEncoder),
            "network": part("network", self.network, partial(MLP, hidden=(64,))),
            "output_bias": self.output_bias,
            "mask_extra": self.mask_extra,
        }
        if table is not None:
            return Blueprint.of(table, self.latent_dim, parts=parts_of(self.likelihood), **options)
        train = torch.tensor([word == "train" for word in splits])
        return Blueprint(
            data["x"].shape[1],
            self.latent_dim,
            likelihood=part("likelihood", self.likelihood, None),
            x=data["x"][train],
            columns=None if self._rows.structured_by else self.columns_,
            **options,
        )

    def _train(self, data: Mapping[str, Tensor], splits: list[str]) -> Any:
        device = self._parameter_device
        held_out = torch.tensor([word == "validation" for word in splits])
        train = {name: value[~held_out].to(device) for name, value in data.items()}
        validation = {name: value[held_out].to(device) for name, value in data.items()} if held_out.any() else None
        steps = self.epochs * -(-len(train["x"]) // self.batch_size)
        options: dict[str, Any] = {
            "optimizer": partial(torch.optim.Adam, lr=self.learning_rate),
            "execution": "recorded" if steps >= _RECORDED_FROM else "eager",
            "patience": None if validation is None else self.patience,
            "seed": self.seed_,
            "progress": bool(self.verbose),
            **(self.fit_options or {}),
        }
        return fit(
            self.vae_.model,
            self.vae_.guide,
            train,
            elbo=ImportanceWeightedELBO(10) if self.elbo is None else copy.deepcopy(self.elbo),
            epochs=self.epochs,
            batch_size=self.batch_size,
            validation=validation,
            **options,
        )

    def _posterior_mean(self, arguments: Mapping[str, Tensor]) -> Tensor:
        """Return the mean of q(z|x), with shape (N, Z)."""
        with isolated_rng(self.seed_):
            return posterior_mean(self.vae_.guide, arguments)

    def _in_form(self, values: Mapping[str, Any]) -> Any:
        return self._rows.form.rows(values, self._constants)

    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            raise ValueError(
                f"device must be 'auto', 'cpu', or a GPU of this machine such as 'cuda', got {self.device!r:.40}"
            ) from error
        return device

    def _warn_of_khat(self, khat: Tensor) -> None:
        share = (khat > KHAT_LIMIT).double().mean().item()
        if self.num_particles >= _LEAST_DRAWS and share > _MANY:
            warnings.warn(
                f"k-hat is above {KHAT_LIMIT} for {100 * share:.1f} % of the data: few draws carry most of their "
                "weight, so their standard errors are unreliable and their log p(x) may be too low; increase "
                "num_particles",
                stacklevel=3,
            )


def _seed(random_state: Any) -> int:
    """Draw a seed, from the operating system if random_state is None, so that the global generator stays as it is."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return int(check_random_state(random_state).randint(2**31 - 1))
