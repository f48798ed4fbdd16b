"""`Blueprint`: the sizes and makers from which any model is built, a user's included."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrovae.columns import Columns
from pyrovae.encoders import Encoder, Features, NormalEncoder
from pyrovae.likelihoods import BernoulliLikelihood, Likelihood, MixedLikelihood, Moments, without_holes
from pyrovae.nn import MLP, Offset, Standardize, StandardizeCounts, WithCovariates, out_features
from pyrovae.priors import Prior, StandardNormalPrior
from pyrovae.programs.vae import VAE

OutputBias = Literal["random", "data"]

_EXAMPLES = {"likelihood": "NormalLikelihood", "encoder": "NormalEncoder"}


_FEATURES = 200  # size of an image's or a sequence's features, to which covariates are appended


@dataclass(frozen=True)
class Blueprint:
    """Sizes of a model and makers of its parts, from which any model is built for any data.

    A maker is a class, or `functools.partial` of a class with further arguments. The blueprint sizes the networks for
    the parts and their covariates, so an encoder q(z|x,c) needs no code.

    Args:
        num_dims: Dimension D of one flat datum.
        latent_dim: Dimension Z of the latent.
        num_covariates: Number of covariates C; 0 for none.
        prior: Maker of p(z) from the dimension of z.
        likelihood: Maker of p(x|z) from its network.
        encoder: Maker of q(z|x) from its network.
        network: Maker of a network from the sizes of its input and output. The decoder uses its mirror class.
        x: Training data, with shape (N, D), NaN where missing, which scale the encoder's input, give the likelihood its
            units and the floors of its learned scales (`floor_of`), and are passed to `Prior.attach`; None if saved
            weights will replace the values taken from them.
        output_bias: "data" sets the decoder's last bias so that p(x|z) has the means of x, and starts dispersions of
            the dimensions at its variances; "random" keeps the bias of the layer; None for "data" if the likelihood is
            of counts without a known total or of a table (`starts_at_means`) and x is given, else "random".
        columns: Columns of a table, from which the encoder makes its `Features`; None for an array.
        mask_extra: Probability with which the encoder's features hide an observed cell in training; needs columns.

    Raises:
        ValueError: If the maker of the likelihood or the encoder is no class, or needs further arguments.

    Example:
        >>> from functools import partial
        >>> from pyrovae import NormalLikelihood
        >>> blueprint = Blueprint(6, 2, num_covariates=3, likelihood=partial(NormalLikelihood, scale="network"))
        >>> vae = blueprint.vae()
        >>> vae.model(covariates=torch.zeros(4, 3)).shape
        torch.Size([4, 6])
    """

    num_dims: int
    latent_dim: int
    num_covariates: int = 0
    prior: Callable[..., Prior] = StandardNormalPrior
    likelihood: Callable[..., Likelihood] = BernoulliLikelihood
    encoder: Callable[..., Encoder] = NormalEncoder
    network: Callable[..., nn.Module] = MLP
    x: Tensor | None = None
    output_bias: OutputBias | None = None
    columns: Columns | None = None
    mask_extra: float = 0.0

    def __post_init__(self) -> None:
        for name in ("likelihood", "encoder"):
            _check_maker(name, getattr(self, name))

    @classmethod
    def of(
        cls,
        table: Any,
        latent_dim: int = 10,
        *,
        parts: Mapping[str, Callable[..., Likelihood]] | None = None,
        **options: Any,
    ) -> "Blueprint":
        """Make the blueprint for a table, with a `MixedLikelihood` of its columns.

        Args:
            table: Table from `read_table`.
            latent_dim: Dimension Z of the latent.
            parts: Makers of likelihoods by kind or by name of a column (see `MixedLikelihood`).
            **options: Further arguments of the blueprint, such as prior, encoder, network and mask_extra.

        Example:
            >>> from pyrovae.data import read_table
            >>> table = read_table({"age": [31, 44, None, 58, 27, 62] * 9, "sex": ["F", "M", "M", None, "F", "M"] * 9})
            >>> vae = Blueprint.of(table, latent_dim=1).vae()
            >>> vae.model(size=3).shape
            torch.Size([3, 2])
        """
        given = table.arguments("train")
        covariates = given.get("covariates")
        return cls(
            given["x"].shape[1],
            latent_dim,
            num_covariates=0 if covariates is None else covariates.shape[1],
            likelihood=functools.partial(MixedLikelihood, columns=table.columns, parts=parts),
            x=given["x"],
            columns=table.columns,
            **options,
        )

    def vae(self) -> VAE:
        """Build the model z -> x, given covariates if any.

        Raises:
            ValueError: As `VAE` and the parts.
        """
        prior = self.make_prior()
        likelihood = self.make_likelihood()
        encoder = self.make_encoder(prior.encoder_dim)
        return VAE(prior.attach(encoder, self.data), likelihood, encoder)

    @property
    def data(self) -> Tensor:
        """The training data, with shape (N, D), or one datum of zeros if x is None. Holes have other rows' values."""
        return without_holes(self._given)

    @property
    def _given(self) -> Tensor:
        return torch.zeros(1, self.num_dims) if self.x is None else self.x

    @property
    def moments(self) -> Moments:
        """Moments of the observed entries of the training data. Without data no scale has a floor."""
        found = Moments.of(self._given)
        return found if self.x is not None else found._replace(resolution=torch.zeros_like(found.resolution))

    def make_prior(self, latent_dim: int | None = None, num_covariates: int | None = None) -> Prior:
        """Make p(z), or p(z|c), for latents of size `latent_dim`; None for Z, and for C covariates."""
        part, _ = _class_and_arguments(self.prior)
        count = self.num_covariates if num_covariates is None else num_covariates
        takes_covariates = count and "num_covariates" in inspect.signature(part).parameters
        covariates = {"num_covariates": count} if takes_covariates else {}
        return self.prior(self.latent_dim if latent_dim is None else latent_dim, **covariates)

    def make_likelihood(self, latent_dim: int | None = None, num_covariates: int | None = None) -> Likelihood:
        """Make p(x|z), or p(x|z,c), for latents of size `latent_dim`; None for Z, and for C covariates."""
        size = self.latent_dim if latent_dim is None else latent_dim
        size += self.num_covariates if num_covariates is None else num_covariates
        network = _mirrored(self.network)(size, _num_outputs(self.likelihood, self.num_dims))
        likelihood = self.likelihood(network)
        moments = self.moments
        if not likelihood.floors_scales:
            moments = moments._replace(resolution=torch.zeros_like(moments.resolution))
        likelihood.set_units(moments)
        if self.output_bias == "data" or (self.output_bias is None and likelihood.starts_at_means):
            # Saved weights fit the same layers, whether x is given or not.
            x = self.data if self.output_bias or self.x is not None else None
            _start_at_means(likelihood, x)
            if x is not None:
                likelihood.start_at(x)
        return likelihood

    def make_encoder(self, latent_dim: int | None = None, num_covariates: int | None = None) -> Encoder:
        """Make q(z|x), or q(z|x,c), for latents of size `latent_dim`; None for Z, and for C covariates."""
        network, _ = _class_and_arguments(self.network)
        count = self.num_covariates if num_covariates is None else num_covariates
        outputs = _num_outputs(self.encoder, self.latent_dim if latent_dim is None else latent_dim)
        likelihood, _ = _class_and_arguments(self.likelihood)
        if self.columns is not None:
            features = Features(self.columns, self.mask_extra)
            return self.encoder(nn.Sequential(features, self.network(features.out_features + count, outputs)))
        if getattr(likelihood, "starts_at_means", False):
            scaled: nn.Module = StandardizeCounts.from_data(self._given, count)
        elif getattr(likelihood, "has_units", False):
            scaled = Standardize.around(self.moments.mean, self.moments.spread, count)
        else:
            scaled = Standardize.for_encoder(self._given, count)
        if count and getattr(network, "structured", False):
            head = MLP(_FEATURES + count, outputs, hidden=[_FEATURES])
            body: nn.Module = WithCovariates(self.network(self.num_dims, _FEATURES), head, self.num_dims)
        else:
            body = self.network(self.num_dims + count, outputs)
        return self.encoder(nn.Sequential(scaled, body))

    def make_upper_encoder(self, num_inputs: int, latent_dim: int, hidden: Sequence[int]) -> Encoder:
        """Make an encoder from an unordered vector, such as a lower layer's latents, with an `MLP`."""
        return self.encoder(MLP(num_inputs, _num_outputs(self.encoder, latent_dim), hidden=hidden))


