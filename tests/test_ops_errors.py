"""What the operators refuse, by the argument's name and before any memory is touched; and whose memory they write."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import compdx
import compdx.ops as ops
from compdx import _core
from compdx.ops import backend as backends
from compdx.ops import operators
from compdx.ops.chains import BISECTION
from compdx.ops.checks import as_array

SHAPE = (2, 3, 5)
COUNT = 3
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
TABLE = np.random.default_rng(1).normal(size=(SHAPE[0], 256)).astype(np.float32)
NO_CUDA = (
    "PyTorch sees no CUDA device" if ops.build_info()["cuda_architectures"] else "this build of compdx has no CUDA"
)


class Foreign:
    """An array of a library that is neither NumPy nor PyTorch, on a device of the given DLPack type."""

    def __init__(self, array: np.ndarray, kind: int) -> None:
        self._array, self._kind = array, kind

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._kind, 0


def chains(*, count: Any = COUNT, device: Any = "cpu", threads: Any = 1, **changed: Any) -> ops.Chains:
    """A small search; what is changed goes to its rules or replaces one of its arrays."""
    arrays: dict[str, Any] = {"seeds": IMAGES, "identities": np.arange(COUNT), "queue": np.arange(COUNT)}
    arrays |= {name: changed.pop(name) for name in arrays if name in changed}
    rules = changed.pop("rules", None) or ops.Rules(**{"shape": SHAPE, "budget": 9, **changed})
    search = ops.Chains(
        rules,
        arrays["seeds"],
        identities=arrays["identities"],
        queue=arrays["queue"],
        count=count,
        device=device,
        threads=threads,
    )
    ops.refill(search)
    return search


def rules(**changed: Any) -> ops.Rules:
    return ops.Rules(**{"shape": SHAPE, **changed})


def apply(operator: Any = "box", images: Any = IMAGES, **how: Any) -> Any:
    return ops.apply(images, operator, **how)


def mutate(out: Any = None, table: Any = "fitting", dtype: Any = "uint8", **how: Any) -> None:
    search = chains()
    if isinstance(table, str):
        table = search.new_table(TABLE, dtype) if dtype in ("float32", "bfloat16", "float16") else None
    ops.mutate(search, np.zeros((COUNT, *SHAPE), np.uint8) if out is None else out, table=table, dtype=dtype, **how)


def judge(*calls: tuple[Any, Any], count: int = COUNT) -> None:
    search = chains(count=count)
    for a, b in calls:
        ops.mutate(search, search.new_input())
        ops.judge(search, a, b)


def start(**how: Any) -> Any:
    return compdx.MCMC(budget=5).start(compdx.Seeds(IMAGES), **how)


def restore(slots: Any = (0, 1), *, count: int = COUNT, **changed: Any) -> ops.Chains:
    search = chains(count=count)
    saved = {name: array for name, array in (chains().state() | changed).items() if array is not None}
    search.restore(saved, np.array(slots))
    return search


def scores(count: int = COUNT, classes: int = 4, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros((count, classes), dtype)


def zeros(dtype: Any = np.uint8, shape: tuple[int, ...] = (COUNT, *SHAPE)) -> np.ndarray:
    return np.zeros(shape, dtype)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def misaligned() -> np.ndarray:
    return np.zeros(4 * IMAGES.size + 1, np.uint8)[1:].view(np.float32).reshape(IMAGES.shape)


def tensor(dtype: str, shape: tuple[int, ...] = (COUNT, *SHAPE), **how: Any) -> Any:
    import torch

    return torch.zeros(shape, dtype=getattr(torch, dtype), **how)


def tell_before_ask() -> None:
    start().tell(scores(), scores())


Row = tuple[Callable[[], Any], type[Exception], str]

ROWS: dict[str, Row] = {
    # apply
    "apply-list": (lambda: apply(images=[[1]]), TypeError, "images: expected an array that speaks DLPack, got list"),
    "apply-dtype": (lambda: apply(images=scores()), TypeError, "images: expected uint8, got float32"),
    "apply-bfloat16": (lambda: apply(images=tensor("bfloat16")), TypeError, "images: expected an array that NumPy can"),
    "apply-rank": (lambda: apply(images=IMAGES[0]), ValueError, "images: expected shape [N, C, H, W], got (2, 3, 5)"),
    "apply-empty": (lambda: apply(images=IMAGES[:, :, :0]), ValueError, "images: expected images with at least one"),
    "apply-device": (lambda: apply(images=Foreign(IMAGES, 8)), TypeError, "images: expected an array on the CPU or on"),
    "apply-operator": (lambda: apply("blur"), ValueError, "operator: expected one of 'additive', "),
    "apply-operator-type": (lambda: apply(IMAGES), ValueError, "operator: expected one of 'additive', "),
    "apply-overflow": (lambda: apply(overflow="mod"), ValueError, "overflow: expected one of 'clip', 'wrap', got"),
    "apply-seed": (lambda: apply(seed=-1), ValueError, "seed: expected 0..18446744073709551615, got -1"),
    "apply-seed-type": (lambda: apply(seed=1.0), TypeError, "seed: expected an integer, got float"),
    "apply-size": (lambda: apply(size=6), ValueError, "size: expected one of 1, 2, 3, 4, 5 for 'box', got 6"),
    "apply-size-type": (lambda: apply(size=3.0), TypeError, "size: expected an integer, got float"),
    "apply-size-none": (lambda: apply("additive", size=3), ValueError, "this operator has no size"),
    "apply-skip": (lambda: apply(skip_identity="no"), TypeError, "skip_identity: expected True or False, got str"),
    "apply-linf": (lambda: apply(linf=256, origin=IMAGES), ValueError, "linf: expected 0..255, got 256"),
    "apply-linf-float": (lambda: apply(linf=2.5, origin=IMAGES), TypeError, "linf: expected an integer, got float"),
    "apply-linf-text": (lambda: apply(linf="a", origin=IMAGES), TypeError, "linf: expected an integer, got str"),
    "apply-no-origin": (lambda: apply(linf=2), ValueError, "origin: expected the seed images"),
    "apply-origin": (lambda: apply(linf=2, origin=IMAGES[:2]), ValueError, "origin: expected shape (3, 2, 3, 5) or 1"),
    "apply-origin-device": (
        lambda: apply(linf=2, origin=tensor("uint8", device="meta")),
        TypeError,
        "origin: expected an array that NumPy can read",
    ),
    "apply-index": (lambda: apply(index=1 << 56), ValueError, "index: expected 0..72057594037927935, got"),
    "apply-index-array": (lambda: apply(index=np.array([0, 1, -1])), ValueError, "index: expected values in 0.."),
    "apply-index-count": (lambda: apply(index=np.arange(4)), ValueError, "index: expected an integer or shape [3]"),
    "apply-index-device": (
        lambda: apply(index=tensor("int64", (COUNT,), device="meta")),
        TypeError,
        "index: expected integers in an array on the CPU",
    ),
    "apply-step": (lambda: apply(step=1.5), TypeError, "step: expected integers, got float64"),
    "apply-threads": (lambda: apply(threads=0), ValueError, "threads: expected 1..4096, got 0"),
    "apply-threads-type": (lambda: apply(threads="a"), TypeError, "threads: expected an integer, got str"),
    "apply-isa": (lambda: apply(isa="mmx"), ValueError, "isa: expected one of '"),
    "apply-isa-type": (lambda: apply(isa=3), ValueError, "isa: expected one of '"),
    # blend
    "blend-near": (lambda: ops.blend(IMAGES[0], IMAGES, 8), ValueError, "near: expected shape [N, C, H, W]"),
    "blend-far": (lambda: ops.blend(IMAGES, IMAGES[:2], 8), ValueError, "far: expected shape (3, 2, 3, 5) or 1"),
    "blend-weight": (lambda: ops.blend(IMAGES, IMAGES, 16), ValueError, "weight: expected 1..15, got 16"),
    "blend-weight-type": (
        lambda: ops.blend(IMAGES, IMAGES, 0.5),  # type: ignore[arg-type]
        TypeError,
        "weight: expected an integer, got float",
    ),
    "blend-seed": (lambda: ops.blend(IMAGES, IMAGES, 8, seed=-1), ValueError, "seed: expected 0..18446744073709551615"),
    # normalize
    "normalize-images": (lambda: ops.normalize("a", TABLE), TypeError, "images: expected an array that speaks DLPack"),
    "normalize-table": (lambda: ops.normalize(IMAGES, TABLE[:1]), ValueError, "table: expected shape (2, 256)"),
    "normalize-table-dtype": (
        lambda: ops.normalize(IMAGES, TABLE.astype(float)),
        TypeError,
        "table: expected float32, got float64",
    ),
    "normalize-table-list": (lambda: ops.normalize(IMAGES, [0.0]), TypeError, "table: expected an array that speaks"),
    "normalize-layout": (
        lambda: ops.normalize(IMAGES, TABLE, layout="X"),  # type: ignore[arg-type]
        ValueError,
        "layout: expected one of 'NCHW', 'NHWC', got 'X'",
    ),
    "normalize-dtype": (
        lambda: ops.normalize(IMAGES, TABLE, dtype="uint8"),  # type: ignore[arg-type]
        ValueError,
        "dtype: expected one of 'float32', 'bfloat16', 'float16', got 'uint8'",
    ),
    "normalize-threads": (
        lambda: ops.normalize(IMAGES, TABLE, threads=1.0),  # type: ignore[arg-type]
        TypeError,
        "threads: expected an integer, got float",
    ),
    # philox
    "philox-shape": (lambda: ops.philox([1], [1, 2, 3, 4]), ValueError, "key, counter: expected shapes [..., 2] and"),
    "philox-lead": (
        lambda: ops.philox(np.zeros((2, 2), int), np.zeros((3, 4), int)),
        ValueError,
        "key, counter: expected shapes [..., 2] and",
    ),
    "philox-key": (lambda: ops.philox([-1, 0], [0] * 4), ValueError, "key: expected values in 0..4294967295, got -1.."),
    "philox-counter": (lambda: ops.philox([1, 2], [0.5] * 4), TypeError, "counter: expected integers, got float64"),
    "philox-text": (lambda: ops.philox("ab", [0] * 4), TypeError, "key: expected integers, got <U2"),
    # Rules and MCMC
    "rules-shape": (lambda: rules(shape=[1, 2, 3]), TypeError, "shape: expected (C, H, W), got [1, 2, 3]"),
    "rules-extent": (lambda: rules(shape=(1, 0, 3)), ValueError, "shape: expected 1..268435456, got 0"),
    "rules-pixels": (lambda: rules(shape=(2, 1 << 14, 1 << 14)), ValueError, "shape: expected at most 2**28 values"),
    "rules-scores": (lambda: rules(original_scores="odds"), ValueError, "original_scores: expected one of 'logits', "),
    "rules-scores-b": (lambda: rules(compressed_scores=1), ValueError, "compressed_scores: expected one of 'logits', "),
    "rules-threshold-type": (lambda: rules(threshold="a"), TypeError, "threshold: expected a number, got str"),
    "rules-seed": (lambda: rules(seed=1 << 64), ValueError, "seed: expected 0..18446744073709551615, got"),
    "mcmc-budget": (lambda: compdx.MCMC(budget=0), ValueError, "budget: expected 1..2147483647, got 0"),
    "mcmc-budget-cap": (lambda: compdx.MCMC(budget=1 << 31), ValueError, "budget: expected 1..2147483647, got"),
    "mcmc-budget-type": (lambda: compdx.MCMC(budget=1e3), TypeError, "budget: expected an integer, got float"),
    "mcmc-selection": (lambda: compdx.MCMC(selection="best"), ValueError, "selection: expected one of 'metropolis', "),
    "mcmc-acceptance": (lambda: compdx.MCMC(acceptance="no"), ValueError, "acceptance: expected one of 'margin', "),
    "mcmc-coverage": (lambda: compdx.MCMC(coverage=None), ValueError, "coverage: expected one of 'hash', 'nearest'"),
    "mcmc-overflow": (lambda: compdx.MCMC(overflow="sat"), ValueError, "overflow: expected one of 'clip', 'wrap'"),
    "mcmc-grid": (lambda: compdx.MCMC(grid=32769), ValueError, "grid: expected 1..32768, got 32769"),
    "mcmc-threshold": (lambda: compdx.MCMC(threshold=float("nan")), ValueError, "threshold: expected a squared dist"),
    "mcmc-capacity": (lambda: compdx.MCMC(capacity=0), ValueError, "capacity: expected 1..16777216, got 0"),
    "mcmc-capacity-hash": (lambda: compdx.MCMC(capacity=12), ValueError, "capacity: expected a power of two for"),
    "mcmc-bisect": (lambda: compdx.MCMC(bisect=256), ValueError, "bisect: expected 0..255, got 256"),
    "mcmc-bisect-type": (lambda: compdx.MCMC(bisect=1.0), TypeError, "bisect: expected an integer, got float"),
    "mcmc-linf": (lambda: compdx.MCMC(linf=2.5), TypeError, "linf: expected an integer, got float"),
    "mcmc-skip": (lambda: compdx.MCMC(skip_identity=1), TypeError, "skip_identity: expected True or False, got int"),
    # Chains and MCMC.start
    "chains-rules": (lambda: chains(rules={"budget": 3}), TypeError, "rules: expected Rules, got dict"),
    "chains-seeds": (lambda: chains(seeds=IMAGES.tolist()), TypeError, "seeds: expected a NumPy array of uint8, got"),
    "chains-seeds-dtype": (lambda: chains(seeds=zeros(np.int8)), TypeError, "seeds: expected a NumPy array of uint8"),
    "chains-seeds-shape": (lambda: chains(seeds=IMAGES[0]), ValueError, "seeds: expected shape [S, 2, 3, 5], got"),
    "chains-identities": (lambda: chains(identities=[1]), ValueError, "identities: expected shape (3,), got (1,)"),
    "chains-identity": (lambda: chains(identities=[0, 1, 1 << 56]), ValueError, "identities: expected values in 0.."),
    "chains-queue": (lambda: chains(queue=np.array([0, 3])), ValueError, "queue: expected values in 0..2, got 0..3"),
    "chains-queue-type": (lambda: chains(queue=[0.0]), TypeError, "queue: expected integers, got float64"),
    "chains-queue-shape": (lambda: chains(queue=[[0]]), ValueError, "queue: expected shape [Q], got (1, 1)"),
    "chains-count": (lambda: chains(count=0), ValueError, "count: expected 1..16777216, got 0"),
    "chains-count-type": (lambda: chains(count=2.0), TypeError, "count: expected an integer, got float"),
    "chains-threads": (lambda: chains(threads="a"), TypeError, "threads: expected an integer, got str"),
    "chains-device": (lambda: chains(device=0), ValueError, "device: expected 'cpu' or 'cuda[:n]', got 0"),
    "chains-memory": (
        lambda: chains(budget=(1 << 31) - 1, count=1 << 20),
        ValueError,
        "lower count, budget or capacity",
    ),
    "chains-memory-nearest": (
        lambda: judge_nearest(capacity=1 << 24, classes=1 << 16),
        ValueError,
        "lower count, budget or capacity",
    ),
    "chains-table": (lambda: chains().new_table(TABLE, "int8"), ValueError, "dtype: expected one of 'float32', "),
    "chains-input": (lambda: chains().new_input(dtype="int8"), ValueError, "dtype: expected one of 'uint8', "),
    "start-chains": (lambda: start(chains=0), ValueError, "expected 1..16777216, got 0"),
    "start-chains-type": (lambda: start(chains="a"), TypeError, "expected an integer, got str"),
    "start-seed": (lambda: start(seed=-1), ValueError, "seed: expected 0..18446744073709551615, got -1"),
    "start-seed-type": (lambda: start(seed=None), TypeError, "seed: expected an integer, got NoneType"),
    "start-device": (lambda: start(device="tpu"), ValueError, "device: expected 'cpu' or 'cuda[:n]', got 'tpu'"),
    "start-device-index": (lambda: start(device="cuda:x"), ValueError, "device: expected 'cpu' or 'cuda[:n]', got"),
    "start-outputs": (lambda: start(outputs=("logits", "x")), ValueError, "compressed_scores: expected one of 'log"),
    "tell-before-ask": (tell_before_ask, RuntimeError, "tell: expected a call of ask before it"),
    "restore-missing": (lambda: restore(traces=None), ValueError, "state: expected what Chains.state returns, but it"),
    "restore-shape": (lambda: restore(traces=zeros(shape=(3, 8))), ValueError, "state['traces']: expected uint8 with"),
    "restore-records": (lambda: restore(chains=zeros(shape=(3, 64))), ValueError, "state['chains']: expected "),
    "restore-slots": (lambda: restore([0, 1, 2], count=2), ValueError, "slots: expected at most 2 rows of the saved"),
    "restore-slot": (lambda: restore([3]), ValueError, "slots: expected values in 0..2, got 3..3"),
    "restore-slots-type": (lambda: restore([0.0]), TypeError, "slots: expected integers, got float64"),
    # mutate
    "mutate-chains": (lambda: ops.mutate("a", zeros()), TypeError, "chains: expected Chains, got str"),  # type: ignore[arg-type]
    "mutate-list": (lambda: mutate(IMAGES.tolist()), TypeError, "out: expected an array that speaks DLPack, got list"),
    "mutate-dtype": (lambda: mutate(zeros(np.int8)), TypeError, "out: expected uint8, got int8"),
    "mutate-order": (lambda: mutate(zeros(">f4"), dtype="float32"), TypeError, "out: expected float32, got >f4"),
    "mutate-half": (
        lambda: mutate(zeros(np.float16), dtype="bfloat16"),
        TypeError,
        "out: expected uint16 or bfloat16, got float16",
    ),
    "mutate-rows": (lambda: mutate(zeros(shape=(4, *SHAPE))), ValueError, "out: expected shape (3, 2, 3, 5), got (4,"),
    "mutate-layout": (lambda: mutate(layout="NHWC"), ValueError, "out: expected shape (3, 3, 5, 2), got (3, 2, 3, 5)"),
    "mutate-layout-name": (lambda: mutate(layout="X"), ValueError, "layout: expected one of 'NCHW', 'NHWC', got 'X'"),
    "mutate-dtype-name": (lambda: mutate(dtype="int8"), ValueError, "dtype: expected one of 'uint8', 'float32', "),
    "mutate-negative": (lambda: mutate(zeros()[:, :, ::-1]), ValueError, "out: expected C-contiguous, aligned memory"),
    "mutate-fortran": (lambda: mutate(np.asfortranarray(zeros())), ValueError, "out: expected C-contiguous, aligned"),
    "mutate-misaligned": (
        lambda: mutate(misaligned(), dtype="float32"),
        ValueError,
        "out: expected C-contiguous, aligned memory",
    ),
    "mutate-read-only": (lambda: mutate(read_only(zeros())), ValueError, "out: expected writable memory, got a read"),
    "mutate-strided-tensor": (
        lambda: mutate(tensor("uint8", (*SHAPE, COUNT)).permute(3, 0, 1, 2)),
        ValueError,
        "out: expected a C-contiguous tensor, got strides",
    ),
    "mutate-device": (lambda: mutate(tensor("uint8", device="meta")), ValueError, "out: expected memory on cpu, got"),
    "mutate-no-table": (lambda: mutate(zeros("f4"), None, "float32"), ValueError, "table: expected what new_table"),
    "mutate-table": (lambda: mutate(zeros("f4"), TABLE[:1], "float32"), ValueError, "table: expected shape (2, 256)"),
    "mutate-table-dtype": (lambda: mutate(zeros("u2"), TABLE, "float16"), TypeError, "table: expected uint16, got flo"),
    "mutate-table-list": (
        lambda: mutate(zeros("f4"), [], "float32"),
        TypeError,
        "table: expected an array that speaks",
    ),
    "mutate-table-negative": (
        lambda: mutate(zeros("f4"), TABLE[:, ::-1], "float32"),
        ValueError,
        "table: expected C-contiguous, aligned memory",
    ),
    "mutate-table-uint8": (lambda: mutate(table=TABLE), ValueError, "table: expected None for 'uint8'"),
    # judge, harvest, refill
    "judge-chains": (lambda: ops.judge(None, scores(), scores()), TypeError, "chains: expected Chains, got NoneType"),  # type: ignore[arg-type]
    "judge-integers": (
        lambda: judge((scores(dtype=np.int64), scores())),
        TypeError,
        "original: expected floating scores, got int64",
    ),
    "judge-integer-tensor": (
        lambda: judge((scores(), tensor("int32", (COUNT, 4)))),
        TypeError,
        "compressed: expected floating scores, got int32",
    ),
    "judge-list": (lambda: judge((scores(), [[0.0] * 4] * 3)), TypeError, "compressed: expected an array that speaks"),
    "judge-rows": (lambda: judge((scores(2), scores(2))), ValueError, "original: expected scores [3, K] with K >= 2"),
    "judge-rank": (lambda: judge((scores()[0], scores())), ValueError, "original: expected scores [3, K] with K >= 2"),
    "judge-one-class": (
        lambda: judge((scores(classes=1), scores(classes=1))),
        ValueError,
        "original: expected scores [3, K] with K >= 2, got (3, 1)",
    ),
    "judge-unequal": (
        lambda: judge((scores(classes=4), scores(classes=5))),
        ValueError,
        "original, compressed: expected scores of one shape, got (3, 4) and (3, 5)",
    ),
    "judge-changing": (
        lambda: judge((scores(), scores()), (scores(classes=5), scores(classes=5))),
        ValueError,
        "original, compressed: expected 4 classes as before, got 5",
    ),
    "judge-device": (
        lambda: judge((scores(), tensor("float32", (COUNT, 4), device="meta"))),
        ValueError,
        "compressed: expected scores on cpu, got meta",
    ),
    "harvest-chains": (lambda: ops.harvest([]), TypeError, "chains: expected Chains, got list"),  # type: ignore[arg-type]
    "refill-chains": (lambda: ops.refill(3), TypeError, "chains: expected Chains, got int"),  # type: ignore[arg-type]
}


def judge_nearest(*, capacity: int, classes: int) -> None:
    search = chains(count=1, coverage="nearest", capacity=capacity)
    ops.judge(search, scores(1, classes), scores(1, classes))


@pytest.mark.parametrize("name", ROWS)
def test_refused_by_name(name: str) -> None:
    call, error, words = ROWS[name]
    with pytest.raises(error, match=re.escape(words)) as raised:
        call()
    assert raised.type is error


# Devices -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(ops.cuda_device_count() > 0, reason="there is a CUDA device")
@pytest.mark.parametrize("call", [lambda: start(device="cuda"), lambda: chains(device="cuda:0")])
def test_cuda_where_there_is_none(call: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=f"device 'cuda.*' was asked for, but {NO_CUDA}"):
        call()


def test_cuda_names_its_device_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What device is current, and how many there are, is pretended: no memory is touched."""
    import torch

    monkeypatch.setattr(backends, "build_info", lambda: {"cuda_architectures": "90"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert backends.backend_for("cuda").name == "cuda:2"
    assert backends.backend_for("cuda:1").name == "cuda:1"
    with pytest.raises(RuntimeError, match="'cuda:3' was asked for, but PyTorch sees 3"):
        backends.backend_for("cuda:3")


def test_cuda_needs_a_build_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "build_info", lambda: {"cuda_architectures": ""})
    with pytest.raises(RuntimeError, match="'cuda' was asked for, but this build of compdx has no CUDA kernels"):
        backends.backend_for("cuda")


def test_arrays_on_cuda_need_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ModuleNotFoundError, match=r'images: arrays on CUDA need PyTorch: pip install "compdx\[torch\]"'
    ):
        apply(images=Foreign(IMAGES, 2))


