"""compdx beside what one would use without it: DFlare's published loop, attack libraries, augmentation, plain PyTorch.

    python -m bench.peers [--peers DIR --data DIR] [--threads 2] [--device cuda] [--only published attacks] [--smoke]

``published``: the published loop, re-written image by image, on DFlare's own pairs (``lenet1.h5``,
``lenet1-quan.lite``, ``resnet.h5``, ``resnet-quan.lite`` in the directory of ``--peers``; images in that of ``--data``)
through Keras and LiteRT, against compdx on the same models and threads, and against what the two runtimes do in
batches. ``attacks``: black-box attacks of Foolbox and ART on the compressed model, as users would look for deviations
with them; what they return is rounded to pixels and both models are asked. ``eager``: the same search written plainly
in PyTorch, in turns. ``augmentation``: OpenCV, kornia and plain PyTorch beside mutate, one thread.

What is not installed is recorded as not measured, with the reason. Without --peers, and with --smoke, small stand-ins
take the place of DFlare's pairs.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import compdx
from bench import eager
from bench.augment import opencv_loop
from bench.faithful import run_published
from bench.gradient import digits_pair
from bench.kernels import SHAPES, check_mutants, first_mutants, places
from bench.libraries import Asked, art_attacks, foolbox_attacks, kornia_mix, missing
from bench.pairs import FILES, Peer, agreeing, load_images, load_pair, small_pair
from bench.record import named, record
from bench.search import Plan, Subject, beside_forward
from bench.timing import spread, take_turns

Array = np.ndarray
SECTIONS = ("published", "attacks", "eager", "augmentation")
BUDGET = 1000
BATCH = 512
SAMPLE_SEED = 0


# DFlare's loop


def as_pair(peer: Peer) -> compdx.Pair:
    wanted: dict[str, Any] = {"mean": peer.mean, "std": peer.std, "bounds": peer.bounds, "layout": "NHWC"}
    return compdx.Pair(
        compdx.Model(peer.original, name="original", outputs="probabilities", **wanted),
        compdx.Model(peer.compressed, name="compressed", outputs="probabilities", **wanted),
    )


def beside_published(peer: Peer, images: Array, count: int, plan: Plan, chains: int) -> dict[str, Any]:
    """The published loop on ``count`` seeds, compdx on more of them, and the two runtimes in batches."""
    rows = agreeing(peer, images, count, SAMPLE_SEED)
    loop = run_published(peer, images, rows, BUDGET)
    figures = loop.figures()
    found = figures["found"]
    figures["findings_per_second"] = found / loop.seconds

    pair, outputs = as_pair(peer), ("probabilities", "probabilities")
    more = np.random.default_rng(SAMPLE_SEED).permutation(len(images))[: 4 * chains]
    start = time.perf_counter()
    findings = compdx.search(pair, images[more], budget=BUDGET, chains=min(chains, len(more)), progress=False)
    seconds = time.perf_counter() - start
    kinds = findings.kinds
    ours = {
        "searches": len(more),
        "found": kinds["effective"] + kinds["invalid"],
        "effective_share": kinds["effective"] / max(1, kinds["effective"] + kinds["invalid"]),
        "queries_per_finding": findings.summary.to_json()["queries_per_finding"],
        "queries_per_second": findings.summary.to_json()["queries"] / seconds,
        "findings_per_second": (kinds["effective"] + kinds["invalid"]) / seconds,
        "seconds": seconds,
    }

    subject = Subject(pair, images[np.resize(more, max(len(more), 8 * chains))], chains, BUDGET, outputs)
    static = np.array(subject.loop.ask())

    def forwards(times: int) -> None:
        for _ in range(times):
            peer.original(static)
            peer.compressed(static)

    loop_rates = beside_forward(subject, forwards, plan)
    return {
        "pair": peer.name,
        "keras_backend": os.environ["KERAS_BACKEND"],
        "published": figures,
        "compdx": ours,
        "in_batches": loop_rates,
        "queries_ratio": loop_rates["queries_per_second"] / figures["queries_per_second"],
        "findings_ratio": ours["findings_per_second"] / figures["findings_per_second"],
    }


def show_published(row: dict[str, Any]) -> None:
    theirs, ours, batches = row["published"], row["compdx"], row["in_batches"]
    print(
        f"published  {row['pair']:<8} {theirs['queries_per_second']:,.0f} queries/s; compdx "
        f"{batches['queries_per_second']:,.0f}: {row['queries_ratio']:.1f} x, {batches['ratio']:.3f} of the runtimes "
        f"in batches; findings/s {theirs['findings_per_second']:.2f} and {ours['findings_per_second']:.2f}: "
        f"{row['findings_ratio']:.1f} x",
        flush=True,
    )


def published(options: argparse.Namespace) -> Any:
    if options.device != "cpu":
        return "not measured: the runtimes of DFlare's pairs are those of the CPU"
    if options.smoke or options.peers is None:
        peer, images = small_pair()
        return [beside_published(peer, images, 6, Plan(3, 0.02, 1.0), 16)]
    if reason := missing("keras", "ai_edge_litert.interpreter"):
        return reason
    plan = Plan(15, 0.3, 25.0)
    return [
        beside_published(
            load_pair(name, options.peers, threads=options.threads),
            load_images(name, options.data),
            options.seeds,
            plan,
            BATCH if name == "lenet1" else 128,
        )
        for name in options.names
    ]


def labels_of(pair: compdx.Pair, images: Array) -> tuple[Array, Array]:
    x = images if pair.device == "cpu" else torch.from_numpy(images).to(pair.device)
    a, b = (np.asarray(scores if isinstance(scores, np.ndarray) else scores.cpu()) for scores in pair(x))
    return a.argmax(axis=1), b.argmax(axis=1)


def attacked(pair: compdx.Pair, images: Array, count: int, budget: int) -> list[dict[str, Any]]:
    """What each attack finds on seeds on which the pair agrees, and what compdx finds on the same."""
    original, compressed = labels_of(pair, images)
    agree = np.flatnonzero(original == compressed)
    rows = agree[:count]
    seeds, labels = images[rows], original[rows]
    # A start of a walk along the boundary: an image that already has another label.
    others = np.stack([images[next(other for other in agree[::-1] if original[other] != label)] for label in labels])
    x, starts = (array.astype(np.float32) / 255 for array in (seeds, others))
    report = []
    attacks: dict[str, Any] = {}
    for library, make in (("foolbox", foolbox_attacks), ("art", art_attacks)):
        if reason := missing(library):
            report.append({"tool": library, "not_measured": reason})
        else:
            attacks |= make(budget)
    for name, attack in attacks.items():
        asked = Asked(pair.compressed, images.shape[1])
        if not np.array_equal(asked(torch.as_tensor(x, device=pair.device)).argmax(dim=1).cpu().numpy(), labels):
            msg = "the model asked by attacks is not the compressed model of the pair"
            raise RuntimeError(msg)
        asked.rows = 0
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the generator that ART draws from
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adversarial = attack(asked, x, labels, starts)
        pictures = np.clip(np.rint(adversarial * 255), 0, 255).astype(np.uint8)
        a, b = labels_of(pair, pictures)
        seconds = time.perf_counter() - start
        report.append(
            hits(name, seconds, a, b, labels, pictures, seeds, {"compressed": asked.rows + count, "original": count})
        )
        show_hits(report[-1])
    start = time.perf_counter()
    findings = compdx.search(pair, seeds, budget=budget, chains=count, progress=False)
    seconds = time.perf_counter() - start
    table = findings.table.to_pydict()
    queries = findings.summary.to_json()["queries"]
    ended = {"compressed": queries, "original": queries}
    a, b = (np.array(table[f"{which}_label"]) for which in ("original", "compressed"))
    place = np.array(table["seed_index"], np.int64)
    report.append(hits("compdx", seconds, a, b, labels[place], findings.images, seeds[place], ended, count))
    show_hits(report[-1])
    return report


def hits(
    name: str,
    seconds: float,
    a: Array,
    b: Array,
    labels: Array,
    pictures: Array,
    seeds: Array,
    evaluations: dict[str, int],
    count: int | None = None,
) -> dict[str, Any]:
    """Figures of pictures with labels ``a`` and ``b``, made of ``seeds`` with the given labels."""
    deviating = a != b
    effective = deviating & (a == labels)
    change = np.linalg.norm((pictures.astype(np.float64) - seeds).reshape(len(seeds), -1), axis=1) / 255
    total = sum(evaluations.values())
    found = int(effective.sum())
    return {
        "tool": name,
        "seeds": len(seeds) if count is None else count,
        "effective": found,
        "invalid": int(deviating.sum()) - found,
        "seconds": seconds,
        "evaluations": evaluations,
        "evaluations_per_effective": total / found if found else None,
        "effective_per_second": found / seconds,
        "median_l2": float(np.median(change[effective])) if found else None,
    }


def show_hits(row: dict[str, Any]) -> None:
    cost = "none found" if not row["effective"] else f"{row['evaluations_per_effective']:,.0f} model runs for each"
    print(
        f"attacks    {row['tool']:<24} effective {row['effective']}/{row['seeds']}, invalid {row['invalid']}   "
        f"{row['effective_per_second']:.2f} effective/s   {cost}",
        flush=True,
    )


@cache
def trained(device: str) -> tuple[compdx.Pair, Array, str]:
    """A pair for scikit-learn's digits on the device, trained once."""
    pair, images, title = digits_pair()
    models = (pair.original, pair.compressed)
    wanted = {"mean": pair.inputs.mean, "std": pair.inputs.std}
    return compdx.Pair(*(compdx.Model(model.module.to(device), **wanted) for model in models)), images, title


