"""Native core of compdx; use compdx.ops."""

from __future__ import annotations

_View = tuple[int, int]  # address, bytes

CHAIN_BYTES: int
COUNTER_BYTES: int

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

def build_info() -> dict[str, str]: ...
def available_isas() -> list[str]: ...
def philox(*, keys: _View, counters: _View, out: _View, count: int) -> None: ...
def cpu_mutate(slots: Slots, *, data: _View, table: _View, type: str, layout: str, threads: int, isa: str) -> None: ...
def cpu_judge(slots: Slots, *, original: _View, compressed: _View, classes: int, threads: int, isa: str) -> None: ...
def cpu_harvest(slots: Slots, *, consumed: int) -> None: ...
def cpu_refill(slots: Slots) -> None: ...
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
def cuda_device_count() -> int: ...
def cuda_mutate(slots: Slots, *, data: _View, table: _View, type: str, layout: str, stream: int) -> None: ...
def cuda_judge(slots: Slots, *, original: _View, compressed: _View, classes: int, stream: int) -> None: ...
def cuda_harvest(slots: Slots, *, consumed: int, stream: int) -> None: ...
def cuda_refill(slots: Slots, *, stream: int) -> None: ...
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