def test_origin_is_where_the_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "device_of", lambda array: "cuda:1" if len(array) == 1 else "cpu")
    with pytest.raises(ValueError, match="origin: expected device cpu, got cuda:1"):
        apply(linf=3, origin=IMAGES[:1])


def test_core_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "CHAIN_BYTES", 120)
    with pytest.raises(ImportError, match="reinstall compdx"):
        chains()


def test_devices_are_compared_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    search = chains()
    monkeypatch.setattr(search._backend, "name", "cpu:1")
    with pytest.raises(ValueError, match=r"original: expected scores on cpu:1, got cpu"):
        ops.judge(search, scores(), scores())
    with pytest.raises(ValueError, match=r"out: expected memory on cpu:1, got cpu"):
        ops.mutate(search, zeros())


def test_pinned_memory_is_memory_of_the_cpu() -> None:
    array = as_array("images", Foreign(IMAGES, 3))
    assert array.ctypes.data == IMAGES.ctypes.data
    np.testing.assert_array_equal(apply(images=Foreign(IMAGES, 3)), apply())


def test_restore_takes_what_state_returns() -> None:
    saved = chains().records
    assert restore([2, 0, 1], chains=saved).records.tobytes() == saved[[2, 0, 1]].tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("row", -1),
        ("row", COUNT),
        ("row", 2),  # the place of another seed
        ("seed_index", 2**40),
        ("status", ops.IDLE),
        ("status", ops.ENDED),
        ("current", 2),
        ("last_operator", 8),
        ("step", 9),
        ("reserved", 1),
    ],
)
def test_restore_refuses_records_that_native_code_must_not_follow(field: str, value: int) -> None:
    saved = chains().records
    saved[field][1] = value
    with pytest.raises(ValueError, match=re.escape("state['chains']: expected chains under way on these seeds, but 1")):
        restore([0, 1], chains=saved)
    restore([0, 2], chains=saved)


