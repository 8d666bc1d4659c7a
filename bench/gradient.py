"""The gradient search beside a plain per-image loop of CompD's Algorithm 1, and beside the limit of its two models.

    python -m bench.gradient --study DIR [--data DIR] [--seeds 200] [--chains 125] [--smoke]

``--study`` is a directory that ``compdx reproduce compd`` wrote; its pair and its seeds are used. Without one (and with
``--smoke``) the pair is a pruned network for scikit-learn's digits.

Three figures. Agreement: pictures of the common seeds that have the same labels and differ by at most one grey level,
asked one by one as the plain loop asks, and in batches. The models' own sums depend on the batch in their last bits,
and steps along the gradient of a ReLU network magnify that; compdx's part does not depend on it.
Speed beside the plain loop, on the same seeds. And the share of the limit: bare forward passes on the pictures and
input-gradients of the same batches, without anything between, in turns with the search in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import compdx
from bench.record import record
from compdx import compress
from compdx.zoo import digits


def plain_loop(
    original: torch.nn.Module,
    twin: torch.nn.Module,
    tested: torch.nn.Module,
    images: npt.NDArray[np.uint8],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    variance: tuple[float, ...],
    steps: int,
    score: str,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Algorithm 1 as its authors wrote it down, one image at a time, with the bound that they intended.

    Shares no code with compdx. Returns pictures uint8 ``[N, steps, C, H, W]`` and labels int64 ``[N, steps + 1, 2]``
    of both models, the seed's first.
    """
    middle, spread, bound = (torch.tensor(values)[:, None, None] for values in (mean, std, variance))
    low, high = (0 - middle) / spread, (1 - middle) / spread
    pictures = np.zeros((len(images), steps, *images.shape[1:]), np.uint8)
    labels = np.zeros((len(images), steps + 1, 2), np.int64)

    def ask(pixels: torch.Tensor) -> list[int]:
        with torch.no_grad():
            x = ((pixels / 255 - middle) / spread)[None]
            return [int(model(x).argmax()) for model in (original, tested)]

    for number, image in enumerate(images):
        pixels = torch.from_numpy(image).float()
        labels[number, 0] = ask(pixels)
        x = (pixels / 255 - middle) / spread
        for step in range(steps):
            x = x.detach().requires_grad_()
            a, b = original(x[None])[0], twin(x[None])[0]
            label = a.argmax()
            if score == "confidence":
                a, b = a.softmax(0), b.softmax(0)
            if score == "margin":
                others = torch.arange(len(a)) != label
                a, b = a - a[others].max(), b - b[others].max()
            loss = -(a[label] - b[label])
            (gradient,) = torch.autograd.grad(loss, x)
            change = torch.maximum(torch.minimum(-0.9 * gradient, bound), -bound)
            x = torch.maximum(torch.minimum(x.detach() + change, high), low)
            pixels = ((x * spread + middle) * 255).round().clamp(0, 255)
            pictures[number, step] = pixels.to(torch.uint8).numpy()
            labels[number, step + 1] = ask(pixels)
    return pictures, labels