def attack_libraries(options: argparse.Namespace) -> Any:
    pair, images, title = trained(options.device)
    budget = 20 if options.smoke else BUDGET
    return {
        "pair": title,
        "budget": budget,
        "attacks_on": "the compressed model; what they return is rounded to pixels and both models are asked",
        "rows": attacked(pair, images, 6 if options.smoke else 100, budget),
    }


# The same search in plain PyTorch


def check_eager() -> None:
    """The blurs of the plain search are those of OpenCV, to a grey level."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    references = (
        (eager.box, (2, 3, 4, 5), lambda image, k: cv2.blur(image, (k, k))),
        (eager.gaussian, (3, 5, 7), lambda image, k: cv2.GaussianBlur(image, (k, k), 0)),
        (eager.median, (3, 5, 7), cv2.medianBlur),
    )
    for blur, windows, reference in references:
        for window in windows:
            got = blur(images, window).numpy().astype(int)
            for image, mine in zip(images.permute(0, 2, 3, 1).numpy(), got, strict=True):
                theirs = reference(np.ascontiguousarray(image), window).transpose(2, 0, 1).astype(int)
                if np.abs(theirs - mine).max() > 1:
                    msg = f"the plain {blur.__name__} of window {window} is not OpenCV's"
                    raise RuntimeError(msg)


def steadily(run: Callable[[int], Any], seconds: float, device: str) -> tuple[float, int]:
    """Seconds an iteration over so many seconds, and how many iterations that were."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run(5)
        if device != "cpu":
            torch.cuda.synchronize()
        count += 5
    return (time.perf_counter() - start) / count, count


