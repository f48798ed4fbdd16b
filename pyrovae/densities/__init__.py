"""Per-datum log densities of Pyro programs, ours or the user's own, and helpers that run programs on data.

    vectorize   how a program runs on K draws for N data, found by small runs
    ways        the check that finds the way a program runs on draws
    vectorized  programs with the way to run them on draws
    whole       programs whose whole data set counts as one datum
    data_plate  the plate over the data, among the plates of programs
    looped      traces of programs that run once per draw
    traces      traces on K draws for N data, log densities of their sites
    layout      where draws and data lie in the batch shapes of sites
    masks       masks around sites and inside their distributions
    weights     `log_joint`, `log_weights` and `weighted_draws`
    coverage    check that a guide may draw all that the posterior holds possible
    samplers    corrections of distributions whose draws do not follow their density
    program_state  state that programs change when they run, and its restoration
    enumeration sums over the values of discrete sites
    sum_checks  check of these sums
    auxiliary   auxiliary sites of Pyro's auto guides
    domains     the values that latents take: periods of angles, images of transforms, point masses
    contract    checks that model and guide agree: latents, masks, domains, scales
    support     checks that data lie in the support
    modules     torch modules inside a program, evaluation mode
    handlers    `temper`, and the check for changes in place
    entry       the check of arguments at the entry of public functions
    moved       data along another dim than the first
    rows        parameters with one row per datum, in error messages
    arguments   rows and devices of program arguments, `Whole`
    streamed    data that stay on disk
    rng         states of random generators

Programs must keep a contract: every sample site lies inside one plate over the data. All results are computed from
traces, so no function depends on the class of a prior or a likelihood.
"""

from pyrovae.densities.arguments import Whole, device_of, has_data, num_data, plain, take
from pyrovae.densities.auxiliary import auto_guide_rows, check_spread, set_up_auto_guides
from pyrovae.densities.contract import check_density, matched_latents, take_kl_weight
from pyrovae.densities.coverage import warn_of_missed_mass
from pyrovae.densities.data_plate import run_once, unused_sites
from pyrovae.densities.domains import CIRCLE, Image, domain_of, entry_support
from pyrovae.densities.entry import entry, prepare_arguments
from pyrovae.densities.handlers import temper
from pyrovae.densities.masks import Mask, entry_of, in_support, is_partial
from pyrovae.densities.modules import evaluating, module_of, modules_and_settings_of, modules_of
from pyrovae.densities.moved import Rows, find_rows
from pyrovae.densities.program_state import ProgramState
from pyrovae.densities.rng import (
    generator_states,
    isolated_rng,
    set_generator_states,
    set_torch_generator_states,
    torch_generator_states,
)
from pyrovae.densities.rounding import log_density_rounding, shared_rounding
from pyrovae.densities.rows import mismatch_of_rows
from pyrovae.densities.streamed import Streamed, prepared
from pyrovae.densities.support import SupportError, check_support
from pyrovae.densities.traces import ParticleTrace, Program, Site, sample_sites
from pyrovae.densities.vectorize import sum_discrete, vectorize, vectorize_pair
from pyrovae.densities.vectorized import VectorizedProgram
from pyrovae.densities.ways import TiledWarning
from pyrovae.densities.weights import (
    WeightedDraws,
    advice_on_units,
    bad_data,
    check_weights,
    describe_bad_data,
    draw_from_guide,
    log_joint,
    log_weights,
    nonfinite_sites,
    weighted_draws,
)
from pyrovae.densities.whole import LoopedWarning, vectorize_whole

__all__ = [
    "CIRCLE",
    "Image",
    "LoopedWarning",
    "Mask",
    "ParticleTrace",
    "Program",
    "ProgramState",
    "Rows",
    "Site",
    "Streamed",
    "SupportError",
    "TiledWarning",
    "VectorizedProgram",
    "WeightedDraws",
    "Whole",
    "advice_on_units",
    "auto_guide_rows",
    "bad_data",
    "check_density",
    "check_spread",
    "check_support",
    "check_weights",
    "describe_bad_data",
    "device_of",
    "domain_of",
    "draw_from_guide",
    "entry",
    "entry_of",
    "entry_support",
    "evaluating",
    "find_rows",
    "generator_states",
    "has_data",
    "in_support",
    "is_partial",
    "isolated_rng",
    "log_density_rounding",
    "log_joint",
    "log_weights",
    "matched_latents",
    "mismatch_of_rows",
    "module_of",
    "modules_and_settings_of",
    "modules_of",
    "nonfinite_sites",
    "num_data",
    "plain",
    "prepare_arguments",
    "prepared",
    "run_once",
    "sample_sites",
    "set_generator_states",
    "set_torch_generator_states",
    "set_up_auto_guides",
    "shared_rounding",
    "sum_discrete",
    "take",
    "take_kl_weight",
    "temper",
    "torch_generator_states",
    "unused_sites",
    "vectorize",
    "vectorize_pair",
    "vectorize_whole",
    "warn_of_missed_mass",
    "weighted_draws",
]