@pytest.mark.parametrize(("field", "value"), [("far", 0), ("far", 3), ("left", 13)])
def test_restore_refuses_bisections_that_native_code_must_not_follow(field: str, value: int) -> None:
    saved = chains().records
    bisection = saved["l2_squared"].view(BISECTION)
    bisection[field][1] = value
    saved["l2_squared"] = bisection.view(np.int64)
    with pytest.raises(ValueError, match=re.escape("state['chains']: expected chains under way on these seeds, but 1")):
        restore([0, 1], chains=saved)
    restore([0, 2], chains=saved)


def test_without_bisection_there_is_no_third_buffer() -> None:
    search = chains(bisect=0)
    saved = search.records
    assert (saved["l2_squared"].view(BISECTION)["far"] == 2).all()
    assert search.state()["images"].shape[0] == 2
    bisection = saved["l2_squared"].view(BISECTION)
    bisection["left"][1] = 1
    saved["l2_squared"] = bisection.view(np.int64)
    with pytest.raises(ValueError, match=re.escape("state['chains']: expected chains under way")):
        search.restore(search.state() | {"chains": saved}, np.array([0, 1]))


def test_start_refuses_a_checkpoint_of_other_seeds() -> None:
    state = compdx.MCMC().start(compdx.Seeds(IMAGES), chains=2).state()
    with pytest.raises(ValueError, match="state: expected chains of these seeds, got one of seed 0"):
        compdx.MCMC().start(compdx.Seeds(IMAGES, indices=[7, 8, 9]), state=state)


# Memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16", "float16"])
def test_mutate_writes_into_the_callers_memory(dtype: str, layout: Any) -> None:
    """The same bytes in NumPy arrays and PyTorch tensors, and not a byte around them."""
    import torch

    search = chains()
    table = None if dtype == "uint8" else search.new_table(TABLE, dtype)
    right = search.new_input(layout=layout, dtype=dtype)
    ops.mutate(search, right, table=table, layout=layout, dtype=dtype)
    assert right.any()

    own = torch.full((*right.shape,), 7, dtype=getattr(torch, dtype))
    address = own.data_ptr()
    ops.mutate(search, own, table=table, layout=layout, dtype=dtype)
    assert own.data_ptr() == address
    assert own.view(torch.uint8).numpy().tobytes() == right.tobytes()

    around = np.full(right.nbytes + 128, 0xA5, np.uint8)
    inside = around[64 : 64 + right.nbytes]
    for view in (inside.view(right.dtype).reshape(right.shape), torch.from_numpy(inside).view(own.dtype).view_as(own)):
        inside[:] = 0xA5
        ops.mutate(search, view, table=table, layout=layout, dtype=dtype)
        assert inside.tobytes() == right.tobytes()
        assert (around[:64] == 0xA5).all()
        assert (around[-64:] == 0xA5).all()