def beside_plain(models: compdx.Pair, images: Array, chains: int, slices: int, seconds: float) -> dict[str, Any]:
    """One batch size. Both search the same images again and again, as new seeds."""
    many = images[np.resize(np.arange(len(images)), max(1 << 16, 8 * chains))]
    subject = Subject(models, many, chains)
    subject.check()
    plain = eager.Search(
        models.original.module,
        models.compressed.module,
        torch.from_numpy(many).to(models.device),
        chains=chains,
        budget=BUDGET,
        mean=models.inputs.mean,
        std=models.inputs.std,
    )
    sides: dict[str, Callable[[int], Any]] = {"compdx": subject.run, "plain": plain.run}
    # Past the start, when all chains are on their first seed, findings come at their steady rate.
    for run in sides.values():
        run(40)
    subject.renew()

    def found() -> dict[str, int]:
        return {"compdx": subject.totals()[1], "plain": sum(map(len, plain.found))}

    before = found()
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in sides}
    for _ in range(slices):
        for name, run in sides.items():
            taken[name].append(steadily(run, seconds, models.device))
        subject.renew()
    after = found()
    row: dict[str, Any] = {"chains": chains, "device": models.device, "slices": slices}
    for name, slots in taken.items():
        findings = after[name] - before[name]
        queries = chains * sum(count for _, count in slots)
        row[name] = {
            **spread("queries_per_second", [chains / each for each, _ in slots]),
            "findings": findings,
            "findings_per_second": findings / sum(each * count for each, count in slots),
            "queries_per_finding": queries / findings if findings else None,
        }
    pairs = zip(taken["compdx"], taken["plain"], strict=True)
    return row | spread("ratio", [theirs / ours for (ours, _), (theirs, _) in pairs])


