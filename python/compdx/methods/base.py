"""What the driver needs of a search method: a settings object that starts an ask/tell loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

if TYPE_CHECKING:
    import numpy as np

    from compdx.findings import Findings, Outcomes
    from compdx.model import Inputs
    from compdx.seeds import Seeds


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a loop has come since it was started or restored.

    ``ended`` seeds are those with no work left: ``found`` (effective and invalid), ``already_deviating`` (the pair
    deviates on the seed itself), ``exhausted`` (budget spent) and the rest, which ended as non-finite. ``iterations``
    counts the calls of ``tell``, ``queries`` the images that were scored for a chain. ``occupancy`` (0..1) is the share
    of slots times iterations in which a slot did a query. ``coverage`` is the share (0..1) of the compressed model's
    neurons that were positive on any image so far, for methods that look at neurons.
    """

    seeds: int
    ended: int
    found: int
    already_deviating: int
    exhausted: int
    queries: int
    iterations: int
    occupancy: float
    coverage: float | None = None


class Loop(Protocol):
    """A search under way. One ``ask`` is followed by one ``tell``, as long as ``active``."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(C, H, W)`` of an image."""

    @property
    def chains(self) -> int:
        """Number of slots: the batch size of every ``ask``. It never changes."""

    @property
    def active(self) -> bool:
        """Whether any seed still has work to do."""

    @property
    def progress(self) -> Progress:
        """Counts so far."""

    def ask(self) -> Any:
        """Return the next images, uint8 ``[chains, C, H, W]``, or the model input when started with ``inputs``.

        The array is a view that the next ``ask`` overwrites.
        """

    def tell(self, a: Any, b: Any) -> None:
        """Take the scores ``[chains, K]`` of the original and the compressed model on what ``ask`` returned."""

    def take(self) -> Outcomes:
        """Return the chains that ended since the last ``take``, in no particular order; the caller owns the arrays."""

    def findings(self) -> Findings:
        """Return everything found so far, for use without a driver."""

    def state(self) -> dict[str, np.ndarray]:
        """Return a checkpoint: every array that a restored loop needs, owned by the caller.

        Valid at any time. Between ``ask`` and ``tell`` it is the state before that ``ask``, which will be repeated.
        """


class Stepping(Loop, Protocol):
    """A loop whose `step` is one call: its ``ask`` always returns the same memory, which each ``step`` writes anew.

    After an ``ask``, ``step(a, b)`` does what ``tell(a, b)`` and the next ``ask`` do. It consists of ``launch``, the
    work itself, which on CUDA is queued and may be captured in a graph, and ``launched(1)``, which keeps the books.
    """

    def step(self, a: Any, b: Any) -> None:
        """Take the scores of both models on what the memory of ``ask`` held, and write the next images there."""

    def launch(self, a: Any, b: Any) -> None:
        """The work of `step` alone: on CUDA nothing is read, allocated or waited for."""

    def launched(self, iterations: int) -> None:
        """Count so many iterations whose work was queued, and take in which chains have ended as far as is known."""


def is_stepping(loop: Loop) -> TypeGuard[Stepping]:
    """Whether a loop has ``step``."""
    return hasattr(type(loop), "step")


class Method(Protocol):
    """The settings of a search method: a frozen dataclass with a field ``budget``, able to start a loop.

    One with a true attribute ``white_box`` is started with the pair itself, ``pair=``, for its gradients.
    """

    @property
    def name(self) -> str:
        """The name that `search(method=...)` knows it by."""

    def settings(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""

    def start(
        self,
        seeds: Seeds,
        *,
        chains: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        inputs: Inputs | None = None,
        outputs: tuple[str, str] = ("logits", "logits"),
        done: Iterable[int] | None = None,
        state: Mapping[str, np.ndarray] | None = None,
        threads: int | None = None,
    ) -> Loop:
        """Start a loop over ``seeds``, or restore one.

        ``done`` are identities of seeds that need no work. ``state`` is a checkpoint; chains in it whose seed is in
        ``done`` are dropped.

        ``threads`` are those of the loop's own work on the CPU and must not change what is found; the driver passes it
        only when it was asked for a number.
        """
