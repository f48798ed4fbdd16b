"""Scores of disentanglement: how far each code follows one known factor of the data. Arrays alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

Array = NDArray[Any]

_BATCH = 64  # pairs or data behind one vote, as in Kim and Mnih
_NEIGHBOURS = 3  # of the estimate of mutual information


class Score(NamedTuple):
    """Score of codes against factors.

    Attributes:
        value: Score.
        floor: Value for codes that do not depend on the factors, up to noise.
        ceiling: Value for codes that are the factors.
        by_factor: Part of each factor, with shape (K,); NaN where the score has no parts.
        table: Numbers for each code and factor, with shape (Z, K): mutual information in nats (MIG), skill (SAP), or
            share of the votes (FactorVAE).
    """

    value: float
    floor: float
    ceiling: float
    by_factor: Array
    table: Array

    @property
    def rescaled(self) -> float:
        """Score with the floor at 0 and the ceiling at 1; it can be negative."""
        return (self.value - self.floor) / (self.ceiling - self.floor)


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness; each 0 at chance and 1 for codes that are the factors.

    Attributes:
        disentanglement: Whether each code is important for one factor alone; codes count by their importance.
        completeness: Whether each factor needs one code alone, the mean over factors. Duplicated codes lower it.
        informativeness: Skill of the prediction on held-out data, (accuracy - chance) / (1 - chance) for classes and
            R^2 for numbers, the mean over factors. Eastwood and Williams report an error, which is lower for better
            codes.
        by_code: Disentanglement of each code, with shape (Z,).
        by_factor: Completeness of each factor, with shape (K,).
        skill: Informativeness of each factor, with shape (K,).
        importance: Importance of each code for each factor, columns with sum 1 or 0, with shape (Z, K).
    """

    disentanglement: float
    completeness: float
    informativeness: float
    by_code: Array
    by_factor: Array
    skill: Array
    importance: Array


def mig(codes: Array, factors: Array, *, bins: int | None = None, seed: int = 0) -> Score:
    """Compute the mutual information gap, with floor 0 and ceiling 1.

        MIG = mean_k (I(z_a; v_k) - I(z_b; v_k)) / H(v_k),  a and b the codes with the largest information on v_k

    Chen, Li, Grosse, Duvenaud, "Isolating sources of disentanglement in variational autoencoders" (NeurIPS 2018,
    https://arxiv.org/abs/1802.04942). z_j there is a draw of q(z_j|x), so give one draw per datum for their quantity;
    posterior means give that of the means. Duplicated codes score 0 by definition. The information is estimated by
    nearest neighbours (Ross, "Mutual information between discrete and continuous data sets", 2014,
    https://doi.org/10.1371/journal.pone.0087357), nearly without bias, so noise scores 0 up to its error.

    Args:
        codes: Codes with shape (N, Z), Z at least 2.
        factors: Factors with shape (N, K), K at least 2, integers.
        bins: Number of bins of equal width for each code, as older studies have it, which use 20; None for nearest
            neighbours. Bins overestimate the information by about (bins - 1) (classes - 1) / (2 N) nats, and 20 bins
            cannot tell 40 classes apart.
        seed: Random seed of the noise that separates ties.

    Raises:
        ValueError: If the shapes are others, numbers are not finite, a factor has one value or is not of classes.
    """
    codes, classes = _checked(codes, factors, classes=True)
    if bins is not None and bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    entropies = np.array([_entropy(column) for column in classes.T])
    columns = [
        [_binned_information(code, v, bins) for code in codes.T] if bins else _neighbour_information(codes, v, seed)
        for v in classes.T
    ]
    table = np.array(columns).T
    return _gap(table / entropies, table)


def sap(codes: Array, factors: Array, *, seed: int = 0) -> Score:
    """Compute the separated attribute predictability, with floor 0 and ceiling 1.

        SAP = mean_k (S_ak - S_bk),  a and b the codes with the largest skill S_jk for factor k alone

    Kumar, Sattigeri, Balakrishnan, "Variational inference of disentangled latent concepts from unlabeled observations"
    (ICLR 2018, https://arxiv.org/abs/1711.00848). For factors that are numbers, S is the squared correlation. For
    classes, S is (accuracy - 1/C) / (1 - 1/C) with the balanced accuracy, on the second half of the data, of a tree of
    at most C leaves that the first half trains. Their linear classifier on one code cannot pick a class in the middle,
    so that codes that are the factors themselves score far below 1 by it.

    Args:
        codes: Codes with shape (N, Z), Z at least 2.
        factors: Factors with shape (N, K), K at least 2: integers are classes, floating point numbers are numbers.
        seed: Random seed of the halves.

    Raises:
        ValueError: If the shapes are others, numbers are not finite, or a factor has one value.
    """
    codes, values = _checked(codes, factors)
    halves = _halves(len(codes), seed)
    skill = _tree_skill if _is_classes(values) else _squared_correlation
    table = np.array([[skill(code, v, halves) for v in values.T] for code in codes.T])
    return _gap(table, table)


