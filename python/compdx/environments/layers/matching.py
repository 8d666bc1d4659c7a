"""Which values of two networks stand for each other, whatever runs them."""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compdx.environments.layers.graph import AFFINE, INPUT, OUTPUT, STEPS, Array, Network, Operation, Port

Shape = tuple[int, ...]
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The axes of an image whose channels come to lie last, and of one whose channels come to lie first."""
BETWEEN = "between"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Two values that should be the same.

    Most places are an operation that both networks have. A layer that is followed by what a conversion folds into it
    counts together with that. The other places lie between: what one of two such operations takes was computed by
    operations that only one network has, or that compute nothing but move and round.

    Attributes:
        name: That of the operation in the first network, behind those that it cannot be told from; between operations
            ``"from → to"``.
        kind: Of the operation; ``"between"``, or ``"input"``.
        a, b: The names of the values.
        heads: The operations that begin it in either network; ``None`` where there is none.
        ports: Where the second network takes the value, between.
        covers: All operations of either network that make the value from those of the places before it.
        axes: Which axes of the first network's value the second one has; ``None``: the same, but for axes of size 1.
        terms: Products or summands of an element.
    """

    name: str
    kind: str
    a: str
    b: str
    heads: tuple[str, str] | None = None
    ports: tuple[Port, ...] = ()
    covers: tuple[str, ...] = ()
    axes: Shape | None = None
    terms: int = 1

    def to_b(self, value: Array, shape: Shape) -> Array:
        """A value of the first network as the second one has it, whose shape for one image is ``shape``."""
        turned = value if self.axes is None else value.transpose(self.axes)
        return turned.reshape(len(value), *shape[1:])

    def to_a(self, value: Array, shape: Shape) -> Array:
        """And the other way round; ``shape`` is that of the first network's value."""
        turned = value if self.axes is None else value.transpose(FIRST if self.axes == LAST else LAST)
        return turned.reshape(len(value), *shape[1:])


@dataclass(frozen=True, kw_only=True)
class Matching:
    """What two networks have in common.

    Attributes:
        places: In the order of the first network.
        unpaired: Operations that only one has, under ``"a"`` and ``"b"``, but for what only moves or rounds.
    """

    places: tuple[Place, ...]
    unpaired: dict[str, tuple[str, ...]]

    @property
    def operations(self) -> list[Place]:
        """The places that are an operation, or the input."""
        return [place for place in self.places if place.kind != BETWEEN]


def match(a: Network, b: Network) -> Matching:
    """Pair the values of two networks that have looked at an image.

    Layers with weights are the same when their paths (without a wrapper's), their kinds and the shapes of their weights
    are; what is left over of one kind and shape is paired by the likeness of its weights. Other operations are the same
    when they are of one kind and take the same values, seen through whatever moves or rounds them; then, when they
    stand between the same others, in their order.
    """
    return _Matcher(a, b).matching()