def agreement(findings: compdx.Findings, pictures: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> dict:
    """How far the pictures of a search are from those of the plain loop over the same seeds, in their order."""
    ours = findings.pictures
    count, steps = pictures.shape[:2]
    theirs = pictures.reshape(count * steps, *pictures.shape[2:])
    change = np.abs(ours.images.astype(np.int16) - theirs.astype(np.int16))
    both = np.stack([ours.original_label, ours.compressed_label], 1)
    same = (both == labels[:, 1:].reshape(-1, 2)).all(1)
    close = change.reshape(len(change), -1).max(1) <= 1
    kept = labels[:, 1:, 0] == labels[:, :1, 0]
    effective = kept & (labels[:, 1:, 0] != labels[:, 1:, 1])
    strict = effective & (labels[:, 0, 0] == labels[:, 0, 1])[:, None]
    return {
        "seeds": count,
        "pictures": len(theirs),
        "same_labels_and_within_1": int((same & close).sum()),
        "same_labels": int(same.sum()),
        "within_1": int(close.sum()),
        "identical_bytes": int((change.reshape(len(change), -1).max(1) == 0).sum()),
        "largest_change": int(change.max()),
        "effective": {"compdx": int(ours.effective.sum()), "plain": int(effective.sum())},
        "strict": {"compdx": int(ours.strict.sum()), "plain": int(strict.sum())},
    }


def share_of_limit(
    pair: compdx.Pair, images: npt.NDArray[np.uint8], chains: int, rounds: int, method: compdx.Gradient
) -> dict[str, Any]:
    """(Time of the bare model evaluations that the algorithm needs) / (time of the search), in turns."""
    inputs = pair.inputs
    table = inputs.table(images.shape[1])
    ratios, whole_seconds, bare_seconds = [], [], []
    modules = (pair.original.module, pair.compressed.module)
    twins = (pair.original.twin, pair.compressed.twin)

    def layout(x: torch.Tensor) -> torch.Tensor:
        wanted = pair.original.memory_format == "channels_last"
        return x.contiguous(memory_format=torch.channels_last) if wanted else x.contiguous()

    def bare(x: torch.Tensor) -> float:
        start = time.perf_counter()
        for _ in range(method.budget):
            state = x.clone().requires_grad_()
            a, b = twins[0](layout(state)), twins[1](layout(state))
            label = a.detach().argmax(1, keepdim=True)
            if method.score == "confidence":
                a, b = a.softmax(1), b.softmax(1)
            if method.score == "margin":
                a, b = (v - v.scatter(1, label, float("-inf")).amax(1, keepdim=True) for v in (a, b))
            torch.autograd.grad((b.gather(1, label) - a.gather(1, label)).sum(), state)
        with torch.inference_mode():
            for _ in range(method.budget + 1):
                for module in modules:
                    module(layout(x))
        return time.perf_counter() - start

    def search(seeds: compdx.Seeds) -> float:
        start = time.perf_counter()
        compdx.search(pair, seeds, method=method, chains=chains, progress=False)
        return time.perf_counter() - start

    for number in range(-1, rounds):
        batch = images[(number % (len(images) // chains)) * chains :][:chains]
        x = torch.from_numpy(compdx.ops.normalize(batch, table, layout="NCHW", dtype="float32"))
        limit, taken = bare(x), search(compdx.Seeds(batch))
        if number >= 0:  # the first round warms up
            ratios.append(limit / taken)
            whole_seconds.append(taken)
            bare_seconds.append(limit)
    return {
        "chains": chains,
        "rounds": rounds,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3,
        "pictures_per_second": chains * method.budget / statistics.median(whole_seconds),
        "limit_pictures_per_second": chains * method.budget / statistics.median(bare_seconds),
        "torch_threads": torch.get_num_threads(),
        "memory_format": pair.original.memory_format,
    }


def study_pair(directory: Path, data: str | None) -> tuple[compdx.Pair, npt.NDArray[np.uint8], str]:
    from compdx import reproduce

    study = reproduce.open_study(directory, data)
    return study.pair, study.seeds.images, study.title


def digits_pair() -> tuple[compdx.Pair, npt.NDArray[np.uint8], str]:
    train, test = digits.load()
    network = digits.train(train, epochs=3)
    pruned = compress.prune(network, 0.6, layers="all")
    options: dict[str, Any] = {"mean": 0.5, "std": 0.5}
    pair = compdx.Pair(compdx.Model(network, **options), compdx.Model(pruned, **options))
    return pair, test.images, "digits, pruned 0.6"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=None)
    parser.add_argument("--data", default=None)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--chains", type=int, default=125)
    parser.add_argument("--score", choices=("logit", "margin", "confidence"), default="logit")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--smoke", action="store_true", help="a small network, few seeds: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    smoke = options.smoke or options.study is None
    pair, images, title = digits_pair() if smoke else study_pair(options.study, options.data)
    count, chains, rounds = (20, 20, 2) if smoke else (options.seeds, options.chains, options.rounds)
    method = compdx.Gradient(score=options.score)
    inputs = pair.inputs
    channels = images.shape[1]
    mean, std = (
        tuple(value) if isinstance(value, tuple) else (value,) * channels for value in (inputs.mean, inputs.std)
    )
    seeds = images[:count]

    start = time.perf_counter()
    findings = compdx.search(pair, seeds, method=method, chains=min(chains, count), progress=False)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    expected = plain_loop(
        pair.original.module,
        pair.compressed.twin,
        pair.compressed.module,
        seeds,
        mean,
        std,
        tuple(method.bounds(channels).tolist()),
        method.budget,
        method.score,
    )
    plain = time.perf_counter() - start
    alone = compdx.Pair(*(model.replace(memory_format="contiguous") for model in (pair.original, pair.compressed)))
    agreed = agreement(compdx.search(alone, seeds, method=method, chains=1, progress=False), *expected)
    batched = agreement(findings, *expected)
    if agreed["same_labels_and_within_1"] < 0.99 * agreed["pictures"]:
        msg = f"the search does not agree with the plain loop: {agreed}"
        raise RuntimeError(msg)
    limit = share_of_limit(pair, images, chains, rounds, method)
    pictures = agreed["pictures"]
    print(f"{title}: {agreed['same_labels_and_within_1']:,} of {pictures:,} pictures as the plain loop draws them")
    print(f"in batches {batched['same_labels_and_within_1']:,}; effective {batched['effective']}")
    print(f"plain loop {pictures / plain:,.1f} pictures/s, compdx {pictures / ours:,.1f}: {plain / ours:.1f} times")
    print(f"share of the limit {limit['ratio']:.3f} ({limit['pictures_per_second']:,.1f} pictures/s, B = {chains})")
    if not smoke or options.out:
        row = {
            "pair": title,
            "score": method.score,
            "agreement": agreed,
            "agreement_in_batches": batched,
            "plain_pictures_per_second": pictures / plain,
            "compdx_pictures_per_second": pictures / ours,
            "speedup": plain / ours,
            "limit": limit,
        }
        record(f"gradient-{title.replace(' ', '-').replace(',', '')}-{method.score}", row, options.out)


if __name__ == "__main__":
    main()