def dci(codes: Array, factors: Array, *, predictor: Any = None, seed: int = 0) -> DCI:
    """Compute disentanglement, completeness and informativeness from the importance of codes for a predictor.

        D_j = 1 - H_K(R_jk / sum_k R_jk),  D = sum_j D_j sum_k R_jk / sum R,  C = mean_k (1 - H_Z(R_jk / sum_j R_jk))

    with the importance R and entropies to base K and Z. Eastwood and Williams, "A framework for the quantitative
    evaluation of disentangled representations" (ICLR 2018, https://openreview.net/forum?id=By-7dz-AZ). The score
    depends on the predictor: a forest, which looks at random subsets of codes at each split, spreads importance over
    useless codes. The default, gradient boosting that looks at all codes, does not.

    Args:
        codes: Codes with shape (N, Z), Z at least 2.
        factors: Factors with shape (N, K), K at least 2: integers are classes, floating point numbers are numbers.
        predictor: Classifier or regressor of scikit-learn with `feature_importances_`, copied for each factor; None for
            gradient boosting.
        seed: Random seed of the halves of the data, which train and test, and of the default predictor.

    Raises:
        ValueError: If the shapes are others, numbers are not finite, or a factor has one value.
    """
    codes, values = _checked(codes, factors)
    train, test = _halves(len(codes), seed)
    classes = _is_classes(values)
    if predictor is None:
        predictor = (GradientBoostingClassifier if classes else GradientBoostingRegressor)(random_state=seed)
    importance = np.zeros((codes.shape[1], values.shape[1]))
    skill = np.zeros(values.shape[1])
    for k, v in enumerate(values.T):
        if len(np.unique(v[train])) < 2:
            continue  # nothing to learn
        fitted = clone(predictor).fit(codes[train], v[train])
        importance[:, k] = np.nan_to_num(np.abs(fitted.feature_importances_))
        skill[k] = fitted.score(codes[test], v[test])
        if classes:
            chance = np.mean(v[test] == np.bincount(v[train]).argmax())
            skill[k] = (skill[k] - chance) / max(1 - chance, 1e-12)
    total = importance.sum(0)
    importance = np.divide(importance, total, out=np.zeros_like(importance), where=total > 0)
    by_code, by_factor = _purity(importance), _purity(importance.T)
    weights = importance.sum(1)
    disentanglement = float(weights @ by_code / weights.sum()) if weights.sum() > 0 else 0.0
    return DCI(disentanglement, float(by_factor.mean()), float(skill.mean()), by_code, by_factor, skill, importance)


def factor_vae_score(
    codes: Array, factors: Array, *, prior_variance: Array | float = 1.0, num_votes: int = 800, seed: int = 0
) -> Score:
    """Compute the FactorVAE score, with floor 1/K and ceiling 1.

    Each vote fixes one factor at a value, takes 64 data with it, and names the code with the least variance relative to
    its variance over all data. A majority vote maps each code to a factor. The score is its accuracy on other votes.
    Kim and Mnih, "Disentangling by factorising" (ICML 2018, https://arxiv.org/abs/1802.05983), section 4. Duplicated
    codes lose nothing.

    Args:
        codes: Posterior means with shape (N, Z), Z at least 2. Codes whose variance is below 0.0025 of the prior's,
            sd 0.05 for N(0, 1), are collapsed and dropped.
        factors: Factors with shape (N, K), K at least 2, integers.
        prior_variance: Variance of the prior of each code, a number or with shape (Z,).
        num_votes: Number of votes to map codes, and again to test the map.
        seed: Random seed of the votes.

    Raises:
        ValueError: If the shapes are others, numbers are not finite, or a factor has one value or is not of classes.
    """
    codes, classes = _checked(codes, factors, classes=True)
    count = classes.shape[1]
    variance = codes.var(0)
    kept = variance > 0.0025 * np.broadcast_to(np.asarray(prior_variance, dtype=float), variance.shape)
    table = np.zeros((codes.shape[1], count))
    if not kept.any():
        return Score(1 / count, 1 / count, 1.0, np.full(count, 1 / count), table)
    generator = np.random.default_rng(seed)
    factor_classes = [_Classes(column, k) for k, column in enumerate(classes.T)]

    def votes() -> tuple[Array, Array]:
        fixed = generator.integers(count, size=num_votes)
        least = []
        for k in fixed:
            rows = factor_classes[k].same(generator, _BATCH)
            least.append(np.where(kept, codes[rows].var(0) / np.where(kept, variance, 1.0), np.inf).argmin())
        return fixed, np.array(least)

    fixed, least = votes()
    np.add.at(table, (least, fixed), 1)
    named = table.argmax(1)
    fixed, least = votes()
    right = named[least] == fixed
    by_factor = np.array([right[fixed == k].mean() if (fixed == k).any() else np.nan for k in range(count)])
    return Score(float(right.mean()), 1 / count, 1.0, by_factor, table / num_votes)


