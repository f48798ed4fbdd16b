"""Recordable versions of Pyro's objectives, whose losses consist of tensor operations alone."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.densities import Program
from pyrovae.execution import NotRecordedError
from pyrovae.objectives.case_weights import CaseWeighted, sum_over_data

_COMPILED: dict[type[Any], Any] = {
    JitTrace_ELBO: Trace_ELBO,
    JitTraceEnum_ELBO: TraceEnum_ELBO,
    JitTraceMeanField_ELBO: TraceMeanField_ELBO,
}


def uncompiled(elbo: ELBO) -> ELBO:
    """Return an objective of Pyro without its compilation, which would keep the first step's scales and sizes.

    Args:
        elbo: Objective. One that is not compiled stays as it is.

    Raises:
        ValueError: If the objective is of a class derived from a compiled one.
    """
    if type(elbo) in _COMPILED:
        other = copy(elbo)
        other.__class__ = _COMPILED[type(elbo)]
        return other
    if isinstance(elbo, tuple(_COMPILED)):
        base = next(base for base in type(elbo).__mro__ if base in _COMPILED)
        raise ValueError(
            f"{type(elbo).__name__} compiles the first step with its weights and its batch size, which change later; "
            f'derive it from {_COMPILED[base].__name__}, and write execution="compiled" in fit'
        )
    return elbo


class RecordableTrace_ELBO(Trace_ELBO):  # noqa: N801  # Pyro's spelling
    r"""Recordable Trace_ELBO.

        loss = sum_q log q(z|x) - sum_p log p(x, z)

    As in Pyro, the gradient is pathwise for reparameterised draws. For other draws it is the score function, grad log q
    times the downstream terms (Ranganath, Gerrish, Blei 2014, https://arxiv.org/abs/1401.0118).
    """

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, in nats, a scalar."""
        traces = self._get_traces(model, guide, args, kwargs)
        return sum(self._loss_of(*pair) for pair in traces) / self.num_particles

    def _loss_of(self, model_trace: Any, guide_trace: Any) -> Tensor:
        drawn, scored = _sites(guide_trace), _sites(model_trace)
        log_p = sum(site["log_prob_sum"] for site in scored.values())
        loss = sum(site["log_prob_sum"] for site in drawn.values()) - log_p
        surrogate, log_r = -log_p, None
        for site in drawn.values():
            _, score_function, entropy = site["score_parts"]
            if not is_identically_zero(entropy):
                surrogate = surrogate + entropy.sum()
            if not is_identically_zero(score_function):
                log_r = log_r or _log_r(scored, drawn, get_plate_stacks(model_trace))
                surrogate = surrogate - (log_r.sum_to(site["cond_indep_stack"]) * score_function).sum()
        return surrogate if log_r is None else surrogate + (loss - surrogate).detach()


class RecordableTraceMeanField_ELBO(RecordableTrace_ELBO):  # noqa: N801  # Pyro's spelling
    """Recordable TraceMeanField_ELBO, with the KL divergence of each site in closed form if torch has one."""

    def _loss_of(self, model_trace: Any, guide_trace: Any) -> Tensor:
        drawn, scored = _sites(guide_trace), _sites(model_trace)
        loss: Any = 0.0
        for name, site in scored.items():
            if site["is_observed"]:
                loss = loss - site["log_prob_sum"]
                continue
            q, p = drawn[name], site
            try:
                kl = scale_and_mask(kl_divergence(q["fn"], p["fn"]), scale=q["scale"], mask=q["mask"])
            except NotImplementedError:
                loss = loss + q["score_parts"].entropy_term.sum() - p["log_prob_sum"]
            else:
                loss = loss + torch.as_tensor(kl).expand(q["fn"].batch_shape).sum()
        for name, site in drawn.items():
            if name not in scored:
                loss = loss + site["score_parts"].entropy_term.sum()
        return loss


class RecordableTraceEnum_ELBO(TraceEnum_ELBO):  # noqa: N801  # Pyro's spelling
    """Recordable TraceEnum_ELBO, for programs with all sites in the data plate.

        loss = sum_n sum_y q(y|x_n) (log q(y, z|x_n) - log p(x_n, y, z))

    The sum is over all values y of the sites that the guide enumerates in parallel. Each value has its own draw z of
    the remaining sites. As in Pyro, values of probability 0 are omitted.
    """

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch, in nats, a scalar."""
        return self._weighed(None, model, guide, args, kwargs)

    def _weighed(
        self, weights: Tensor | None, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Tensor:
        """Compute the loss of a batch whose data have case weights, with shape (N,); None for 1."""
        total: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            total = total + self._loss_of(model_trace, guide_trace, weights)
        return total / self.num_particles

    def _loss_of(self, model_trace: Any, guide_trace: Any, weights: Tensor | None) -> Tensor:
        drawn, scored = _sites(guide_trace), _sites(model_trace)
        _check_enumeration(drawn, scored)
        loss = sum(site["log_prob"] for site in drawn.values()) - sum(site["log_prob"] for site in scored.values())
        enumerated = [site for site in drawn.values() if site["infer"].get("enumerate")]
        q = sum((site["score_parts"].score_function for site in enumerated), torch.zeros_like(loss)).exp()
        present = q > 0
        return sum_over_data(torch.where(present, q * torch.where(present, loss, 0.0), 0.0), weights)


def _check_enumeration(drawn: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
    plates = {tuple(frame.name for frame in site["cond_indep_stack"]) for site in (*drawn.values(), *scored.values())}
    if len(plates) > 1:
        raise NotRecordedError("recording TraceEnum_ELBO needs every site in the data plate alone")
    for name, site in {**scored, **drawn}.items():
        enumeration = site["infer"].get("enumerate")
        if enumeration and (enumeration != "parallel" or site["infer"].get("num_samples") or name not in drawn):
            raise NotRecordedError(
                f"recording TraceEnum_ELBO needs a guide that enumerates all values of site {name!r} in parallel"
            )
        if not enumeration and name in drawn and not is_identically_zero(site["score_parts"].score_function):
            raise NotRecordedError(f"recording TraceEnum_ELBO needs reparameterised draws, but site {name!r} has none")


_RECORDABLE: dict[type, type[ELBO]] = {
    Trace_ELBO: RecordableTrace_ELBO,
    TraceEnum_ELBO: RecordableTraceEnum_ELBO,
    TraceMeanField_ELBO: RecordableTraceMeanField_ELBO,
}


def recordable(elbo: ELBO | CaseWeighted) -> Any:
    """Return the recordable version of an objective.

    An objective with the attribute `recordable = True` is returned as it is. Its differentiable_loss must consist of
    tensor operations, read no tensor's value in Python, and keep no state.

    Raises:
        NotRecordedError: If the objective has no recordable version.
    """
    if isinstance(elbo, CaseWeighted):
        return elbo.with_objective(recordable(elbo.elbo))
    if type(elbo) in _RECORDABLE:
        objective: Any = _RECORDABLE[type(elbo)]()
        vars(objective).update(vars(elbo))
        return objective
    if getattr(elbo, "recordable", False):
        return elbo
    raise NotRecordedError(
        f"recording needs an objective of tensor operations alone, but {type(elbo).__name__} is not known to be one; "
        "set its attribute recordable to True if it is one"
    )


def _sites(trace: Any) -> dict[str, Any]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _log_r(scored: Mapping[str, Any], drawn: Mapping[str, Any], stacks: Mapping[str, Any]) -> MultiFrameTensor:
    log_r = MultiFrameTensor()
    for name, site in scored.items():
        log_q = 0.0 if site["is_observed"] else drawn[name]["log_prob"]
        log_r.add((stacks[name], (site["log_prob"] - log_q).detach()))
    return log_r