def plain_search(options: argparse.Namespace) -> Any:
    """Queries and findings a second of the plain search and of compdx, in turns."""
    check_eager()
    pair, images, title = trained(options.device)
    sizes = [16] if options.smoke else [128, 512] if options.device == "cpu" else [1024, 8192]
    slices, seconds = (2, 0.02) if options.smoke else (11, 0.4)
    rows = []
    for chains in sizes:
        row = {"pair": title, **beside_plain(pair, images, chains, slices, seconds)}
        print(
            f"eager      B={chains:<6} compdx {row['compdx']['queries_per_second']:,.0f} queries/s, plain PyTorch "
            f"{row['plain']['queries_per_second']:,.0f}: {row['ratio']:.2f} x   findings/s "
            f"{row['compdx']['findings_per_second']:,.1f} and {row['plain']['findings_per_second']:,.1f}",
            flush=True,
        )
        rows.append(row)
    return rows


# Augmentation


def augmentation(options: argparse.Namespace) -> Any:
    best, _ = places(options.device, options.smoke)
    best = replace(best, slices=3, seconds=0.02) if options.smoke else replace(best, slices=9, seconds=0.2)
    if options.device == "cpu":
        torch.set_num_threads(1)
    reason, rows = missing("kornia"), []
    for name in list(SHAPES)[: 1 if options.smoke else 3]:
        shape = SHAPES[name]
        count = {"1x28x28": 1024, "3x32x32": 512, "3x224x224": 16}[name] * (1 if options.device == "cpu" else 16)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        chains = first_mutants(images, np.arange(count), best)
        check_mutants(chains, images, np.arange(count))
        out = chains.new_input(dtype="float32")
        table = chains.new_table(compdx.Inputs(mean=0.5, std=0.25).table(shape[0]), "float32")
        tensor = torch.from_numpy(images).to(options.device)
        pixels = tensor.float() / 255
        hwc = np.ascontiguousarray(images.transpose(0, 2, 3, 1))[: max(1, count // 8)]

        def ours(chains: Any = chains, out: Any = out, table: Any = table) -> None:
            compdx.ops.mutate(chains, out, table=table, dtype="float32")

        def plain(tensor: Any = tensor) -> Any:
            mutants = eager.mutate(tensor, torch.randint(7, (len(tensor),), device=tensor.device))
            return (mutants.float() / 255 - 0.5) / 0.25

        def kornia(pixels: Any = pixels) -> Any:
            return (kornia_mix(pixels) - 0.5) / 0.25

        sides: dict[str, tuple[Callable[[], Any], int]] = {"compdx": (ours, count), "plain PyTorch": (plain, count)}
        if reason is None:
            sides["kornia, five operators"] = (kornia, count)
        if options.device == "cpu":
            sides["OpenCV and NumPy"] = (lambda hwc=hwc, rng=rng: opencv_loop(hwc, rng), len(hwc))
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken = take_turns(
                {side: run for side, (run, _) in sides.items()},
                slices=best.slices,
                seconds=best.seconds,
                device=options.device,
            )
        for side, (_, items) in sides.items():
            row = {
                "tool": side,
                "shape": list(shape),
                "images": items,
                **best.facts(),
                **spread("images_per_second", [items / value for value in taken[side]]),
                **spread(
                    "slower",
                    [(a / items) / (b / count) for a, b in zip(taken[side], taken["compdx"], strict=True)],
                ),
            }
            rows.append(row)
            print(
                f"augment    {name:<10} {side:<24} {row['images_per_second']:>13,.0f} images/s   "
                f"compdx is {row['slower']:.1f} x as fast",
                flush=True,
            )
    return rows if reason is None else [*rows, {"tool": "kornia", "not_measured": reason}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="directory of DFlare's model files")
    parser.add_argument("--data", type=Path, help="directory of mnist/ and cifar10/")
    parser.add_argument("--names", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--seeds", type=int, default=40, help="seeds of the published loop, of each pair")
    parser.add_argument("--threads", type=int, default=2, help="threads of the models, on all sides")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="small models, few seeds: does it run?")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.peers is not None and options.data is None:
        parser.error("--peers needs --data")
    cv2.setNumThreads(1)
    runs = {"published": published, "attacks": attack_libraries, "eager": plain_search, "augmentation": augmentation}
    report: dict[str, Any] = {"device": options.device, "threads": options.threads}
    for section in options.only:
        if not options.smoke:
            torch.set_num_threads(options.threads)
        report[section] = runs[section](options)
        if isinstance(report[section], str):
            print(f"{section}: {report[section]}")
        for row in report[section] if section == "published" and not isinstance(report[section], str) else ():
            show_published(row)
    if not options.smoke or options.out:
        record(named("peers", options.device), report, options.out)


if __name__ == "__main__":
    main()
