"""Pooled estimates from several imputations of the missing cells of a table: Rubin's rules."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Pooled(NamedTuple):
    """Pooled estimate and its parts, each with the shape of one estimate, float64. The names are those of R's mice.

    Attributes:
        estimate: Mean of the estimates.
        std_error: Standard error, the square root of the total variance.
        df: Degrees of freedom of the t distribution of (estimate - truth) / std_error.
        riv: Relative increase of the variance due to the missing cells.
        lambda_: Share of the total variance due to the missing cells.
        fmi: Fraction of missing information.
        within: Mean of the variances of the complete-data analyses.
        between: Variance between imputations; between refits if there are several draws of each.
    """

    estimate: Tensor
    std_error: Tensor
    df: Tensor
    riv: Tensor
    lambda_: Tensor
    fmi: Tensor
    within: Tensor
    between: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Compute the interval estimate +- t std_error, with t a quantile of the t distribution with df.

        Args:
            level: Probability of the interval, between 0 and 1.

        Raises:
            ValueError: If level is not between 0 and 1.
        """
        from scipy.stats import t

        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}; give 0.95 for a 95 % interval")

        quantile = torch.as_tensor(t.ppf(0.5 + level / 2, self.df.numpy()), dtype=torch.float64)
        return self.estimate - quantile * self.std_error, self.estimate + quantile * self.std_error


def pool(estimates: Tensor, variances: Tensor, *, df_complete: float = math.inf, nested: bool = False) -> Pooled:
    """Pool the estimates of the same analysis of m imputed tables.

        estimate = mean Q,  total variance T = U + (1 + 1/m) B

    U is the mean of the variances, B the variance of the estimates (Rubin, "Multiple imputation for nonresponse in
    surveys", 1987). The degrees of freedom are those of Barnard and Rubin, Biometrika 1999,
    https://doi.org/10.1093/biomet/86.4.948.

    Several imputations by one fit of the imputation model are not independent. With `nested` they are R draws of each
    of M refits, and

        T = U + (1 + 1/M) B + (1 - 1/R) W,
        1/df = ((1 + 1/M) B / T)^2 / (M - 1) + ((1 - 1/R) W / T)^2 / (M (R - 1)),

    with the variance B of the M means and the mean variance W of the draws around them (Shen, "Nested multiple
    imputation", thesis, Harvard 2000; Harel, Statistical Methodology 2007,
    https://doi.org/10.1016/j.stamet.2006.03.002).

    Args:
        estimates: Estimates Q, with shape (m, ...), or (M, R, ...) if nested.
        variances: Their variances U, squared standard errors, with the same shape.
        df_complete: Degrees of freedom of the analysis of complete data, such as n - k; infinite for a normal one.
            Nested rules are for an infinite number; a finite one enters as in Barnard and Rubin's.
        nested: Whether the second dimension is the draws of a refit.

    Returns:
        `Pooled`, each with the shape (...) of one estimate.

    Raises:
        ValueError: If the shapes differ, there are fewer than two imputations or refits, a variance is negative or
            anything is not finite, or df_complete is not positive.

    Example:
        >>> found = pool(torch.tensor([-1.5457, -1.428]), torch.tensor([0.9723, 1.041]) ** 2, df_complete=23)
        >>> [round(value.item(), 4) for value in (found.estimate, found.std_error, found.df, found.fmi)]
        [-1.4868, 1.0124, 20.9703, 0.0927]
    """
    q, u = _checked(estimates, variances, df_complete, nested)
    draws = q if nested else q.unsqueeze(1)
    m, r = draws.shape[:2]
    means = draws.mean(1)
    between = means.var(0)
    inner = (draws - means.unsqueeze(1)).square().sum((0, 1)) / max(m * (r - 1), 1)
    within = u.mean((0, 1) if nested else 0)
    outer_part, inner_part = (1 + 1 / m) * between, (1 - 1 / r) * inner
    added = outer_part + inner_part
    total = within + added
    share = torch.where(total > 0, added / total, 0.0)
    outer_share, inner_share = (torch.where(total > 0, one / total, 0.0) for one in (outer_part, inner_part))
    per_df = outer_share.square() / (m - 1) + inner_share.square() / max(m * (r - 1), 1)
    df = 1 / per_df  # infinite without variation between imputations
    if df_complete < math.inf:
        observed = (df_complete + 1) / (df_complete + 3) * df_complete * (1 - share)
        df = torch.where(df.isfinite(), df * observed / (df + observed), observed)
    riv = torch.where(added > 0, added / within, 0.0)
    fmi = share + (1 - share) * 2 / (df + 3)  # (riv + 2 / (df + 3)) / (riv + 1), also for an infinite riv
    return Pooled(means.mean(0), total.sqrt(), df, riv, share, fmi, within, between)


def _checked(estimates: Tensor, variances: Tensor, df_complete: float, nested: bool) -> tuple[Tensor, Tensor]:
    q, u = torch.as_tensor(estimates).double(), torch.as_tensor(variances).double()
    leading = 2 if nested else 1
    if q.shape != u.shape or q.dim() < leading:
        needed = "(M, R, ...)" if nested else "(m, ...)"
        raise ValueError(
            f"estimates and variances need the same shape {needed}, got {tuple(q.shape)} and {tuple(u.shape)}"
        )
    if len(q) < 2 or (nested and q.shape[1] < 1):
        what = "refits" if nested else "imputations"
        raise ValueError(f"pooling needs at least two {what}, got {len(q)}; impute more often")
    if not bool(q.isfinite().all() & u.isfinite().all() & (u >= 0).all()):
        raise ValueError("estimates must be finite, and variances finite and not negative; look at the analyses")
    if not df_complete > 0:
        raise ValueError(f"df_complete must be above 0, got {df_complete}; give n - k")
    return q, u
