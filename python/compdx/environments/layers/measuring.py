"""Two networks measured at their places, in one pass over chunks of images and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compdx.environments.layers.errors import Error, Floats, Sums, error
from compdx.environments.layers.graph import INPUT, Array, Network, Part, Slot
from compdx.environments.layers.matching import BETWEEN, Matching, Place

EPSILON = 2.0**-24
"""The unit roundoff of float32."""
ROUNDING = 4.0
"""How many times the rounding to be expected is still called rounding: see `SideBySide.bounds`."""
STEP = 2.0**-16
"""The relative size of the disturbance that bounds are measured with; far above a float32's own rounding."""

Rows = npt.NDArray[np.uint8]
Values = dict[Place, Array]
Noise = Callable[[Array], Array]
See = Callable[[slice, tuple[Array, Array]], None]


@dataclass(frozen=True, eq=False)
class _Group:
    """Places whose values are in memory at the same time, and the parts that compute them."""

    places: tuple[Place, ...]
    run_a: Part
    run_b: Part
    alone: Part


class SideBySide:
    """Both networks with what is needed to measure them at their places.

    Attributes:
        a, b: The networks.
        places: All of them.
        groups: Those that are looked at together.
    """

    def __init__(self, networks: tuple[Network, Network], matching: Matching, chunk: int, memory: int) -> None:
        self.a, self.b = networks
        self.places, self._chunk = matching.places, chunk
        # What the second network is given by the first: all values that stand for one of the first's, and what was
        # computed between them where it is taken.
        self._given: dict[Slot, Place] = {place.b: place for place in matching.operations}
        self._given |= {port: place for place in self.places for port in place.ports}
        self.groups = [self._group(places) for places in self._sized(memory / chunk)]

    def measure(self, rows: Rows, see: See | None = None) -> tuple[list[RowSums], list[Error]]:
        """The errors of all places on images: as both run, and each by itself.

        ``see`` is called with the rows of every chunk and what both networks return for it.
        """
        drift = {place: RowSums() for place in self.places}
        own = {place: Sums() for place in self.places}
        for part in parts(len(rows), self._chunk):
            xa, xb = self.a.feed(rows[part]), self.b.feed(rows[part])
            for group in self.groups:
                values = {INPUT: xa, **group.run_a({INPUT: xa})}
                others = {INPUT: xb, **group.run_b({INPUT: xb})}
                alone = self.alone(group, values, xb)
                for place in group.places:
                    should = place.to_b(values[place.a], self.b.shapes[place.b])
                    drift[place].add(should, others[place.b])
                    own[place].add(should, alone[place])
                if see is not None and group is self.groups[0]:
                    see(part, (values[self.a.output], others[self.b.output]))
        return list(drift.values()), [sums.error() for sums in own.values()]

    def alone(self, group: _Group, values: Mapping[str, Array], xb: Array, noise: Noise | None = None) -> Values:
        """The second network's values at the places of a group, each from what the first has before it.

        ``noise`` is done to all that is given.
        """
        fed = {slot: self._fed(slot, values) for slot in group.alone.needs}
        fed = fed if noise is None else {slot: noise(value) for slot, value in fed.items()}
        made = group.alone(fed)
        found = {}
        for place in group.places:
            if place.kind == INPUT:
                found[place] = xb
            elif place.b in made:
                found[place] = made[place.b]
            else:  # between places, where the second network computes nothing
                found[place] = self._fed(place.b, values)
        return found

    def bounds(self, rows: Rows) -> list[float]:
        """The relative errors that rounding explains.

        A place that adds up K products rounds K times; errors of random signs grow with the root of K. How large they
        are against the result, behind a difference of large numbers for one, is what a disturbance of what it takes
        becomes. `ROUNDING` times that is still called rounding.
        """
        rng = np.random.default_rng(0)
        xa, xb = self.a.feed(rows), self.b.feed(rows)

        def noise(value: Array) -> Array:
            return np.asarray(value * (1 + STEP * rng.uniform(-1, 1, value.shape)), np.float32)

        found = []
        for group in self.groups:
            values = {INPUT: xa, **group.run_a({INPUT: xa})}
            still, moved = self.alone(group, values, xb), self.alone(group, values, xb, noise)
            for place in group.places:
                response = error(still[place], moved[place]).relative / STEP
                response = max(1.0, response) if math.isfinite(response) else 1.0
                found.append(ROUNDING * math.sqrt(place.terms) * EPSILON * response)
        return found

    def own_value(self, place: Place, xa: Array, xb: Array) -> Array:
        """What the second network computes at one place, from what the first has before it."""
        group = self._group([place])
        return self.alone(group, {INPUT: xa, **group.run_a({INPUT: xa})}, xb)[place]

    def _fed(self, slot: Slot, values: Mapping[str, Array]) -> Array:
        place = self._given[slot]
        value = slot if isinstance(slot, str) else self.b.operations[slot.operation].operands[slot.number]
        return place.to_b(values[place.a], self.b.shapes[value])

    def _group(self, places: Sequence[Place]) -> _Group:
        made = [p.b for p in places if p.kind != INPUT and (p.kind != BETWEEN or p.b not in self._given)]
        alone = self.b.part(list(self._given), list(dict.fromkeys(made)))
        given = [self._given[slot].a for slot in alone.needs]
        given += [self._given[p.b].a for p in places if p.kind == BETWEEN and p.b in self._given]
        names = dict.fromkeys([*(p.a for p in places), *given, self.a.output])
        others = dict.fromkeys([*(p.b for p in places), self.b.output])
        return _Group(
            places=tuple(places),
            run_a=self.a.part([INPUT], [name for name in names if name != INPUT]),
            run_b=self.b.part([INPUT], [name for name in others if name != INPUT]),
            alone=alone,
        )

    def _sized(self, limit: float) -> Iterator[list[Place]]:
        """The places in groups whose values of one image, in both networks and alone, take at most so many bytes."""
        group: list[Place] = []
        size = 0
        for place in self.places:
            taken = 3 * 4 * math.prod(self.a.shapes[place.a])
            if group and size + taken > limit:
                yield group
                group, size = [], 0
            group.append(place)
            size += taken
        yield group


class RowSums(Sums):
    """Sums that keep the relative error of every image."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[Floats] = []

    def add(self, a: Array, b: Array) -> Floats:
        """See `Sums.add`."""
        self._rows.append(super().add(a, b))
        return self._rows[-1]

    @property
    def rows(self) -> Floats:
        """The relative error of every image, float64 ``[N]``."""
        return np.concatenate(self._rows)


def parts(count: int, size: int) -> Iterator[slice]:
    """Rows 0 to ``count`` in chunks."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
