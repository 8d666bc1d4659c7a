"""Search and repair in turn: what a repaired model still gets wrong is searched for and repaired again."""

from __future__ import annotations

from typing import Any

from compdx import api, methods, ops
from compdx.methods.base import Method
from compdx.model import Pair
from compdx.pictures import Pictures
from compdx.repair import measuring
from compdx.repair.finetuning import RECIPE, Progress, RepairEpoch, finetune
from compdx.repair.reporting import Repaired, RepairReport
from compdx.seeds import Seeds
from compdx.training import Recipe


def iterate(
    pair: Pair | tuple[Any, Any],
    seeds: Seeds,
    *,
    train: Seeds,
    rounds: int = 3,
    method: str | Method = "gradient",
    holdout: Seeds | None = None,
    unseen: Seeds | None = None,
    test: Seeds | None = None,
    recipe: Recipe = RECIPE,
    patience: int | None = None,
    tolerance: float = 0.0,
    consistency: float = 0.0,
    temperature: float = 2.0,
    train_limit: int | None = None,
    picture_limit: int | None = None,
    keep_zeros: bool = True,
    seed: int = 0,
    progress: Progress = True,
) -> Repaired:
    """Search, repair, and search again, ``rounds`` times; every repair uses the pictures of all searches so far.

    The paper repairs once and says that a search of the repaired model finds almost as much as before. Every round
    starts from the model that the last one left.

    Args:
        pair: As for `finetune`.
        seeds: What every search starts from.
        train: Labelled training images.
        rounds: Number of repairs, at least 1. There is one search more, whose pictures are counted but not used.
        method: Of all searches.
        holdout, unseen, test, recipe, patience, tolerance, consistency, temperature, train_limit, picture_limit,
            keep_zeros, progress: As for `finetune`.
        seed: The run seed of all searches; of the training of round r, ``seed + r``.

    Returns:
        The model of the last round. ``report.findings`` counts the pictures of all searches but the last, once by the
        pair as it was and once as it is. Each of ``report.rounds`` has ``round``, ``found`` (effective pictures of
        fresh searches from ``seeds``, ``before`` and ``after`` its repair), ``pictures`` (that it could use),
        ``remaining`` (effective ones among them after it) and ``holdout`` (accuracy there). ``history`` has the epochs
        of one round after another.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: As for `finetune` and `search`.
    """
    first = Pair.of(pair)
    ops.checks.within("rounds", rounds, 1, 1 << 20)
    seeds, method = Seeds.of(seeds), methods.resolve(method)
    for name, images in (("train", train), ("holdout", holdout), ("test", test)):
        if images is not None:
            measuring.check_labelled(name, images, seeds.shape)
    yardstick = measuring.Yardstick(
        test=test, unseen=None if unseen is None else Seeds.of(unseen), method=method, seed=seed, shown=progress is True
    )

    def search(current: Pair) -> Pictures:
        found = api.search(current, seeds, method=method, seed=seed, progress=progress is True)
        return measuring.pictures_of(found)

    current, parts = first, [search(first)]
    told: list[dict[str, Any]] = []
    history: list[RepairEpoch] = []
    for number in range(1, rounds + 1):
        repaired = finetune(
            current,
            measuring.joined(parts),
            train=train,
            holdout=holdout,
            recipe=recipe,
            patience=patience,
            tolerance=tolerance,
            consistency=consistency,
            temperature=temperature,
            train_limit=train_limit,
            picture_limit=picture_limit,
            keep_zeros=keep_zeros,
            seed=seed + number,
            progress=progress,
        )
        current = repaired.pair
        parts.append(search(current))
        told.append(
            {
                "round": number,
                "found": {
                    "before": measuring.count_effective(parts[-2]),
                    "after": measuring.count_effective(parts[-1]),
                },
                "pictures": sum(map(len, parts[:-1])),
                "remaining": repaired.report.findings.after,
                "holdout": repaired.report.settings["holdout_accuracy"],
            }
        )
        history += repaired.history
    pictures = measuring.joined(parts[:-1])
    before, after = (yardstick.measure(stage, pictures.relabelled(stage)) for stage in (first, current))
    report = RepairReport(
        **measuring.changes(before, after),
        unseen_seeds=0 if unseen is None else len(unseen),
        settings={**repaired.report.settings, "repair": "iterate", "rounds": rounds, **yardstick.settings()},
        rounds=tuple(told),
    )
    return Repaired(pair=current, compressed=repaired.compressed, report=report, history=tuple(history))
