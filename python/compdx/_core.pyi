"""Native core of compdx; use compdx.ops."""

from __future__ import annotations

_View = tuple[int, int]  # address, bytes

_Rows = tuple[_View, int, list[int]]  # of one model: memory, from one row to the next, strides of a row, in elements
_Layer = tuple[list[int], list[_Rows], _View]  # extents of a row, one model or two, marks

CHAIN_BYTES: int
COUNTER_BYTES: int
MAX_AXES: int
MAX_LAYERS: int
MAX_TAPS: int

class Rules:
    def __init__(
        self,
        *,
        seed: int,
        shape: tuple[int, int, int],
        budget: int,
        overflow: str,
        linf: int,
        skip_identity: bool,
        selection: str,
        acceptance: str,
        bisect: int,
        coverage: str,
        grid: int,
        threshold_q30: int,
        capacity: int,
        original_scores: str,
        compressed_scores: str,
    ) -> None: ...

class Slots:
    def __init__(
        self,
        *,
        rules: Rules,
        count: int,
        pitch: int,
        chains: _View,
        images: _View,
        traces: _View,
        coverage: _View,
        counters: _View,
        seeds: _View,
        identities: _View,
        seed_count: int,
        queue: _View,
        queue_length: int,
        ring_capacity: int,
        ring_chains: _View,
        ring_images: _View,
        ring_traces: _View,
    ) -> None: ...

class Layers:
    def __init__(self, *, rows: int, layers: list[_Layer]) -> None: ...
    def to_bytes(self) -> bytes: ...
    def place(self, memory: _View) -> None: ...

class Convolution:
    def __init__(
        self,
        *,
        delta: tuple[int, int, int, int],
        weight: tuple[int, int, int, int],
        output: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None: ...

def build_info() -> dict[str, str]: ...
def available_isas() -> list[str]: ...
def philox(*, keys: _View, counters: _View, out: _View, count: int) -> None: ...
def cpu_mutate(slots: Slots, *, data: _View, table: _View, type: str, layout: str, threads: int, isa: str) -> None: ...
def cpu_judge(slots: Slots, *, original: _View, compressed: _View, classes: int, threads: int, isa: str) -> None: ...
def cpu_harvest(slots: Slots) -> None: ...
def cpu_refill(slots: Slots) -> None: ...
def cpu_step(
    slots: Slots,
    *,
    original: _View,
    compressed: _View,
    classes: int,
    data: _View,
    table: _View,
    type: str,
    layout: str,
    threads: int,
    isa: str,
) -> None: ...
def cpu_apply(
    *,
    operator: str,
    size: int,
    seed: int,
    shape: tuple[int, int, int],
    overflow: str,
    linf: int,
    skip_identity: bool,
    count: int,
    images: _View,
    indices: _View,
    steps: _View,
    origins: _View,
    origin_count: int,
    out: _View,
    threads: int,
    isa: str,
) -> None: ...
def cpu_normalize(
    *,
    images: _View,
    count: int,
    shape: tuple[int, int, int],
    data: _View,
    table: _View,
    type: str,
    layout: str,
    threads: int,
    isa: str,
) -> None: ...
def cpu_verdicts(
    *,
    original: _View,
    compressed: _View,
    count: int,
    classes: int,
    original_scores: str,
    compressed_scores: str,
    labels: _View,
    confidences: _View,
    non_finite: _View,
    threads: int,
    isa: str,
) -> None: ...
def cpu_descend(
    *,
    shape: tuple[int, int, int],
    step: float,
    project: bool,
    lattice: bool,
    table: _View,
    scale: _View,
    bound: _View,
    total: _View,
    count: int,
    active: _View,
    state: _View,
    gradient: _View,
    origin: _View,
    picture: _View,
    l2_squared: _View,
    linf: _View,
    threads: int,
    isa: str,
) -> None: ...
def cpu_select_neurons(
    layers: Layers,
    *,
    seed: int,
    trials: int,
    identities: _View,
    steps: _View,
    active: _View,
    layer: _View,
    position: _View,
    threads: int,
    isa: str,
) -> None: ...
def cpu_cover(layers: Layers, *, active: _View, threads: int, isa: str) -> None: ...
def cpu_contributions(
    convolution: Convolution,
    *,
    epsilon: float,
    beta: float,
    delta: _View,
    weight: _View,
    sign: _View,
    inputs: _View,
    signed_sum: _View,
    absolute: _View,
    samples: _View,
    threads: int,
    isa: str,
) -> None: ...
def cuda_device_count() -> int: ...
def cuda_mutate(slots: Slots, *, data: _View, table: _View, type: str, layout: str, stream: int) -> None: ...
def cuda_judge(slots: Slots, *, original: _View, compressed: _View, classes: int, stream: int) -> None: ...
def cuda_harvest(slots: Slots, *, stream: int) -> None: ...
def cuda_refill(slots: Slots, *, stream: int) -> None: ...
def cuda_step(
    slots: Slots,
    *,
    original: _View,
    compressed: _View,
    classes: int,
    data: _View,
    table: _View,
    type: str,
    layout: str,
    threads: int = 0,
    stream: int,
) -> None: ...
def cuda_apply(
    *,
    operator: str,
    size: int,
    seed: int,
    shape: tuple[int, int, int],
    overflow: str,
    linf: int,
    skip_identity: bool,
    count: int,
    images: _View,
    indices: _View,
    steps: _View,
    origins: _View,
    origin_count: int,
    out: _View,
    stream: int,
) -> None: ...
def cuda_normalize(
    *,
    images: _View,
    count: int,
    shape: tuple[int, int, int],
    data: _View,
    table: _View,
    type: str,
    layout: str,
    stream: int,
) -> None: ...
def cuda_verdicts(
    *,
    original: _View,
    compressed: _View,
    count: int,
    classes: int,
    original_scores: str,
    compressed_scores: str,
    labels: _View,
    confidences: _View,
    non_finite: _View,
    stream: int,
) -> None: ...
def cuda_descend(
    *,
    shape: tuple[int, int, int],
    step: float,
    project: bool,
    lattice: bool,
    table: _View,
    scale: _View,
    bound: _View,
    total: _View,
    count: int,
    active: _View,
    state: _View,
    gradient: _View,
    origin: _View,
    picture: _View,
    l2_squared: _View,
    linf: _View,
    stream: int,
) -> None: ...
def cuda_select_neurons(
    layers: Layers,
    *,
    seed: int,
    trials: int,
    identities: _View,
    steps: _View,
    active: _View,
    layer: _View,
    position: _View,
    stream: int,
) -> None: ...
def cuda_cover(layers: Layers, *, active: _View, stream: int) -> None: ...
def cuda_contributions(
    convolution: Convolution,
    *,
    epsilon: float,
    beta: float,
    delta: _View,
    weight: _View,
    sign: _View,
    inputs: _View,
    signed_sum: _View,
    absolute: _View,
    samples: _View,
    stream: int,
) -> None: ...