class _Matcher:
    """The work of `match`: which value of the first network one of the second stands for, and what begins either."""

    def __init__(self, a: Network, b: Network) -> None:
        self._a, self._b = a, b
        self._a_of = {INPUT: INPUT}
        self._heads: dict[str, tuple[str, str]] = {}  # by the values of the second network
        self._layers = _weighted_pairs(a, b)
        if not self._layers:
            msg = f"a and b must have layers in common, but {a.name!r} and {b.name!r} have none of one shape of weights"
            raise ValueError(msg)
        self._turned = sum(_turned(a.shapes[x.name], b.shapes[y.name]) for x, y in self._layers) * 2 > len(self._layers)
        for x, y in self._layers:
            self._add_layer(x, y)
        self._add_same()
        self._add_left_over()
        self._add_same()

    def matching(self) -> Matching:
        """The places that were found."""
        operations = [self._operation(value) for value in self._heads]
        first = Place(name=INPUT, kind=INPUT, a=INPUT, b=INPUT, covers=(INPUT,), axes=self._axes(INPUT, INPUT))
        order = {name: number for number, name in enumerate([INPUT, *self._a.operations])}
        places = sorted([first, *operations, *self._between()], key=lambda place: order[place.a])
        unpaired = {}
        for side, network in enumerate((self._a, self._b)):
            paired = {name for place in operations for name in _path(network, place, side)}
            found = [o.name for o in network.operations.values() if o.kind not in STEPS and o.name not in paired]
            unpaired["ab"[side]] = tuple(found)
        return Matching(places=tuple(places), unpaired=unpaired)

    def _add(self, a: str, b: str, heads: tuple[str, str]) -> None:
        if self._fits(a, b):
            self._a_of[b], self._heads[b] = a, heads

    def _add_layer(self, x: Operation, y: Operation) -> None:
        """A layer, and what may be folded into it: each by itself where neither network has it folded."""
        tails = [_tail(network, head.name) for network, head in ((self._a, x), (self._b, y))]
        kinds = [[operation.kind for operation in tail] for tail in tails]
        if kinds[0] == kinds[1]:
            for one, other in zip([x, *tails[0]], [y, *tails[1]], strict=True):
                self._add(one.name, other.name, (one.name, other.name))
        else:
            self._add([x, *tails[0]][-1].name, [y, *tails[1]][-1].name, (x.name, y.name))

    def _add_same(self) -> None:
        """Operations of one kind on the same values; those of one function first."""
        taken = set(self._a_of.values())
        known: dict[tuple[object, ...], list[Operation]] = defaultdict(list)
        own = {value: value for value in taken}
        for x in self._a.operations.values():
            if x.name in taken:
                own[x.name] = x.name
            elif x.kind not in STEPS and not x.weighted:
                own[x.name] = x.name
                known[self._key(self._a, x, own)].append(x)
        for y in self._b.operations.values():
            if y.name in self._a_of or y.kind in STEPS or y.weighted or not self._reachable(y):
                continue
            found = known.get(self._key(self._b, y, self._a_of), [])
            best = next((x for x in found if x.function == y.function), found[0] if found else None)
            if best is not None and self._fits(best.name, y.name):
                found.remove(best)
                self._add(best.name, y.name, (best.name, y.name))

    def _add_left_over(self) -> None:
        """What is still alone between the same two places, in its order."""
        gaps: list[dict[str, list[Operation]]] = [defaultdict(list), defaultdict(list)]
        for network, gap, name_of in (
            (self._a, gaps[0], {value: value for value in self._a_of.values()}),
            (self._b, gaps[1], self._a_of),
        ):
            last = INPUT
            inside = {name for pair in self._layers for name in (pair[0].name, pair[1].name)}
            for operation in network.operations.values():
                if operation.name in name_of:
                    last = name_of[operation.name]
                elif operation.kind not in STEPS and not operation.weighted and operation.name not in inside:
                    gap[last].append(operation)
        for last in gaps[0].keys() & gaps[1].keys():
            left, right = gaps[0][last], gaps[1][last]
            matcher = difflib.SequenceMatcher(None, [o.kind for o in left], [o.kind for o in right], autojunk=False)
            for block in matcher.get_matching_blocks():
                for n in range(block.size):
                    x, y = left[block.a + n], right[block.b + n]
                    self._add(x.name, y.name, (x.name, y.name))

    def _key(self, network: Network, operation: Operation, of: Mapping[str, str]) -> tuple[object, ...]:
        sources = [_source(network, operand) for operand in operation.operands]
        names = [(of.get(value, f"{id(network)} {value}"), shape) for value, shape in sources]
        return operation.kind, *sorted(names)

    def _reachable(self, operation: Operation) -> bool:
        return all(_source(self._b, operand)[0] in self._a_of for operand in operation.operands)

    # Places

    def _operation(self, value: str) -> Place:
        heads, a = self._heads[value], self._a_of[value]
        x, y = self._a.operations[heads[0]], self._b.operations[heads[1]]
        place = Place(
            name=x.name,
            kind=x.kind,
            a=a,
            b=value,
            heads=heads,
            axes=self._axes(a, value),
            terms=max(self._a.terms(x.name), self._b.terms(y.name)),
        )
        # What is taken is no place of its own where it cannot be compared: then it is a part of this one.
        taken = self._aligned(x, y) if len(x.operands) == len(y.operands) else []
        hidden = [pair for pair in taken if self._a_of.get(pair[1]) != pair[0] and not self._compared(*pair)]
        before = [name for one, _ in hidden for name in _back(self._a, one, set(self._a_of.values()))[0]]
        behind = [name for _, one in hidden for name in _back(self._b, one, set(self._a_of))[0]]
        own = [name for name in before if self._a.operations[name].kind not in STEPS]
        covers = [*before, *_path(self._a, place, 0), *behind, *_path(self._b, place, 1)]
        return replace(place, name=" + ".join([*dict.fromkeys(own), x.name]), covers=tuple(dict.fromkeys(covers)))

    def _between(self) -> Iterator[Place]:
        """What the paired operations take, and what the networks return, where that is no place already."""
        found: dict[tuple[str, str], list[tuple[Port | None, str]]] = {}
        for heads in self._heads.values():
            x, y = self._a.operations[heads[0]], self._b.operations[heads[1]]
            if len(x.operands) == len(y.operands):
                for number, (a, b) in enumerate(self._aligned(x, y)):
                    found.setdefault((a, b), []).append((Port(y.name, number), x.name))
        found.setdefault((self._a.output, self._b.output), []).append((None, OUTPUT))
        for (a, b), uses in found.items():
            if self._a_of.get(b) == a or not self._compared(a, b):
                continue
            made = [_back(self._a, a, set(self._a_of.values())), _back(self._b, b, set(self._a_of))]
            operations = [
                network.operations[name]
                for network, (names, _) in zip((self._a, self._b), made, strict=True)
                for name in names
            ]
            if made[0][1] == [self._a_of[name] for name in made[1][1]] and all(map(_copies, operations)):
                continue
            start = " + ".join(made[0][1])
            sink = uses[0][1]
            ends = [name for name in (INPUT, OUTPUT) if name in (*made[0][1], sink)]
            place = Place(
                name=f"{start} → {sink}", kind=BETWEEN, a=a, b=b, ports=tuple(port for port, _ in uses if port),
                terms=1 if all(o.kind in STEPS for o in operations) else int(np.prod(self._a.shapes[a][1:])),
            )  # fmt: skip
            yield replace(place, covers=tuple(dict.fromkeys([*made[0][0], *made[1][0], *ends])))

    def _aligned(self, x: Operation, y: Operation) -> list[tuple[str, str]]:
        """What both take, in the order of the second: an addition may have been turned round."""
        left = list(x.operands)
        found = []
        for operand in y.operands:
            wanted = self._a_of.get(_source(self._b, operand)[0])
            best = next((one for one in left if _source(self._a, one)[0] == wanted), left[0])
            left.remove(best)
            found.append((best, operand))
        return found

    def _compared(self, a: str, b: str) -> bool:
        """Whether what is taken is compared: where one network has its channels last, flattening mixes them up."""
        return self._fits(a, b) and not self._turned

    def _axes(self, a: str, b: str) -> Shape | None:
        return LAST if self._turned_at(a, b, LAST) else FIRST if self._turned_at(a, b, FIRST) else None

    def _turned_at(self, a: str, b: str, axes: Shape) -> bool:
        x, y = self._a.shapes[a], self._b.shapes[b]
        turned = len(x) == 4 and len(y) == 4 and tuple(x[axis] for axis in axes) == y
        return turned and (x != y or self._turned)

    def _fits(self, a: str, b: str) -> bool:
        x, y = self._a.shapes.get(a), self._b.shapes.get(b)
        return x is not None and y is not None and (_plain(x) == _plain(y) or self._axes(a, b) is not None)


