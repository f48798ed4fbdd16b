"""Mixture of VAEs that share their networks, with labels of some data or none."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.encoders import CategoricalEncoder, constrain_encoder
from pyrovae.nn import join
from pyrovae.programs.blueprint import Blueprint
from pyrovae.programs.data_program import DataProgram
from pyrovae.programs.program_pair import ProgramPair
from pyrovae.programs.sites import data_plate, fill_missing, sample_datum, sample_latent


class MixtureVAE(ProgramPair):
    """Mixture of VAEs that share their networks.

        model: p(y) p(z|y) p(x|z,y),  guide: q(y|x) q(z|x,y)

    The sites are "y" (one-hot), "z" and "x". p(y) has learned probabilities. y enters prior, likelihood and encoder as
    covariates do. A prior that ignores covariates is equal for all y; `ConditionalNormalPrior` makes p(z) a mixture.
    `TraceEnum_ELBO` sums over y exactly, at K times the cost for K classes.

    With `labels`, known for some data and missing for others, it is the semi-supervised model M2 of Kingma, Rezende,
    Mohamed and Welling, "Semi-supervised learning with deep generative models" (NeurIPS 2014,
    https://arxiv.org/abs/1406.5298, eq. 6-8): every objective and every estimate is then that of

        log p(x_n, y_n) = log p(y_n) + log p(x_n|y_n)   if the label y_n is known,   log p(x_n)   if it is missing.

    The label is the observed site "label". In a labelled row the latent "y" is auxiliary: model and guide both draw it
    uniformly, nothing depends on it, and its densities cancel; its draws mean nothing there. By the ELBO, labelled rows
    do not train q(y|x), and unlabelled rows may then use y for other clusters than the labels; `ClassificationELBO`
    trains q(y|x) on the labels. `classify` gives p(y|x) of the model.

    Args:
        blueprint: Sizes of the model and makers of its parts.
        num_classes: Number K of classes y.

    Raises:
        ValueError: If num_classes is below 2, the encoder cannot be mapped to the support of the prior, or a part
            rejects its arguments.
    """

    takes_labels: ClassVar[bool] = True

    def __init__(self, blueprint: Blueprint, num_classes: int = 10) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}; use VAE for one class")
        count = blueprint.num_covariates + num_classes
        prior = blueprint.make_prior(num_covariates=count)
        encoder = constrain_encoder(blueprint.make_encoder(prior.encoder_dim, count), prior.support)
        likelihood = blueprint.make_likelihood(num_covariates=count)
        prior = prior.attach(encoder, blueprint.data)
        classes = replace(blueprint, encoder=CategoricalEncoder).make_encoder(num_classes)
        self.model = MixtureModel(prior, likelihood, num_classes, name=f"{self.name}.model")
        self.guide = MixtureGuide(classes, encoder, num_classes, name=f"{self.name}.guide")


class LabelledProgram(DataProgram):
    """Base class of the programs of `MixtureVAE`, which also checks and converts the argument `labels`.

    Attributes:
        num_classes: Number K of classes y.
    """

    num_classes: int

    def program_arguments(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Convert and check the arguments, as `DataProgram.program_arguments`, and labels to int64.

        Args:
            args: Positional arguments of the program.
            kwargs: Keyword arguments of the program.
            context: Context of the run, such as evaluation mode.

        Raises:
            ValueError: If labels are not N integers from -1 to K - 1, or as `DataProgram.program_arguments`.
        """
        args, kwargs = super().program_arguments(args, kwargs, context)
        labels = kwargs.get("labels")
        if labels is None:
            return args, kwargs
        x = args[0] if args else kwargs["x"]
        labels = torch.as_tensor(labels) if isinstance(labels, np.ndarray) else labels
        _check_labels(labels, len(x))
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < -1 or highest >= self.num_classes:
            raise ValueError(
                f"labels must be from 0 to {self.num_classes - 1}, and -1 where missing, got {lowest} to {highest}; "
                f"give the codes of {self.num_classes} classes, or another num_classes"
            )
        return args, kwargs | {"labels": labels.to(x.device, torch.int64)}


def _check_labels(labels: Any, size: int) -> None:
    """Check the type and the shape of labels."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a tensor or a numpy array, got {type(labels).__name__}; give torch.tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be integer codes of classes, -1 where missing, got {labels.dtype}; give labels.long(), with "
            "-1 for each missing one"
        )
    if labels.shape != (size,):
        one_hot = labels.dim() == 2 and labels.shape[1] > 1
        advice = "labels.argmax(1) of one-hot labels" if one_hot else "one code for each datum"
        raise ValueError(f"labels must have shape ({size},), got {tuple(labels.shape)}; give {advice}")


def _hide_class(logits: Tensor, labels: Tensor | None) -> Tensor:
    """Return the logits of the latent y: those given, with shape (K,) or (N, K), and uniform ones in labelled rows."""
    if labels is None:
        return logits
    return torch.where((labels >= 0).unsqueeze(-1), 0.0, logits)


def _known_class(y: Tensor, labels: Tensor | None) -> Tensor:
    """Return the class that each datum uses: its label if it has one, else the latent y, one-hot, as y."""
    if labels is None:
        return y
    labels = labels.unsqueeze(-1)
    known = (labels == torch.arange(y.shape[-1], device=y.device)).to(y.dtype)
    return torch.where(labels >= 0, known, y)


class MixtureModel(LabelledProgram):
    """Pyro program p(y) p(z|y) p(x|z,y) of `MixtureVAE`.

    Args:
        prior: Module whose forward returns p(z|y).
        likelihood: Module whose forward returns p(x|z,y).
        num_classes: Number K of classes y.
        name: Name in Pyro's parameter store, unique in the process.
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module, num_classes: int, *, name: str = "model") -> None:
        super().__init__(name)
        self.prior, self.likelihood = prior, likelihood
        self.num_classes = num_classes
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Generate data, or score given data. Result and errors are those of `Model.forward`.

        Args:
            x: Data, with shape (N, D); None to generate data.
            covariates: Covariates c, with shape (N, C); None if the model has none.
            mask: Whether each entry of x is observed, with shape (N, D) or (N,); None if all are.
            labels: Class of each datum, with shape (N,), int64, 0 to K - 1, and -1 where missing; None if all are. Data
                are generated from their class if it is given, else from a random class.
            size: Number of data N if none of x, covariates and labels are given.
        """
        given = next((value for value in (x, covariates, labels) if value is not None), None)
        if labels is not None and given is not None:
            _check_labels(labels, len(given))
        with data_plate(given, size=size):
            if labels is not None:
                p_label = dist.Categorical(logits=self.logits)
                pyro.sample("label", p_label.mask(labels >= 0), obs=labels.clamp(min=0))
            y = pyro.sample("y", dist.OneHotCategorical(logits=_hide_class(self.logits, labels)))
            conditions = join(_known_class(y, labels), covariates)
            z = pyro.sample("z", self.prior(conditions))
            return sample_datum(self.likelihood(z, conditions), x, mask)


class MixtureGuide(LabelledProgram):
    """Pyro program q(y|x) q(z|x,y) of `MixtureVAE`.

    Args:
        classes: Module whose forward returns q(y|x).
        encoder: Module whose forward returns q(z|x,y).
        num_classes: Number K of classes y.
        name: Name in Pyro's parameter store, unique in the process.
    """

    def __init__(self, classes: nn.Module, encoder: nn.Module, num_classes: int, *, name: str = "guide") -> None:
        super().__init__(name)
        self.classes, self.encoder = classes, encoder
        self.num_classes = num_classes

    def forward(
        self,
        x: Tensor,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Draw latents given data. Arguments are those of `MixtureModel.forward`."""
        x = fill_missing(x, mask, self)
        conditions = () if covariates is None else (covariates,)
        if labels is not None:
            _check_labels(labels, len(x))
        with data_plate(x):
            q_y = self.classes(x, *conditions)
            if labels is not None:
                q_y = dist.OneHotCategorical(logits=_hide_class(q_y.logits, labels))
            y = sample_latent("y", q_y)
            sample_latent("z", self.encoder(x, join(_known_class(y, labels), covariates)))