def beta_vae_score(codes: Array, factors: Array, *, num_votes: int = 800, seed: int = 0) -> Score:
    """Compute the beta-VAE score, with floor 1/K and ceiling 1.

    Each vote fixes one factor in 64 pairs of data, and gives the mean of |z - z'| by code. A logistic regression names
    the factor, and the score is its accuracy on other votes. Higgins et al., "beta-VAE: learning basic visual concepts
    with a constrained variational framework" (ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl). Rotated codes
    score nearly as well as the factors, so a high score does not show that codes follow single factors.

    Args:
        codes: Posterior means with shape (N, Z), Z at least 2.
        factors: Factors with shape (N, K), K at least 2, integers.
        num_votes: Number of votes to train the regression, and again to test it.
        seed: Random seed of the votes.

    Raises:
        ValueError: If the shapes are others, numbers are not finite, or a factor has one value or is not of classes.
    """
    codes, classes = _checked(codes, factors, classes=True)
    count, generator = classes.shape[1], np.random.default_rng(seed)
    factor_classes = [_Classes(column, k) for k, column in enumerate(classes.T)]
    spread = codes.std(0)
    codes = codes / np.where(spread > 0, spread, 1.0)

    def votes() -> tuple[Array, Array]:
        fixed = generator.integers(count, size=num_votes)
        apart = []
        for k in fixed:
            one, other = factor_classes[k].pairs(generator, _BATCH)
            apart.append(np.abs(codes[one] - codes[other]).mean(0))
        return fixed, np.array(apart)

    (fixed, apart), (tested, tested_apart) = votes(), votes()
    centre, scale = apart.mean(0), apart.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    fitted = LogisticRegression(max_iter=2000).fit((apart - centre) / scale, fixed)
    right = fitted.predict((tested_apart - centre) / scale) == tested
    by_factor = np.array([right[tested == k].mean() if (tested == k).any() else np.nan for k in range(count)])
    return Score(float(right.mean()), 1 / count, 1.0, by_factor, np.full((codes.shape[1], count), np.nan))


def half_sample_error(
    score: Callable[[Array, Array], float], codes: Array, factors: Array, *, num_halves: int = 20, seed: int = 0
) -> float:
    """Estimate the standard error of a score by its standard deviation over random halves of the data.

    A statistic of N/2 of N data without replacement has, around that of all N, the variance of a statistic of N data
    around its expectation. A bootstrap would repeat data, which looks like information to nearest neighbours and to
    held-out data.

    Args:
        score: Function of codes and factors, such as `lambda z, v: mig(z, v).value`.
        codes: Codes with shape (N, Z).
        factors: Factors with shape (N, K).
        num_halves: Number of halves.
        seed: Random seed of the halves.

    Raises:
        ValueError: If num_halves is below 2.
    """
    if num_halves < 2:
        raise ValueError(f"num_halves must be at least 2, got {num_halves}")
    codes, factors = np.asarray(codes), np.asarray(factors)
    halves = (_halves(len(codes), seed + number)[0] for number in range(num_halves))
    return float(np.std([score(codes[rows], factors[rows]) for rows in halves], ddof=1))


def _checked(codes: Array, factors: Array, *, classes: bool = False) -> tuple[Array, Array]:
    """Check codes and factors; return float codes, and factors as numbers of classes, or as floats."""
    codes, factors = np.asarray(codes, dtype=float), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(
            f"codes must have shape (N, Z) and factors shape (N, K), got {codes.shape} and {factors.shape}; give one "
            "row for each datum"
        )
    if codes.shape[1] < 2 or factors.shape[1] < 2:
        raise ValueError(
            f"scores of disentanglement need at least two codes and two factors, got {codes.shape[1]} and "
            f"{factors.shape[1]}; with one there is nothing to tell apart"
        )
    if not np.isfinite(codes).all() or not np.isfinite(factors.astype(float)).all():
        raise ValueError("codes and factors must be finite; leave rows with other values out")
    for k, column in enumerate(factors.T):
        if len(np.unique(column)) < 2:
            raise ValueError(f"factor {k} has one value, {column[0]}; leave it out")
    if not _is_classes(factors):
        if classes:
            raise ValueError(
                f"this score needs factors of classes, integers, got {factors.dtype}; cut numbers into classes, such "
                "as by np.digitize"
            )
        return codes, factors.astype(float)
    return codes, np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T], -1)