@dataclass(frozen=True)
class RecordedMaker:
    """Maker of a `Blueprint` that notes when it makes a part.

    Attributes:
        maker: Function that makes the part.
        record: Function that is called before each part, or before its mirror, is made.
    """

    maker: Callable[..., Any]
    record: Callable[[], Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the part."""
        self.record()
        return self.maker(*args, **kwargs)


def _class_and_arguments(maker: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """Return the class that a maker instantiates, and the keyword arguments that it adds."""
    if isinstance(maker, RecordedMaker):
        maker = maker.maker
    if isinstance(maker, functools.partial):
        return maker.func, dict(maker.keywords)
    return maker, {}


def _check_maker(name: str, maker: Callable[..., Any]) -> None:
    """Check that a maker is a class with `num_outputs`, or a partial of one, that needs no argument but its network."""
    part, given = _class_and_arguments(maker)
    if not isinstance(part, type) or not hasattr(part, "num_outputs"):
        got = getattr(part, "__qualname__", None) or f"an object of {type(part).__name__}"
        raise ValueError(
            f"{name} must be a class such as {_EXAMPLES[name]}, whose num_outputs sizes its network, got {got}; for "
            f"further arguments write {name}=partial({_EXAMPLES[name]}, ...)"
        )
    parameters = list(inspect.signature(part).parameters.values())[1:]  # the first is the network
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    missing = [required_name for required_name in required if required_name not in given]
    if missing:
        written = ", ".join(f"{argument}=..." for argument in missing)
        raise ValueError(
            f"{name} must be made from its network alone, but {part.__name__} also needs {', '.join(missing)}; write "
            f"{name}=partial({part.__name__}, {written})"
        )


def _num_outputs(maker: Callable[..., Any], size: int) -> int:
    """Return the number of outputs that the network of a likelihood or an encoder needs."""
    part, arguments = _class_and_arguments(maker)
    outputs: int = part.num_outputs(size, **arguments)
    if outputs < 1:  # let the part refuse its arguments before the network refuses its size
        maker(nn.Identity())
    return outputs


def _mirrored(maker: Callable[..., Any]) -> Callable[..., Any]:
    """Return the maker of the decoder's network: of the mirror class with the same arguments, if the class has one."""
    network, options = _class_and_arguments(maker)
    if not hasattr(network, "mirror"):
        return maker
    mirror = functools.partial(network.mirror(), **options)
    return RecordedMaker(mirror, maker.record) if isinstance(maker, RecordedMaker) else mirror


def _start_at_means(likelihood: Likelihood, x: Tensor | None) -> None:
    """Set the last bias of the likelihood's network so that p(x|z) has the means of x; append a bias if it has none.

    If x is None, the layers are the same, and the bias is that of the layer, or 0 for one that is appended.
    """
    last = list(likelihood.network.modules())[-1]
    num_outputs = out_features(likelihood.network)
    start = torch.zeros(num_outputs) if x is None else likelihood.output_bias(x)
    if isinstance(last, nn.Linear) and last.bias is not None and last.out_features == num_outputs:
        if x is not None:
            with torch.no_grad():
                last.bias.copy_(start)
    else:
        likelihood.network = nn.Sequential(likelihood.network, Offset(start))
