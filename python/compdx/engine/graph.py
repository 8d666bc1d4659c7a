"""The CUDA engine: many iterations as one CUDA graph, replayed without a word from the host in between."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from compdx.model import import_optional

if TYPE_CHECKING:
    from types import TracebackType

    from compdx.methods.base import Stepping
    from compdx.model import Pair

# By the values of a batch: how many iterations a graph has, and on how many streams the models run. Of small batches a
# graph needs many to last longer than its launch, and neither model fills the device. Long iterations hide the launch
# anyway, and fewer of them mean less work for nothing when the last chain has ended, a shorter wait after Ctrl-C, and
# ended chains that find room in the ring.
SIZES = ((1 << 20, 32, 2), (1 << 23, 16, 1))
LARGEST = (4, 1)
# PyTorch's advice: what libraries set up at a first call on a stream must not happen within a capture.
WARM_UPS = 3
# Replays that are queued at most: one that runs and one that waits, so that the device never does.
IN_FLIGHT = 2


class Graph:
    """Runs a loop on CUDA as a graph of several iterations: both models and the step of the chains.

    The first iterations run one by one and are part of the search, as warm-up. Then one is captured, ``unrolled``
    times in a row, and replayed from then on. Between replays the host looks at counters that have arrived, and waits
    only while two replays are queued. When the last chain has ended, what is still queued finds no work.

    As a context manager it makes its own stream the current one, so that what reads the loop inside the block is in
    order with its work.

    Args:
        pair: Models that can be captured: they wait for nothing, and queue the same work at every call.
        loop: The search, on the pair's device.
        strict: Raise where the iteration cannot be captured; else go on one by one, and say why in ``fallback``.
        cuda: ``torch.cuda``, or what stands in for it.

    Attributes:
        begun, cut, fallback: See `Eager`.
        unrolled, streams: Iterations in the graph, and streams the models run on.

    Raises:
        RuntimeError: In ``advance``, when ``strict``; it names the reason.
    """

    def __init__(self, pair: Pair, loop: Stepping, *, strict: bool, cuda: Any = None) -> None:
        self.begun, self.cut = 0, False
        self.fallback: str | None = None
        values = loop.chains * math.prod(loop.shape)
        sizes = (size[1:] for size in SIZES if values <= size[0])
        self.unrolled, self.streams = next(sizes, LARGEST)
        self._pair, self._loop, self._strict = pair, loop, strict
        self._cuda = import_optional("torch", "a search on CUDA").cuda if cuda is None else cuda
        self._stream = self._cuda.Stream(pair.device)
        self._other = self._cuda.Stream(pair.device) if self.streams == 2 else None
        self._current: AbstractContextManager[Any] | None = None
        self._models: tuple[Callable[[], Any], Callable[[], Any]] | None = None
        self._graph: Any = None
        self._replayed = [self._cuda.Event(blocking=True) for _ in range(IN_FLIGHT)]

    @property
    def description(self) -> str:
        """How the search runs, in a few words."""
        if self._graph is None:
            return "eager"
        return f"graph of {self.unrolled} iterations, {self.streams} stream{'s' if self.streams > 1 else ''}"

    def __enter__(self) -> Graph:
        self._stream.wait_stream(self._cuda.current_stream(self._pair.device))
        self._current = self._cuda.stream(self._stream)
        self._current.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current is not None:
            self._current.__exit__(kind, error, trace)
        if error is None:  # after one, waiting could raise another
            self._stream.synchronize()

    def advance(self) -> None:
        """Run one iteration, or all of the graph once it is captured."""
        if self._graph is None and self.fallback is None and self.begun == WARM_UPS:
            self._capture()
        if self._graph is None:
            self._iterate()
        else:
            self._replay()

    def _iterate(self) -> None:
        self.begun += 1
        a, b = self._score()
        self.cut = True
        self._loop.step(a, b)
        self.cut = False

    def _replay(self) -> None:
        done = self._replayed[0]
        done.synchronize()  # of the replay before the last; at once when there was none
        self._replayed = [*self._replayed[1:], done]
        self.begun += self.unrolled
        self._graph.replay()
        self._loop.launched(self.unrolled)
        done.record(self._stream)  # so that counters that were asked for have arrived, too

    def _bound(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        if self._models is None:
            self._models = self._pair.bind(self._loop.ask())
        return self._models

    def _score(self) -> tuple[Any, Any]:
        original, compressed = self._bound()
        if self._other is None:
            return self._pair.agree(original(), compressed())
        # The scores made on the other stream are used on this one; their memory goes back to the other stream, whose
        # next work comes after this stream's step.
        self._other.wait_stream(self._stream)
        with self._cuda.stream(self._other):
            b = compressed()
        a = original()
        self._stream.wait_stream(self._other)
        return self._pair.agree(a, b)

    def _capture(self) -> None:
        reason = self._waiting() or self._record()
        if reason is None:
            return
        if self._strict:
            msg = f"engine='graph': this search cannot be captured in a CUDA graph: {reason}"
            raise RuntimeError(msg)
        self.fallback = f"no CUDA graph: {reason}"

    def _waiting(self) -> str | None:
        """Why no graph is tried: a model that waits for the device would break the capture, which can leave the state
        of torch's random numbers broken."""
        for model, score in zip((self._pair.original, self._pair.compressed), self._bound(), strict=True):
            try:
                with self._error_on_wait():
                    score()
            except Exception as error:
                return f"model {model.name!r} waits for the device ({_first_line(error)})"
        return None

    def _record(self) -> str | None:
        """Capture the iterations; why not, when they cannot be."""
        graph, first = self._cuda.CUDAGraph(), None
        try:
            # Other threads of the process may do what they like meanwhile.
            with self._cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    for _ in range(self.unrolled):
                        self._loop.launch(*self._score())
                except Exception as error:
                    first = error  # leaving a broken capture raises an error of its own
                    raise
        except Exception as error:
            return _first_line(first or error)
        self._graph = graph
        return None

    @contextmanager
    def _error_on_wait(self) -> Iterator[None]:
        before = self._cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            self._cuda.set_sync_debug_mode("error")
            try:
                yield
            finally:
                self._cuda.set_sync_debug_mode(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