def test_mutate_takes_arrays_of_other_libraries() -> None:
    out = zeros()
    mutate(Foreign(out, 1))
    np.testing.assert_array_equal(out, IMAGES)


@pytest.mark.parametrize(
    "view",
    [
        lambda base: read_only(base.reshape(-1)[: IMAGES.size].reshape(IMAGES.shape)),
        lambda base: base[:, :, 2::-1],
        lambda base: base[:, :, :3][::-1],
        lambda base: base[:, :, ::2][:, :, :3],
        lambda base: np.broadcast_to(base[:1, :, :3], (COUNT, *SHAPE)),
    ],
    ids=["read-only", "upside-down", "backwards", "every-other-row", "one-row-for-all"],
)
def test_refused_memory_is_unchanged(view: Callable[[np.ndarray], np.ndarray]) -> None:
    base = np.full((COUNT, SHAPE[0], 6, SHAPE[2]), 0xA5, np.uint8)
    out = view(base)
    assert out.shape == (COUNT, *SHAPE)
    with pytest.raises(ValueError, match="out: expected"):
        mutate(out)
    assert (base == 0xA5).all()


def test_memory_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(backends.Host, "zeros", refuse)
    with pytest.raises(MemoryError, match=r"3 chains with a budget of 9 .* lower count, budget or capacity"):
        chains()
