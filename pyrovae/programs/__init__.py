"""Whole models: pairs of a Pyro model and a Pyro guide, and the blueprint that builds them from parts.

    vae            `Model`, `Guide` and `VAE`
    two_layer      two layers of latents
    mixture        mixture of VAEs
    sites          sample sites: plate, latents, data and their masks
    data_program   base class of programs, which converts and checks x, covariates and mask
    blueprint      sizes and makers of parts
    program_pair   base class

A model of another structure, such as further latent layers, is a new `ProgramPair` in this room.
"""

from pyrovae.programs.blueprint import Blueprint, OutputBias, RecordedMaker
from pyrovae.programs.mixture import MixtureVAE
from pyrovae.programs.program_pair import ProgramPair
from pyrovae.programs.two_layer import TwoLayerVAE
from pyrovae.programs.vae import VAE, Guide, Model

__all__ = [
    "VAE",
    "Blueprint",
    "Guide",
    "MixtureVAE",
    "Model",
    "OutputBias",
    "ProgramPair",
    "RecordedMaker",
    "TwoLayerVAE",
]