def _is_classes(factors: Array) -> bool:
    return factors.dtype.kind in "iub"


def _halves(size: int, seed: int) -> tuple[Array, Array]:
    """Return the rows of two random halves."""
    order = np.random.default_rng(seed).permutation(size)
    return order[: size // 2], order[size // 2 :]


def _gap(scores: Array, table: Array) -> Score:
    """Compute the mean over factors of the largest score less the second, of scores with shape (Z, K)."""
    ordered = np.sort(scores, 0)
    by_factor = ordered[-1] - ordered[-2]
    return Score(float(by_factor.mean()), 0.0, 1.0, by_factor, table)


def _entropy(classes: Array) -> float:
    shares = np.bincount(classes) / len(classes)
    return float(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum())


def _neighbour_information(codes: Array, classes: Array, seed: int) -> Array:
    """Estimate the mutual information of each code and a factor in nats, with shape (Z,)."""
    found = mutual_info_classif(codes, classes, discrete_features=False, n_neighbors=_NEIGHBOURS, random_state=seed)
    return np.where(codes.std(0) > 0, found, 0.0)


def _binned_information(code: Array, classes: Array, bins: int) -> float:
    """Compute the mutual information of a code in bins and a factor, without correction, in nats."""
    low, high = code.min(), code.max()
    if high <= low:
        return 0.0
    place = np.minimum((bins * (code - low) / (high - low)).astype(int), bins - 1)
    counts = np.zeros((bins, classes.max() + 1))
    np.add.at(counts, (place, classes), 1)
    joint = counts / len(code)
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / product[seen])).sum())


def _squared_correlation(code: Array, values: Array, halves: tuple[Array, Array]) -> float:
    if code.std() == 0:
        return 0.0
    return float(np.corrcoef(code, values)[0, 1] ** 2)


def _tree_skill(code: Array, classes: Array, halves: tuple[Array, Array]) -> float:
    """Compute the skill of a tree on one code: balanced accuracy between chance, 0, and 1."""
    train, test = halves
    count = classes.max() + 1
    tree = DecisionTreeClassifier(max_leaf_nodes=max(2, count), class_weight="balanced", random_state=0)
    tree.fit(code[train, None], classes[train])
    predicted, truth = tree.predict(code[test, None]), classes[test]
    shares = [np.mean(predicted[truth == one] == one) for one in np.unique(truth)]
    return float((np.mean(shares) - 1 / count) / (1 - 1 / count))


def _purity(importance: Array) -> Array:
    """Compute 1 - entropy of each row, to the base of its length; 0 for a row of zeros."""
    total = importance.sum(1, keepdims=True)
    shares = np.divide(importance, total, out=np.zeros_like(importance), where=total > 0)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1) / np.log(importance.shape[1])
    return np.where(total[:, 0] > 0, 1 - entropy, 0.0)


class _Classes:
    """Rows of each class of one factor, for the classes with at least two data."""

    def __init__(self, column: Array, number: int) -> None:
        groups = [rows for one in np.unique(column) if len(rows := np.flatnonzero(column == one)) > 1]
        if not groups:
            raise ValueError(f"no value of factor {number} occurs twice; cut it into fewer classes")
        self.rows = np.concatenate(groups)
        self.sizes = np.array([len(each) for each in groups])
        self.starts = self.sizes.cumsum() - self.sizes

    def same(self, generator: np.random.Generator, count: int) -> Array:
        """Draw data of one class, with replacement, from a class drawn at random."""
        one = generator.integers(len(self.sizes))
        return self.rows[self.starts[one] + generator.integers(self.sizes[one], size=count)]

    def pairs(self, generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Draw pairs of different data of one class, each pair from a class drawn at random."""
        one = generator.integers(len(self.sizes), size=count)
        sizes, starts = self.sizes[one], self.starts[one]
        first, step = generator.integers(sizes), generator.integers(1, sizes)
        return self.rows[starts + first], self.rows[starts + (first + step) % sizes]