def _weighted_pairs(a: Network, b: Network) -> list[tuple[Operation, Operation]]:
    known, asked = (_weighted(network) for network in (a, b))
    pairs = [
        (known.pop(path), asked.pop(path)) for path in [*asked] if path in known and _alike(known[path], asked[path])
    ]
    groups: dict[tuple[object, ...], tuple[list[Operation], list[Operation]]] = defaultdict(lambda: ([], []))
    for side, layers in enumerate((known, asked)):
        for operation in layers.values():
            groups[operation.kind, operation.parameters["weight"].shape][side].append(operation)
    for left, right in groups.values():
        distances = sorted(
            (_distance(x.parameters["weight"], y.parameters["weight"]), abs(i - j), i, j)
            for i, x in enumerate(left)
            for j, y in enumerate(right)
        )
        used: tuple[set[int], set[int]] = (set(), set())
        for _, _, i, j in distances:
            if i not in used[0] and j not in used[1]:
                used[0].add(i)
                used[1].add(j)
                pairs.append((left[i], right[j]))
    return pairs


def _weighted(network: Network) -> dict[tuple[str, int], Operation]:
    """The layers with weights by their paths, without what all begin with: a wrapper; and by how often they ran."""
    layers = [operation for operation in network.operations.values() if operation.weighted]
    paths = [operation.layer.split(".") for operation in layers]
    shared = 0
    while paths and all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    seen: Counter[str] = Counter()
    found = {}
    for path, operation in zip(paths, layers, strict=True):
        name = ".".join(path[shared:])
        seen[name] += 1
        found[name, seen[name]] = operation
    return found


