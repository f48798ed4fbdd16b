"""Small models and guides of binary data, and their losses with gradients."""

from functools import partial

import pyro

from pyrovae import MLP, VAE, BernoulliLikelihood, Blueprint, NormalEncoder, StandardNormalPrior, TwoLayerVAE


def make_vae(seed=5):
    pyro.set_rng_seed(seed)
    small = partial(MLP, hidden=[8])
    return VAE(StandardNormalPrior(2), BernoulliLikelihood(small(2, 6)), NormalEncoder(small(6, 4)))


def loss_and_gradients(elbo, program, *args):
    program.zero_grad()
    pyro.set_rng_seed(1)
    loss = elbo.loss_and_grads(program.model, program.guide, *args)
    return loss, {name: p.grad for name, p in program.named_parameters()}


def two_layers(direction="bottom-up"):
    return TwoLayerVAE(Blueprint(6, 2, network=partial(MLP, hidden=[8])), top_dim=2, direction=direction)
