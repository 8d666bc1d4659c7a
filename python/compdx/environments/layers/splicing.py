"""Networks put together from two: the first part of one, the rest of the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from compdx.environments.layers.graph import INPUT, Array, Network, Slot
from compdx.environments.layers.matching import Matching, Place

Differs = Callable[[Array], bool]


class Splices:
    """Two networks that hand over to each other at their places.

    Args:
        a, b: The networks.
        matching: Their places.
        xa, xb: What each is given for the same images.
        offsets: Leading scores of each to drop.

    Attributes:
        places: Where they hand over, in order.
    """

    def __init__(
        self, a: Network, b: Network, matching: Matching, xa: Array, xb: Array, *, offsets: tuple[int, int] = (0, 0)
    ) -> None:
        self._a, self._b, self.xa, self.xb, self._offsets = a, b, xa, xb, offsets
        self.places = matching.operations

    @cached_property
    def a_alone(self) -> Array:
        """The scores of the first network."""
        return self.b_first(0)

    @cached_property
    def b_alone(self) -> Array:
        """The scores of the second network."""
        return self.a_first(0)

    def b_first(self, count: int) -> Array:
        """What comes out with the first ``count`` places computed by the second network, the rest by the first."""
        given = {place.a: place for place in self.places[:count]}
        if self._a.output in given:  # nothing is left to do
            last = given[self._a.output]
            value = self._b.values(self.xb, [last.b])[last.b]
            return last.to_a(value, self._a.shapes[last.a])[:, self._offsets[0] :]
        rest = self._a.part(list(given), [self._a.output])
        taken = [given[slot] for slot in rest.needs if isinstance(slot, str) and slot in given]
        values = {INPUT: self.xb, **self._b.values(self.xb, [place.b for place in taken if place.b != INPUT])}
        fed: dict[Slot, Array] = {place.a: place.to_a(values[place.b], self._a.shapes[place.a]) for place in taken}
        return rest({INPUT: self.xa, **fed})[self._a.output][:, self._offsets[0] :]

    def a_first(self, count: int) -> Array:
        """What comes out with the first ``count`` places computed by the first network, the rest by the second."""
        given = {place.b: place for place in self.places[:count]}
        if self._b.output in given:
            last = given[self._b.output]
            value = self._a.values(self.xa, [last.a])[last.a]
            return last.to_b(value, self._b.shapes[last.b])[:, self._offsets[1] :]
        rest = self._b.part(list(given), [self._b.output])
        taken = [given[slot] for slot in rest.needs if isinstance(slot, str) and slot in given]
        values = {INPUT: self.xa, **self._a.values(self.xa, [place.a for place in taken if place.a != INPUT])}
        fed: dict[Slot, Array] = {place.b: place.to_b(values[place.a], self._b.shapes[place.b]) for place in taken}
        return rest({INPUT: self.xb, **fed})[self._b.output][:, self._offsets[1] :]

    def only(self, place: Place, value: Array) -> Array:
        """What the first network makes of a value of the second at one place."""
        fed = place.to_a(value, self._a.shapes[place.a])
        if place.a != self._a.output:
            fed = self._a.part([place.a], [self._a.output])({INPUT: self.xa, place.a: fed})[self._a.output]
        return fed[:, self._offsets[0] :]

    def first(self, differs: Differs) -> Place | None:
        """The first place that, computed by the second network with all before it, makes the outputs differ.

        ``None``: none does; what differs comes behind the last place. Halves the places at every step, which finds the
        first one when a difference that is there stays there.
        """
        low, high = 0, len(self.places) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if differs(self.b_first(middle)):
                high = middle
            else:
                low = middle
        return None if high > len(self.places) else self.places[high - 1]

    def last(self, differs: Differs) -> Place | None:
        """The last place from which on the second network, given what the first computed before, still differs."""
        low, high = 0, len(self.places) + 1
        while high - low > 1:
            middle = (low + high) // 2
            if differs(self.a_first(middle)):
                low = middle
            else:
                high = middle
        return None if low == len(self.places) else self.places[low]
