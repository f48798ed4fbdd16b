"""Per-datum log densities of Pyro programs, ours or the user's own, and helpers that run programs on data.

    vectorize   how a program runs on K draws for N data, found by small runs
    vectorized  programs with the way to run them on draws
    whole       programs whose whole data set counts as one datum
    data_plate  the plate over the data, among the plates of programs
    traces      traces on K draws for N data, log densities of their sites
    layout      where draws and data lie in the batch shapes of sites
    masks       masks around sites and inside their distributions
    weights     `log_joint` and `log_weights`
    auxiliary   auxiliary sites of Pyro's auto guides
    contract    checks that model and guide agree: latents, masks, scales
    support     checks that data lie in the support
    modules     torch modules inside a program, evaluation mode
    handlers    `temper`
    arguments   rows and devices of program arguments, `Whole`
    streamed    data that stay on disk
    rng         states of random generators

Programs must keep a contract: every sample site lies inside one plate over the data. All results are computed from
traces, so no function depends on the class of a prior or a likelihood.
"""

from pyrovae.densities.arguments import Whole, device_of, num_data, take
from pyrovae.densities.auxiliary import auto_guide_rows, check_spread, set_up_auto_guides
from pyrovae.densities.contract import matched_latents, take_kl_weight
from pyrovae.densities.handlers import temper
from pyrovae.densities.masks import entry_of, in_support, is_partial
from pyrovae.densities.modules import evaluating, module_of, modules_of
from pyrovae.densities.rng import (
    generator_states,
    isolated_rng,
    set_generator_states,
    set_torch_generator_states,
    torch_generator_states,
)
from pyrovae.densities.streamed import Streamed, prepared
from pyrovae.densities.support import SupportError, check_support
from pyrovae.densities.traces import ParticleTrace, Program, Site, sample_sites
from pyrovae.densities.vectorize import TiledWarning, vectorize, vectorize_pair
from pyrovae.densities.vectorized import VectorizedProgram
from pyrovae.densities.weights import (
    check_weights,
    draw_from_guide,
    log_joint,
    log_weights,
    log_weights_and_latents,
    nonfinite_sites,
)
from pyrovae.densities.whole import vectorize_whole

__all__ = [
    "ParticleTrace",
    "Program",
    "Site",
    "Streamed",
    "SupportError",
    "TiledWarning",
    "VectorizedProgram",
    "Whole",
    "auto_guide_rows",
    "check_spread",
    "check_support",
    "check_weights",
    "device_of",
    "draw_from_guide",
    "entry_of",
    "evaluating",
    "generator_states",
    "in_support",
    "is_partial",
    "isolated_rng",
    "log_joint",
    "log_weights",
    "log_weights_and_latents",
    "matched_latents",
    "module_of",
    "modules_of",
    "nonfinite_sites",
    "num_data",
    "prepared",
    "sample_sites",
    "set_generator_states",
    "set_torch_generator_states",
    "set_up_auto_guides",
    "take",
    "take_kl_weight",
    "temper",
    "torch_generator_states",
    "vectorize",
    "vectorize_pair",
    "vectorize_whole",
]
