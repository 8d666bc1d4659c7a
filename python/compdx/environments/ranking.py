"""How alike two rankings of classes are: top-k lists of class ids, best first, a row an image.

Every measure is of places, never of ids: what a class is called changes nothing. Rows are int ``[N, K]`` without a
class twice in a row; both sides have the same shape. Results are float64 ``[N]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]

PERSISTENCE = 0.8
"""Of rank-biased overlap: the chance that a reader of a list goes on from one place to the next."""


def top(scores: npt.NDArray[np.floating[Any]], k: int) -> npt.NDArray[np.int64]:
    """The ``k`` best classes of every row, best first, int64 ``[N, min(k, K)]``; of equal scores the lower id."""
    order: npt.NDArray[np.int64] = np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int64)
    return order


def jaccard(a: Ranks, b: Ranks) -> Floats:
    """Classes in both lists over classes in either, 0 to 1; their order does not count."""
    _check(a, b)
    both = _same(a, b).sum((1, 2))
    return np.asarray(both / (2 * a.shape[1] - both), np.float64)


def footrule(a: Ranks, b: Ranks) -> Floats:
    """DeltaNN's own score, 0 to 100: for every class in both lists, 1 less the difference of its places over 2K.

    ``100 / K * sum(1 - |place in A - place in B| / (2 K))``; 100 is the same list, 0 no class in common.
    """
    _check(a, b)
    k = a.shape[1]
    places = np.arange(k)
    closeness = 1 - np.abs(places[:, None] - places[None, :]) / (2 * k)
    return np.asarray(100 / k * (_same(a, b) * closeness).sum((1, 2)), np.float64)


def overlaps(a: Ranks, b: Ranks) -> Floats:
    """The share of classes that both lists have in common down to depth 1, 2, ... K, float64 ``[N, K]``."""
    _check(a, b)
    common = _same(a, b).cumsum(1).cumsum(2)
    depths = np.arange(a.shape[1])
    return np.asarray(common[:, depths, depths] / (depths + 1), np.float64)


def rank_biased_overlap(a: Ranks, b: Ranks, *, p: float = PERSISTENCE, extrapolated: bool = True) -> Floats:
    """Rank-biased overlap (Webber et al., TOIS 2010) of lists of equal length.

    Args:
        a, b: The lists.
        p: Persistence, 0 < p < 1: how much weight goes down the lists.
        extrapolated: Assume that the overlap at the last depth goes on for ever, so that equal lists have 1. Else the
            sum ends there, and equal lists have ``1 - p**K``.

    Raises:
        ValueError: ``p`` is not between 0 and 1.
    """
    if not 0 < p < 1:
        msg = f"p must be between 0 and 1, got {p!r}"
        raise ValueError(msg)
    shares = overlaps(a, b)
    k = shares.shape[1]
    truncated: Floats = (1 - p) * (shares * p ** np.arange(k)).sum(1)
    return truncated + shares[:, -1] * p**k if extrapolated else truncated


def kendall_tau(a: Ranks, b: Ranks) -> Floats:
    """Kendall's tau-b of the places of all classes in either list, -1 to 1; a class that a list lacks has place K + 1.

    Lists of one and the same class have 1.
    """
    _check(a, b)
    n, k = a.shape
    same = _same(a, b)
    # The union: the classes of A, then those of B that A lacks. The others of B get no weight.
    in_b = same.any(2)
    places = np.arange(1, k + 1)
    x = np.concatenate([np.broadcast_to(places, (n, k)), np.full((n, k), k + 1)], 1)
    y = np.concatenate([np.where(in_b, same.argmax(2) + 1, k + 1), np.broadcast_to(places, (n, k))], 1)
    counts = np.concatenate([np.ones((n, k), bool), ~same.any(1)], 1)
    first, second = np.triu_indices(2 * k, 1)
    valid = counts[:, first] & counts[:, second]
    dx, dy = np.sign(x[:, first] - x[:, second]) * valid, np.sign(y[:, first] - y[:, second]) * valid
    agreement = (dx * dy).sum(1)
    scale = np.sqrt(np.abs(dx).sum(1) * np.abs(dy).sum(1).astype(np.float64))
    return np.asarray(np.divide(agreement, scale, out=np.ones(n), where=scale > 0), np.float64)


def _same(a: Ranks, b: Ranks) -> npt.NDArray[np.bool_]:
    """Whether place i of A and place j of B hold the same class, ``[N, K, K]``."""
    return np.asarray(a[:, :, None] == b[:, None, :])


def _check(a: Ranks, b: Ranks) -> None:
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] < 1:
        msg = f"a and b must be class ids [N, K] of one shape with K >= 1, got {list(a.shape)} and {list(b.shape)}"
        raise ValueError(msg)
