"""Mixture of VAEs that share their networks."""

from dataclasses import replace

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
    `TraceEnum_ELBO` sums over y exactly, at K times the cost for K classes. After Kingma, Rezende, Mohamed and Welling,
    "Semi-supervised learning with deep generative models" (NeurIPS 2014, https://arxiv.org/abs/1406.5298), without
    labels.

    Args:
        blueprint: Sizes of the model and makers of its parts.
        num_classes: Number K of classes y.

    Raises:
        ValueError: If num_classes is below 2, the encoder cannot be mapped to the support of the prior, or a part
            rejects its arguments.
    """

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
        self.guide = MixtureGuide(classes, encoder, name=f"{self.name}.guide")


class MixtureModel(DataProgram):
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
        self.logits = nn.Parameter(torch.zeros(num_classes))

    def forward(
        self,
        x: Tensor | None = None,
        *,
        covariates: Tensor | None = None,
        mask: Tensor | None = None,
        size: int = 1,
    ) -> Tensor:
        """Generate data, or score given data. Arguments, result and errors are those of `Model.forward`."""
        with data_plate(x, covariates, size):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.logits))
            conditions = join(y, covariates)
            z = pyro.sample("z", self.prior(conditions))
            return sample_datum(self.likelihood(z, conditions), x, mask)


class MixtureGuide(DataProgram):
    """Pyro program q(y|x) q(z|x,y) of `MixtureVAE`.

    Args:
        classes: Module whose forward returns q(y|x).
        encoder: Module whose forward returns q(z|x,y).
        name: Name in Pyro's parameter store, unique in the process.
    """

    def __init__(self, classes: nn.Module, encoder: nn.Module, *, name: str = "guide") -> None:
        super().__init__(name)
        self.classes, self.encoder = classes, encoder

    def forward(self, x: Tensor, *, covariates: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Draw latents given data. Arguments are those of `Guide.forward`."""
        x = fill_missing(x, mask, self)
        conditions = () if covariates is None else (covariates,)
        with data_plate(x):
            y = sample_latent("y", self.classes(x, *conditions))
            sample_latent("z", self.encoder(x, join(y, covariates)))
