"""Per-datum log densities of Pyro programs, ours or the user's own, and helpers that run programs on data.

    traces      traces with particles at dim -2, log densities of their sites
    weights     `log_joint` and `log_weights`
    contract    checks that model and guide agree: latents, masks, scales
    support     checks that data lie in the support
    modules     torch modules inside a program, evaluation mode
    handlers    `temper` and `substitute`
    arguments   rows and devices of program arguments
    streamed    data that stay on disk
    rng         states of random generators

Programs must keep a contract: every sample site lies inside one plate over the data at dim -1; particles use dim -2.
All results are computed from traces, so no function depends on the class of a prior or a likelihood.
"""

from pyrovae.densities.arguments import device_of, num_data, take
from pyrovae.densities.contract import matched_latents, take_kl_weight
from pyrovae.densities.handlers import substitute, temper
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
from pyrovae.densities.traces import Program, sample_sites, site_log_density, trace_log_density, trace_with_particles
from pyrovae.densities.weights import check_weights, log_joint, log_weights, log_weights_and_latents, nonfinite_sites

__all__ = [
    "Program",
    "Streamed",
    "SupportError",
    "check_support",
    "check_weights",
    "device_of",
    "evaluating",
    "generator_states",
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
    "site_log_density",
    "substitute",
    "take",
    "take_kl_weight",
    "temper",
    "torch_generator_states",
    "trace_log_density",
    "trace_with_particles",
]