def _alike(x: Operation, y: Operation) -> bool:
    return x.kind == y.kind and x.parameters["weight"].shape == y.parameters["weight"].shape


def _distance(x: Array, y: Array) -> float:
    """How unlike two weights are, whatever factor each output has: 0 to 1."""
    x, y = (one.reshape(len(one), -1).astype(np.float64) for one in (x, y))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return 1 - float(np.mean(np.abs((x * y).sum(1)) / np.where(lengths > 0, lengths, 1)))


def _tail(network: Network, head: str) -> list[Operation]:
    """The affine operations behind a layer, as long as nothing else takes what they take."""
    tail: list[Operation] = []
    while True:
        consumers = network.consumers(tail[-1].name if tail else head)
        if len(consumers) != 1 or consumers[0].kind not in AFFINE:
            return tail
        tail.append(consumers[0])


def _path(network: Network, place: Place, side: int) -> list[str]:
    """The operations of a network from the head of a place to its value."""
    if place.heads is None:
        return []
    name, found = (place.a, place.b)[side], []
    while name != place.heads[side]:
        found.append(name)
        name = network.operations[name].operands[0]
    return [*found, name][::-1]


def _source(network: Network, value: str) -> tuple[str, tuple[int, ...]]:
    """Where the numbers of a value were computed, and how many it has on each axis, whatever their order."""
    shape = tuple(sorted(_plain(network.shapes.get(value, ()))))
    while value in network.operations and network.operations[value].kind in STEPS:
        value = network.operations[value].operands[0]
    return value, shape


def _back(network: Network, value: str, stops: set[str]) -> tuple[list[str], list[str]]:
    """The operations that make a value from the places before it, and these places, each in the network's order."""
    made, reached, waiting = set(), set(), [value]
    while waiting:
        here = waiting.pop()
        if here in stops:
            reached.add(here)
        elif here not in made:
            made.add(here)
            waiting += network.operations[here].operands
    order = [INPUT, *network.operations] if len(made) + len(reached) > 1 else [*made, *reached]
    return sorted(made, key=order.index), sorted(reached, key=order.index)


def _copies(operation: Operation) -> bool:
    """Whether an operation hands on what it takes as it is."""
    return operation.kind == "identity" and operation.function in (
        "identity",
        "dropout",
        "contiguous",
        "clone",
        "detach",
    )


def _plain(shape: Shape) -> Shape:
    """A shape of one image without axes of size 1."""
    return tuple(size for size in shape[1:] if size != 1)


def _turned(a: Shape, b: Shape) -> bool:
    return len(a) == 4 and a != b and (tuple(a[axis] for axis in LAST) == b or tuple(a[axis] for axis in FIRST) == b)
