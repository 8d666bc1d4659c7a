"""docs/arithmetic.md in plain NumPy: the reference that the native code must equal byte for byte.

Written from that page alone, one image and one chain at a time, with no eye on speed. The constants of section 5 are
read from csrc/core/tables.h. Section numbers in the comments are those of docs/arithmetic.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Words = NDArray[np.uint32]

OPERATORS = ("additive", "salt_pepper", "multiplicative", "pixel", "box", "gaussian", "median")
BLEND = 7  # its code in a trace
CHOOSE, PARAMETERS, PIXELS, POSITIONS = range(4)
ONE = 1 << 30  # 1.0 in Q30


# Section 5: constants ------------------------------------------------------------------------------------------------


@cache
def table(name: str) -> tuple[int, ...]:
    """The integers of one COMPDX_TABLE of csrc/core/tables.h."""
    text = (Path(__file__).resolve().parent.parent / "csrc" / "core" / "tables.h").read_text()
    match = re.search(rf"COMPDX_TABLE\(\w+, {name}, (\d+),([^)]*)\)", text)
    if match is None:
        message = f"no table {name} in csrc/core/tables.h"
        raise KeyError(message)
    values = tuple(int(v) for v in re.findall(r"-?\d+", match[2]))
    if len(values) != int(match[1]):
        message = f"table {name} has {len(values)} values, its header says {match[1]}"
        raise ValueError(message)
    return values


# Section 1: random numbers -------------------------------------------------------------------------------------------


def philox(key: Words, counter: Words) -> Words:
    """Philox4x32-10: key uint32 [..., 2] and counter uint32 [..., 4], which broadcast, to words uint32 [..., 4]."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    k0, k1 = (np.asarray(key)[..., i].astype(np.uint64) for i in range(2))
    c0, c1, c2, c3 = (np.asarray(counter)[..., i].astype(np.uint64) for i in range(4))
    for _ in range(10):
        left = np.uint64(0xD2511F53) * c0
        right = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (right >> half) ^ c1 ^ k0, right & mask, (left >> half) ^ c3 ^ k1, left & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(seed: int, index: int, step: int, purpose: int, blocks: int = 1) -> Integers:
    """The words of blocks 0..blocks-1 of one purpose, int64 [blocks, 4]."""
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    counter = np.empty((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks)
    counter[:, 1] = step
    counter[:, 2] = index & 0xFFFFFFFF
    counter[:, 3] = purpose | (index >> 32) << 8
    return philox(key, counter).astype(np.int64)


def below(word: Integers | int, n: int) -> Integers | int:
    return (word * n) >> 32


def pixel_bits(seed: int, index: int, step: int, n: int) -> Integers:
    """The 16 random bits of each of n pixels."""
    w = words(seed, index, step, PIXELS, (n + 7) // 8)
    return np.stack([w & 0xFFFF, w >> 16], axis=-1).reshape(-1)[:n]


# Section 2: operators ------------------------------------------------------------------------------------------------


def store(y: Integers, overflow: str) -> Integers:
    return y & 255 if overflow == "wrap" else np.clip(y, 0, 255)


def size_of(operator: str, w0: int, *, skip_identity: bool) -> int:
    """The drawn window of a blur or the drawn count of a pixel change; 0 for the other operators."""
    if operator == "pixel":
        return int(1 + below(w0, 9) if skip_identity else below(w0, 10))
    if operator == "box":
        return int(2 + below(w0, 4) if skip_identity else 1 + below(w0, 5))
    if operator in ("gaussian", "median"):
        return int(3 + 2 * below(w0, 3) if skip_identity else 1 + 2 * below(w0, 4))
    return 0


def additive_steps(bits: Integers) -> Integers:
    return np.select([bits < 51, bits < 32768, bits < 65485], [-2, -1, 0], 1)


def normal(bits: Integers) -> Integers:
    """A normal variate in Q12 from 16 random bits."""
    u = bits & 0x7FFF
    tail = u >= 32256
    i = np.where(tail, 64 + ((u & 511) >> 3), u >> 9)
    f = np.where(tail, (u & 7) << 13, (u & 511) << 7)
    z = np.array(table("normal_base"))[i] + ((np.array(table("normal_rise"))[i] * f) >> 16)
    return np.where(bits >> 15 == 1, -z, z)


def multiplicative_law(w1: int, w2: int) -> tuple[int, int]:
    """Mean and standard deviation of the noise of one image, both Q16."""
    return (w1 >> 16) - 32768, math.isqrt(((w2 >> 16) << 16) // 20)


def multiply(values: Integers, mean: int, sigma: int, z: Integers | int) -> Integers:
    """values * (1 + noise), truncated towards zero, before it is stored in a byte."""
    product = values * (65536 + mean + ((sigma * z) >> 12))
    return np.sign(product) * (np.abs(product) >> 16)


def reflect(i: Integers, length: int) -> Integers:
    """Border reflect-101 for any distance."""
    if length == 1:
        return np.zeros_like(i)
    period = 2 * (length - 1)
    i = i % period
    return np.where(i < length, i, period - i)


def windows(image: Integers, size: int, border: Callable[[Integers, int], Integers]) -> Integers:
    """All size x size windows of int64 [C, H, W], as [size, size, C, H, W]."""
    _, height, width = image.shape
    reach = np.arange(size) - size // 2
    rows = border(np.arange(height)[None, :] + reach[:, None], height)
    columns = border(np.arange(width)[None, :] + reach[:, None], width)
    return np.stack([np.stack([image[:, r][:, :, c] for c in columns]) for r in rows])


def box(image: Integers, size: int) -> Integers:
    s = windows(image, size, reflect).sum(axis=(0, 1))
    return {1: s, 2: (s + 3) >> 2, 3: (s + 4) // 9, 4: (s + 9) >> 4, 5: (s + 12) // 25}[size]


def gaussian(image: Integers, size: int) -> Integers:
    taps = {1: [256], 3: [64, 128, 64], 5: [16, 64, 96, 64, 16], 7: [8, 28, 56, 72, 56, 28, 8]}[size]
    return (np.einsum("i,j,ijchw->chw", taps, taps, windows(image, size, reflect)) + 32768) >> 16


def median(image: Integers, size: int) -> Integers:
    w = windows(image, size, lambda i, length: np.clip(i, 0, length - 1)).astype(np.uint8)
    return np.sort(w.reshape(size * size, *image.shape), axis=0)[size * size // 2].astype(np.int64)


def apply(
    image: Bytes,
    operator: str,
    *,
    size: int | None = None,
    seed: int = 0,
    index: int = 0,
    step: int = 1,
    overflow: str = "clip",
    linf: int | None = None,
    origin: Bytes | None = None,
    skip_identity: bool = False,
) -> Bytes:
    """One operator on one image uint8 [C, H, W]."""
    v = image.astype(np.int64)
    n = v.size
    w0, w1, w2, _ = (int(w) for w in words(seed, index, step, PARAMETERS)[0])
    if size is None:
        size = size_of(operator, w0, skip_identity=skip_identity)
    if operator == "additive":
        y = v + additive_steps(pixel_bits(seed, index, step, n)).reshape(v.shape)
        y = store(np.where(y < 0, y + 1, y), overflow)
    elif operator == "salt_pepper":
        m = (n + 499) // 500
        positions = below(words(seed, index, step, POSITIONS, (2 * m + 3) // 4).reshape(-1), n)
        y = v.copy()
        y.reshape(-1)[positions[:m]] = 255
        y.reshape(-1)[positions[m : 2 * m]] = 0
    elif operator == "multiplicative":
        mean, sigma = multiplicative_law(w1, w2)
        y = store(multiply(v, mean, sigma, normal(pixel_bits(seed, index, step, n)).reshape(v.shape)), overflow)
    elif operator == "pixel":
        y = v.copy()
        for w in words(seed, index, step, POSITIONS, max(size, 1))[:size]:
            y.reshape(-1)[below(int(w[0]), n)] = w[1] >> 24
    else:
        y = {"box": box, "gaussian": gaussian, "median": median}[operator](v, size)
    if linf is not None:
        s = (image if origin is None else origin).astype(np.int64)
        y = np.minimum(np.maximum(y, s - linf), s + linf)
    return y.astype(np.uint8)


def blend(near: Bytes, far: Bytes, weight: int, *, seed: int = 0, index: int = 0, step: int = 1) -> Bytes:
    """Weight sixteenths of the way from one image uint8 [C, H, W] to another."""
    a, b = near.astype(np.int64), far.astype(np.int64)
    r = pixel_bits(seed, index, step, a.size).reshape(a.shape)
    return (a + (((b - a) * weight * 4096 + r) >> 16)).astype(np.uint8)


# Section 3: choosing the operator ------------------------------------------------------------------------------------


def permutation(w1: int) -> list[int]:
    code = int(below(w1, 5040))
    remaining = list(range(7))
    order = []
    for i in range(7):
        f = math.factorial(6 - i)
        order.append(remaining.pop(code // f))
        code %= f
    return order


def ranking(credit: list[int], total: list[int], w1: int) -> list[int]:
    """The operators, best first."""
    place = {operator: i for i, operator in enumerate(permutation(w1))}

    def before(a: int, b: int) -> bool:
        left, right = credit[a] * total[b], credit[b] * total[a]
        if credit[a] == 0 or credit[b] == 0:
            return place[a] < place[b] if credit[a] == credit[b] else credit[a] > 0
        if left != right:
            return left > right
        if total[a] != total[b]:
            return total[a] > total[b]
        return place[a] < place[b]

    return sorted(range(7), key=lambda a: sum(before(b, a) for b in range(7) if b != a))


def choose_rank(selection: str, k1: int | None, w0: int) -> int:
    """The rank drawn from rank k1; k1 is None until something was accepted."""
    row = 8 if k1 is None else {"metropolis": k1, "rank": 7, "uniform": 8}[selection]
    return sum(w0 >= threshold for threshold in table("selection_thresholds")[7 * row : 7 * row + 6])


def choose(selection: str, credit: list[int], total: list[int], last: int | None, w0: int, w1: int) -> int:
    """The operator of the next mutant, by its code."""
    order = ranking(credit, total, w1)
    return order[choose_rank(selection, None if last is None else order.index(last), w0)]


# Section 4: judging --------------------------------------------------------------------------------------------------


def exponentials(logits: Floats) -> Integers:
    """exp(x - max x) in Q24."""
    with np.errstate(over="ignore"):  # a difference of infinity is just a large one
        t = np.max(logits) - logits
    scaled = np.where(t < 17, t, np.float32(0)).astype(np.float64) * 2.0**27
    y = (scaled.astype(np.uint64) * np.uint64(3098164009)) >> np.uint64(31)
    s = y >> np.uint64(27)
    fraction = (y & np.uint64(2**27 - 1)) << np.uint64(5)
    c = [np.uint64(v) for v in table("exp2_coefficients")]
    q = np.full_like(y, c[5])
    for coefficient in reversed(c[:5]):
        q = coefficient - ((q * fraction) >> np.uint64(32))
    e = np.uint64(2**31) - ((q * fraction) >> np.uint64(33))
    rounded = (e + (np.uint64(1) << (s + np.uint64(6)))) >> (s + np.uint64(7))
    return np.where(t < 17, rounded.astype(np.int64), 0)


@dataclass(frozen=True)
class Scores:
    """What one model says of one image: label, confidence (Q30), lead over the runner-up (Q30), state (Q15 [K])."""

    label: int
    confidence: int
    margin: int
    state: Integers


def read_scores(scores: Floats, kind: str) -> Scores | None:
    """None when a score is NaN or infinite."""
    scores = np.asarray(scores, np.float32)
    if not np.isfinite(scores).all():
        return None
    label = int(np.argmax(scores))
    if kind == "probabilities":
        q30 = (np.clip(scores, 0, 1).astype(np.float64) * ONE).astype(np.int64)
        margin = int(q30[label] - np.delete(q30, label).max())
        return Scores(label, int(q30[label]), margin, (q30 + (1 << 14)) >> 15)
    e = exponentials(scores)
    total = int(e.sum())
    confidence = (int(e[label]) * ONE + total // 2) // total
    margin = (2**24 - int(np.delete(e, label).max())) * ONE // total
    state = (e.astype(np.uint64) * np.uint64(2**56 // total) + np.uint64(2**40)) >> np.uint64(41)
    return Scores(label, confidence, margin, state.astype(np.int64))


def mix64(z: int) -> int:
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & (2**64 - 1)
    return z ^ z >> 31


def tag_of(original: Integers, compressed: Integers, grid: int) -> int:
    h = 0
    for m, state in enumerate((original, compressed)):
        for k, q in enumerate((state * grid + (1 << 14)) >> 15):
            if q:
                h += mix64((m << 63) ^ (k << 32) ^ int(q))
    h &= 2**64 - 1
    return ((h ^ h >> 32) & 0xFFFFFFFF) or 1


@dataclass
class Nearest:
    """The states themselves; novel when further than the threshold from each of them."""

    capacity: int
    threshold: float
    states: list[Integers] = field(default_factory=list)
    entered: int = 0

    def enter(self, original: Integers, compressed: Integers) -> bool:
        state = np.concatenate([original, compressed])
        if any(int(((state - old) ** 2).sum()) <= self.threshold * ONE for old in self.states):
            return False
        if len(self.states) < self.capacity:
            self.states.append(state)
        else:
            self.states[self.entered % self.capacity] = state
        self.entered += 1
        return True


@dataclass
class Hash:
    """Tags of the states' cells in an open-addressing table; a full enough table forgets."""

    capacity: int
    grid: int
    places: dict[int, int] = field(default_factory=dict)
    entered: int = 0

    def enter(self, original: Integers, compressed: Integers) -> bool:
        tag = tag_of(original, compressed, self.grid)
        first = tag & (self.capacity - 1)
        place = first
        for i in range(self.capacity):
            place = (first + i) & (self.capacity - 1)
            if place not in self.places:
                break
            if self.places[place] == tag:
                return False
        self.places[first if 2 * len(self.places) >= self.capacity else place] = tag
        self.entered += 1
        return True


@dataclass(frozen=True)
class Fitness:
    """What acceptance compares: |d| and the pair's margin (both Q30), and whether the state is new."""

    difference: int
    margin: int
    novel: bool = False


def accepts(rule: str, now: Fitness, best: Fitness) -> bool:
    """Whether a mutant becomes the current image; best is the last accepted one, or what the rule starts from."""
    if rule == "margin":
        return now.margin <= best.margin
    if rule == "change":
        return abs(now.difference - best.difference) > 1073741 or now.novel
    if rule == "improve":
        return now.difference + now.novel * ONE >= best.difference + best.novel * ONE
    return {"always": True, "never": False}[rule]


def weight_towards(near_margin: int, far_margin: int) -> int:
    """How many sixteenths of the way to the far image the boundary should be."""
    near, far = near_margin >> 4, far_margin >> 4
    both = near + far
    return min(max((16 * near + both // 2) // both, 1), 15) if both else 8


# One seed from start to end ------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One judged image of a trajectory; the seed is step 0 and has no operator."""

    operator: int | None
    image: Bytes
    accepted: bool = False
    beyond: bool = False  # of an operator: became the far image
    weight: int = 0  # of a blend

    @property
    def code(self) -> int:
        """Its byte in the trace."""
        return self.operator | self.accepted << 3 | self.beyond << 4 | self.weight << 4


@dataclass
class Outcome:
    """How one chain ended, with the names of compdx.findings.Outcomes, and the way there.

    image is the one that was judged last; native leaves it and its distances out when the chain is exhausted.
    """

    seed_index: int
    kind: str
    step: int
    queries: int
    accepted: int
    states: int
    seed_label: int
    original_label: int
    compressed_label: int
    original_confidence: float
    compressed_confidence: float
    non_finite: int
    l2_squared: int
    linf: int
    image: Bytes
    trace: Bytes
    trajectory: list[Step]


Judge = Callable[[Bytes], tuple[Floats, Floats]]


@dataclass(frozen=True, kw_only=True)
class OracleSearch:
    """The search of one seed at a time; the settings are those of compdx.MCMC."""

    budget: int
    selection: str
    acceptance: str
    coverage: str
    overflow: str
    skip_identity: bool
    bisect: int = 0
    grid: int = 0
    threshold: float = 0.5
    capacity: int | None = None
    linf: int | None = None

    def archive(self) -> Nearest | Hash:
        if self.coverage == "nearest":
            return Nearest(64 if self.capacity is None else self.capacity, self.threshold)
        capacity = self.capacity
        if capacity is None:
            capacity = min(max(1 << (2 * self.budget - 1).bit_length(), 16), 65536)
        return Hash(capacity, self.grid)

    def run(
        self,
        seed_image: Bytes,
        index: int,
        pair: Judge,
        *,
        seed: int = 0,
        outputs: tuple[str, str] = ("logits", "logits"),
    ) -> Outcome:
        """The whole trajectory of the seed image uint8 [C, H, W] with the identity index under the run seed."""
        archive = self.archive()
        credit, total = [0] * 7, [0] * 7
        current, last = seed_image, None
        best = Fitness(0, 0)
        far, far_margin, blends = seed_image, 0, 0
        seed_label = -1
        trajectory: list[Step] = []
        kind = ""
        while not kind:
            step = len(trajectory)
            if step == 0:
                now = Step(None, seed_image)
            elif blends:
                weight = weight_towards(best.margin, far_margin)
                between = blend(current, far, weight, seed=seed, index=index, step=step)
                now = Step(BLEND, between, weight=weight)
            else:
                w0, w1 = (int(w) for w in words(seed, index, step, CHOOSE)[0, :2])
                now = Step(choose(self.selection, credit, total, last, w0, w1), seed_image)
                now.image = apply(
                    current,
                    OPERATORS[now.operator],
                    seed=seed,
                    index=index,
                    step=step,
                    overflow=self.overflow,
                    linf=self.linf,
                    origin=seed_image,
                    skip_identity=self.skip_identity,
                )
                total[now.operator] += 1
            trajectory.append(now)

            rows = pair(now.image[None])
            a, b = (read_scores(np.asarray(row)[0], output) for row, output in zip(rows, outputs, strict=True))
            if step == 0 and a is not None:
                seed_label = a.label
            if a is None or b is None:
                kind = "non-finite"
                break
            if a.label != b.label:
                kind = "seed" if step == 0 else "effective" if a.label == seed_label else "invalid"
                if now.operator not in (None, BLEND):
                    credit[now.operator] += 1
                break
            novel = archive.enter(a.state, b.state)
            fitness = Fitness(abs(a.confidence - b.confidence), min(a.margin, b.margin), novel)
            if step == 0:
                # The seed's own state is no novelty; `change` starts from a difference of 0 whatever the seed's is.
                best = Fitness(0 if self.acceptance == "change" else fitness.difference, fitness.margin)
            elif now.operator == BLEND:
                blends -= 1
                now.accepted = a.label == seed_label
                if now.accepted:
                    current, best = now.image, fitness
                else:
                    far, far_margin = now.image, fitness.margin
            elif self.bisect and a.label != seed_label:
                now.beyond = True
                far, far_margin, blends = now.image, fitness.margin, self.bisect
                credit[now.operator] += 1
            elif accepts(self.acceptance, fitness, best):
                now.accepted = True
                current, last, best = now.image, now.operator, fitness
                credit[now.operator] += 1
            if len(trajectory) == self.budget:
                kind = "exhausted"

        end = trajectory[-1].image
        difference = end.astype(np.int64) - seed_image
        return Outcome(
            seed_index=index,
            kind=kind,
            step=len(trajectory) - 1,
            queries=len(trajectory),
            accepted=sum(s.accepted for s in trajectory),
            states=archive.entered,
            seed_label=seed_label,
            original_label=-1 if a is None else a.label,
            compressed_label=-1 if b is None else b.label,
            original_confidence=math.nan if a is None else a.confidence / ONE,
            compressed_confidence=math.nan if b is None else b.confidence / ONE,
            non_finite=(a is None) + 2 * (b is None),
            l2_squared=int((difference**2).sum()),
            linf=int(np.abs(difference).max()),
            image=end,
            trace=np.array([s.code for s in trajectory[1:]], np.uint8),
            trajectory=trajectory,
        )
