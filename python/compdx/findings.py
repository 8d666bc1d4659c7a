"""Findings: the deviating images of a search with all that is known of them, as one table."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from compdx import ops
from compdx.pictures import TRAIL, Pictures, Trail, trails_to_array

if TYPE_CHECKING:
    from compdx.seeds import Seeds

KINDS = ("effective", "invalid", "seed", "non-finite", "exhausted")
EFFECTIVE, INVALID, SEED, NON_FINITE, EXHAUSTED = range(len(KINDS))
NON_FINITE_MODELS = (None, "original", "compressed", "both")  # by the two bits of Outcomes.non_finite

TRACE_OPERATOR = 0b0111
TRACE_ACCEPTED = 0b1000
TRACE_WEIGHT_SHIFT = 4

SCHEMA = pa.schema(
    {
        "seed_index": pa.int64(),
        "kind": pa.dictionary(pa.int8(), pa.string()),
        "step": pa.int32(),
        "queries": pa.int32(),
        "seed_label": pa.int32(),
        "original_label": pa.int32(),
        "compressed_label": pa.int32(),
        "original_confidence": pa.float64(),
        "compressed_confidence": pa.float64(),
        "l2": pa.float64(),
        "linf": pa.int16(),
        "operators": pa.list_(pa.string()),
        "operator_steps": pa.list_(pa.int32()),
        "operator_codes": pa.list_(pa.uint8()),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "sha256": pa.string(),
        "accepted": pa.int32(),
        "states": pa.int32(),
        "non_finite": pa.string(),
        "pictures": TRAIL,
    }
)

_COLUMNS: dict[str, type[np.generic]] = {
    "seed_index": np.int64,
    "kind": np.uint8,
    "step": np.uint32,
    "queries": np.uint32,
    "accepted": np.uint32,
    "states": np.uint32,
    "seed_label": np.int32,
    "original_label": np.int32,
    "compressed_label": np.int32,
    "original_confidence": np.float64,
    "compressed_confidence": np.float64,
    "non_finite": np.uint8,
    "l2_squared": np.int64,
    "linf": np.uint8,
}
_COLOUR = (3, 4)  # channel counts with a PNG mode of their own; the channels of others lie below one another
_GATHER_BYTES_LOG2 = 30  # an Arrow binary array holds less than 2^31 bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """The ends of M chains as columns, exhausted chains included, in no particular order.

    Attributes:
        seed_index: int64 ``[M]``, identity of the seed.
        kind: uint8 ``[M]``, code in `KINDS`.
        step: uint32 ``[M]``, number of the last mutant, 0 for the seed itself.
        queries: uint32 ``[M]``, evaluations of both models, that of the seed included.
        accepted: uint32 ``[M]``, accepted mutants.
        states: uint32 ``[M]``, novel output states that were seen.
        seed_label: int32 ``[M]``, the label that the search compares with; -1 unknown.
        original_label, compressed_label: int32 ``[M]``, labels of the last image; -1 unknown.
        original_confidence, compressed_confidence: float64 ``[M]``, 0..1; NaN unknown.
        non_finite: uint8 ``[M]``, bit 0 the original returned NaN or infinity, bit 1 the compressed did.
        l2_squared: int64 ``[M]``, squared distance of image and seed in grey levels.
        linf: uint8 ``[M]``, largest change of a value in grey levels.
        images: uint8 ``[M, C, H, W]``, the image a chain ended on; without meaning for exhausted chains.
        traces: M uint8 arrays of length ``step``; byte ``s - 1`` belongs to step ``s``: bits 0-2 operator
            (7: a blend), bit 3 accepted, bit 4 of an operator: its mutant became the far image, bits 4-7 of a blend:
            its weight. May be empty for exhausted chains and for methods without operators, which give trails.
        trails: The pictures of every chain, from methods that keep them; ``None`` from the others.

    Raises:
        TypeError: A column has another dtype.
        ValueError: A column has another shape, a kind has no name, a trace another length.
    """

    seed_index: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]
    step: npt.NDArray[np.uint32]
    queries: npt.NDArray[np.uint32]
    accepted: npt.NDArray[np.uint32]
    states: npt.NDArray[np.uint32]
    seed_label: npt.NDArray[np.int32]
    original_label: npt.NDArray[np.int32]
    compressed_label: npt.NDArray[np.int32]
    original_confidence: npt.NDArray[np.float64]
    compressed_confidence: npt.NDArray[np.float64]
    non_finite: npt.NDArray[np.uint8]
    l2_squared: npt.NDArray[np.int64]
    linf: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint8]
    traces: Sequence[npt.NDArray[np.uint8]]
    trails: Sequence[Trail | None] | None = None

    def __post_init__(self) -> None:
        count = len(self.traces)
        for name, dtype in _COLUMNS.items():
            _check_array(name, getattr(self, name), dtype, 1, count)
        _check_array("images", self.images, np.uint8, 4, count)
        if count and (self.kind >= len(KINDS)).any():
            msg = f"kind must be below {len(KINDS)}, got {self.kind.max()}"
            raise ValueError(msg)
        for row, trace in enumerate(self.traces):
            _check_array(f"traces[{row}]", trace, np.uint8, 1, None)
            may_be_empty = self.kind[row] == EXHAUSTED or self.trails is not None
            if len(trace) != self.step[row] and (len(trace) or not may_be_empty):
                msg = f"traces[{row}] must have a byte for each of the {self.step[row]} steps, got {len(trace)}"
                raise ValueError(msg)
        if self.trails is not None and len(self.trails) != count:
            msg = f"trails must be as many as traces, {count}, got {len(self.trails)}"
            raise ValueError(msg)

    def __len__(self) -> int:
        return len(self.traces)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @classmethod
    def empty(cls, shape: tuple[int, int, int]) -> Outcomes:
        """No outcomes of images ``(C, H, W)``."""
        columns: dict[str, Any] = {name: np.empty(0, dtype) for name, dtype in _COLUMNS.items()}
        return cls(**columns, images=np.empty((0, *shape), np.uint8), traces=[])

    @classmethod
    def concatenate(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """All outcomes of at least one part, in order.

        Raises:
            ValueError: There is no part, or images have different shapes.
        """
        shapes = {part.shape for part in parts}
        if len(shapes) != 1:
            msg = f"parts must be outcomes of images of one shape, got {sorted(shapes) or 'no part'}"
            raise ValueError(msg)
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_COLUMNS, "images")
        }
        trails = None
        if any(part.trails is not None for part in parts):
            trails = [trail for part in parts for trail in part.trails or [None] * len(part)]
        return cls(**columns, traces=[trace for part in parts for trace in part.traces], trails=trails)

    def select(self, rows: Any) -> Outcomes:
        """The outcomes at these rows: integers, a boolean mask or a slice."""
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in (*_COLUMNS, "images")}
        chosen = np.arange(len(self))[rows]
        trails = None if self.trails is None else [self.trails[row] for row in chosen]
        return Outcomes(**columns, traces=[self.traces[row] for row in chosen], trails=trails)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of a search.

    Attributes:
        seeds: Seeds that the search was given.
        found: Deviations that the search found (kinds ``effective`` and ``invalid``).
        already_deviating: Seeds on which the pair deviates as they are (kind ``seed``).
        exhausted: Chains that spent their budget without a deviation.
        queries: Evaluations of both models by the chains that ended.
        seconds: Time spent searching, resumed parts added up; NaN unknown.
        queries_per_second: ``queries / seconds``; NaN unknown.
        queries_per_finding: Queries of the chains that searched, all but the already deviating, for each one found;
            NaN when none was found.
        occupancy: Mean share of the slots at work, 0..1; NaN unknown.
        non_finite: Chains that ended because a model returned NaN or infinity.
        engine: How the iterations were run, and why not as a CUDA graph where there could have been one; None unknown.
    """

    seeds: int
    found: int
    already_deviating: int
    exhausted: int
    queries: int
    seconds: float
    queries_per_second: float
    queries_per_finding: float
    occupancy: float
    non_finite: int
    engine: str | None = None

    @classmethod
    def of(
        cls,
        ended: pa.Table,
        *,
        seeds: int,
        seconds: float = math.nan,
        occupancy: float = math.nan,
        engine: str | None = None,
    ) -> Summary:
        """The summary of a table of ended chains, exhausted ones included."""
        counts = np.bincount(_kind_codes(ended), minlength=len(KINDS))
        queries = ended["queries"].to_numpy().astype(np.int64)
        found = int(counts[EFFECTIVE] + counts[INVALID])
        searched = int(queries[_kind_codes(ended) != SEED].sum())
        total = int(queries.sum())
        return cls(
            seeds=seeds,
            found=found,
            already_deviating=int(counts[SEED]),
            exhausted=int(counts[EXHAUSTED]),
            queries=total,
            seconds=seconds,
            queries_per_second=total / seconds if seconds > 0 else math.nan,
            queries_per_finding=searched / found if found else math.nan,
            occupancy=occupancy,
            non_finite=int(counts[NON_FINITE]),
            engine=engine,
        )

    def to_json(self) -> dict[str, float | str | None]:
        """A dict for JSON: ``None`` where a figure is unknown, no ``engine`` where that is."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.engine is None:
            del values["engine"]
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Summary:
        """The inverse of `to_json`; keys of later versions are passed over."""
        values: dict[str, Any] = {field.name: document[field.name] for field in fields(cls) if field.name != "engine"}
        for name, value in values.items():
            if value is None:
                values[name] = math.nan
        return cls(**values, engine=document.get("engine"))


class Findings:
    """What a search found: a table with a row for each deviating image, sorted by ``seed_index``.

    Args:
        table: Ended chains with the columns of `SCHEMA`, in any order; exhausted ones may be among them. Where a seed
            occurs twice, the first row counts.
        settings: The header of the run, as in ``run.json``.
        summary: The figures of the run.
        shape: ``(C, H, W)`` of the images.

    Attributes:
        table: The findings, `pyarrow.Table`; the format page describes the columns.
        ended: The same with a row for each exhausted chain.
        exhausted: int64, seeds whose budget was spent without a deviation.
        settings, summary, shape: As given.
    """

    def __init__(
        self, table: pa.Table, *, settings: Mapping[str, Any], summary: Summary, shape: tuple[int, int, int]
    ) -> None:
        self.ended = one_row_a_seed(table)
        exhausted = _kind_codes(self.ended) == EXHAUSTED
        self.table = self.ended.filter(pa.array(~exhausted))
        self.exhausted: npt.NDArray[np.int64] = self.ended["seed_index"].to_numpy()[exhausted]
        self.settings = dict(settings)
        self.summary = summary
        self.shape = shape

    @classmethod
    def of(cls, outcomes: Outcomes, *, settings: Mapping[str, Any], seeds: int, occupancy: float) -> Findings:
        """The findings of a search without a driver: ended chains, out of so many seeds."""
        table = outcomes_to_table(outcomes, ops.TRACE_NAMES)
        summary = Summary.of(table, seeds=seeds, occupancy=occupancy)
        return cls(table, settings=settings, summary=summary, shape=outcomes.shape)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        *found, (_, exhausted) = self.kinds.items()
        kinds = ", ".join(f"{count} {kind}" for kind, count in found if count)
        return f"<Findings: {len(self)}{f' ({kinds})' if kinds else ''}, {exhausted} seeds exhausted>"

    @property
    def kinds(self) -> dict[str, int]:
        """How many seeds ended as each of `KINDS`, in that order; ``exhausted``, the last, is no finding."""
        counts = np.bincount(_kind_codes(self.ended), minlength=len(KINDS))
        return dict(zip(KINDS, counts.tolist(), strict=True))

    @cached_property
    def images(self) -> npt.NDArray[np.uint8]:
        """The deviating images, uint8 ``[M, C, H, W]``; decoded once, when first asked for.

        Raises:
            ValueError: A stored image cannot be decoded.
        """
        images = np.empty((len(self), *self.shape), dtype=np.uint8)
        for row, (index, data) in enumerate(self._stored()):
            images[row] = _decode_png(data, self.shape, index)
        return images

    @cached_property
    def pictures(self) -> Pictures | None:
        """Every picture of the run with its class, when the method keeps them (`Gradient`); else ``None``.

        Raises:
            ValueError: Stored pixels do not match their hash.
        """
        if self.ended["pictures"].null_count == self.ended.num_rows:
            return None
        return Pictures.of(
            self.ended["pictures"],
            seed_index=self.ended["seed_index"].to_numpy(),
            seed_label=self.ended["seed_label"].to_numpy(),
            already_deviating=_kind_codes(self.ended) == SEED,
            shape=self.shape,
        )

    def check(self) -> None:
        """Decode every stored image anew and compare it with its hash.

        Raises:
            ValueError: An image cannot be decoded or is not the one that was found; names the seed.
        """
        for row in range(len(self)):
            self.check_image(row)

    def check_image(self, row: int) -> npt.NDArray[np.uint8]:
        """Decode the stored image of a row of `table` anew and compare it with its hash; uint8 ``[C, H, W]``.

        Raises:
            IndexError: There is no such row.
            ValueError: As for `check`.
        """
        row = range(len(self))[row]
        index, stored, expected = (self.table[column][row].as_py() for column in ("seed_index", "image", "sha256"))
        image = _decode_png(stored and stored["bytes"], self.shape, index)
        found = _sha256(image)
        if found != expected:
            msg = f"the image of seed {index} must have the SHA-256 {expected}, got {found}"
            raise ValueError(msg)
        return image

    def replay(self, row: int, seeds: Seeds) -> npt.NDArray[np.uint8]:
        """Rebuild the image of a row from its seed by applying its operators again, uint8 ``[C, H, W]``.

        Args:
            row: Row of `table`.
            seeds: Seeds that hold the seed of this row.

        Raises:
            IndexError: There is no such row.
            ValueError: ``seeds`` do not hold the seed or have another shape, or the method has no operators.
        """
        row = range(len(self))[row]  # counts from the end when negative, raises beyond
        if seeds.shape != self.shape:
            msg = f"seeds must have the shape of the findings, {self.shape}, got {seeds.shape}"
            raise ValueError(msg)
        try:
            run_seed = self.settings["seed"]
            method = self.settings["method"]["settings"]
            how = {name: method[name] for name in ("overflow", "linf", "skip_identity")}
        except KeyError as error:
            msg = f"the settings of these findings must hold {error} for a replay"
            raise ValueError(msg) from error
        index, operators, steps, codes = (
            self.table[c][row].as_py() for c in ("seed_index", "operators", "operator_steps", "operator_codes")
        )
        image = current = far = origin = seeds.images[seeds.locate(index)]
        for name, step, code in zip(operators, steps, codes or [TRACE_ACCEPTED] * len(steps), strict=True):
            draw = {"seed": run_seed, "index": index, "step": step}
            if name == ops.TRACE_NAMES[-1]:
                image = ops.blend(current, far, code >> TRACE_WEIGHT_SHIFT, **draw)
            else:
                image = ops.apply(current, name, origin=origin, **draw, **how)
            current, far = (image, far) if code & TRACE_ACCEPTED else (current, image)
        return np.array(image[0])

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write a run directory that `load` reads.

        Raises:
            FileExistsError: The directory is not empty.
            StoreError: Something could not be written.
        """
        from compdx import store  # store needs this module

        store.write_run(directory, self)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, skip_corrupt: bool = False) -> Findings:
        """Read a run directory, finished or not.

        Args:
            directory: The run directory.
            skip_corrupt: Leave out parts that cannot be read instead of raising.

        Raises:
            FileNotFoundError: It is no run directory.
            StoreError: A file cannot be read; names it.
        """
        from compdx import store

        return store.read_run(directory, skip_corrupt=skip_corrupt).findings()

    def export_images(self, directory: str | os.PathLike[str]) -> None:
        """Write each image as ``seed-NNNNNN.png`` and the other columns as ``index.csv``.

        The directory is made when it does not exist; files of the same names are overwritten.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        columns = [name for name in SCHEMA.names if name not in ("image", "pictures")]
        with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *columns])
            for row, (index, data) in enumerate(self._stored()):
                # Not the stored path: a table from elsewhere could point anywhere.
                name = image_name(index)
                (folder / name).write_bytes(data)
                values = (self.table[column][row].as_py() for column in columns)
                writer.writerow([name, *(" ".join(map(str, v)) if isinstance(v, list) else v for v in values)])

    def show(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        seeds: Seeds | None = None,
        limit: int = 24,
        names: Sequence[str] | None = None,
    ) -> Image.Image:
        """The contact sheet: seed, mutant and their difference, with both labels and confidences.

        Args:
            path: Where to save it as well; the suffix chooses the format.
            seeds: Seeds that hold those of the findings; without them only the mutants are shown.
            limit: Show at most so many findings, those that the search found first of all.
            names: Class names; default those of ``seeds``.

        Returns:
            A `PIL.Image.Image`.

        Raises:
            ValueError: ``limit`` < 1, or ``seeds`` do not hold a seed.
        """
        from compdx.contact import contact_sheet

        sheet = contact_sheet(self, seeds=seeds, limit=limit, names=names)
        if path is not None:
            sheet.save(path)
        return sheet

    def _stored(self) -> list[tuple[int, bytes]]:
        indices = self.table["seed_index"].to_pylist()
        data = [value for chunk in self.table["image"].chunks for value in chunk.field("bytes").to_pylist()]
        return list(zip(indices, data, strict=True))


def image_name(index: int) -> str:
    """File name of the finding of a seed."""
    return f"seed-{index:06d}.png"


def outcomes_to_table(outcomes: Outcomes, operators: Sequence[str]) -> pa.Table:
    """The table of `SCHEMA` for these outcomes, a row for each, in their order; images become PNG.

    Args:
        outcomes: Ended chains.
        operators: Names of the operators, in the order of their codes in a trace.
    """
    found = outcomes.kind != EXHAUSTED
    steps = [_steps_to(trace) if f else np.empty(0, np.int64) for trace, f in zip(outcomes.traces, found, strict=True)]
    names = [
        [operators[code & TRACE_OPERATOR] for code in trace[kept - 1]]
        for trace, kept in zip(outcomes.traces, steps, strict=True)
    ]
    codes = [trace[kept - 1] for trace, kept in zip(outcomes.traces, steps, strict=True)]
    images = [
        {"bytes": _encode_png(image), "path": image_name(index)} if f else None
        for image, index, f in zip(outcomes.images, outcomes.seed_index.tolist(), found, strict=True)
    ]
    hashes = [_sha256(image) if f else None for image, f in zip(outcomes.images, found, strict=True)]
    columns: dict[str, Any] = {
        "seed_index": outcomes.seed_index,
        "kind": pa.DictionaryArray.from_arrays(outcomes.kind.astype(np.int8), list(KINDS)),
        "original_confidence": pa.array(outcomes.original_confidence, from_pandas=True),  # NaN becomes null
        "compressed_confidence": pa.array(outcomes.compressed_confidence, from_pandas=True),
        "l2": pa.array(np.sqrt(outcomes.l2_squared.astype(np.float64)) / 255.0, mask=~found),
        "linf": pa.array(outcomes.linf.astype(np.int16), mask=~found),
        "operators": names,
        "operator_steps": steps,
        "operator_codes": codes,
        "image": images,
        "sha256": hashes,
        "non_finite": [NON_FINITE_MODELS[bits & 3] for bits in outcomes.non_finite],
        "pictures": trails_to_array(outcomes.trails or [None] * len(outcomes)),
    }
    return pa.Table.from_arrays(
        [_column(columns.get(field.name, getattr(outcomes, field.name, None)), field.type) for field in SCHEMA],
        schema=SCHEMA,
    )


def one_row_a_seed(table: pa.Table) -> pa.Table:
    """The one table that these rows make, whatever their order and parts: sorted by seed, of each the first row.

    Args:
        table: Rows of `SCHEMA`; kinds may be plain strings.
    """
    table = table.select(SCHEMA.names)
    table = _gather(table, np.unique(table["seed_index"].to_numpy(), return_index=True)[1])
    kind = pa.DictionaryArray.from_arrays(_kind_codes(table).astype(np.int8), list(KINDS))
    table = table.set_column(table.schema.get_field_index("kind"), "kind", kind)
    return table.cast(SCHEMA).replace_schema_metadata(None)


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, type=kind)


def _check_array(name: str, value: Any, dtype: type[np.generic], rank: int, count: int | None) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        got = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        msg = f"{name} must be a NumPy array of {dtype.__name__}, got {got}"
        raise TypeError(msg)
    if value.ndim != rank or (count is not None and len(value) != count):
        msg = f"{name} must have rank {rank}{'' if count is None else f' and {count} rows'}, got shape {value.shape}"
        raise ValueError(msg)


def _steps_to(trace: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Numbers of the steps that lead to the last image: those whose mutant was kept, then the last, kept or not."""
    kept = np.flatnonzero(trace[:-1] > TRACE_OPERATOR) + 1  # of a rejected mutant, all other bits are 0
    return np.append(kept, len(trace)) if len(trace) else kept


def _kind_codes(table: pa.Table) -> npt.NDArray[np.int64]:
    column = table["kind"].cast(pa.string())
    return cast("npt.NDArray[np.int64]", pc.index_in(column, pa.array(KINDS)).to_numpy().astype(np.int64))


def _gather(table: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Table:
    """These rows of the table, in blocks: taken at once, their images would go into one array, which has a limit."""
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(table["image"], "bytes")), 0).to_numpy()
    block = np.cumsum(sizes[rows], dtype=np.int64) >> _GATHER_BYTES_LOG2
    pieces = []
    for chosen in np.split(rows, np.flatnonzero(np.diff(block)) + 1):
        mask = np.zeros(table.num_rows, dtype=bool)
        mask[chosen] = True
        pieces.append(table.filter(pa.array(mask)).take(pa.array(np.searchsorted(np.sort(chosen), chosen))))
    return pa.concat_tables(pieces)


def _sha256(image: npt.NDArray[np.uint8]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    channels, height, width = image.shape
    pixels = image.transpose(1, 2, 0) if channels in _COLOUR else image.reshape(channels * height, width)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _decode_png(data: bytes | None, shape: tuple[int, int, int], index: int) -> npt.NDArray[np.uint8]:
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(data or b""), formats=("PNG",)) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        msg = f"the image of seed {index} cannot be decoded: {error}"
        raise ValueError(msg) from error
    expected = (height, width, channels) if channels in _COLOUR else (channels * height, width)
    if pixels.dtype != np.uint8 or pixels.shape != expected:
        msg = f"the image of seed {index} must decode to uint8 {expected}, got {pixels.dtype} {pixels.shape}"
        raise ValueError(msg)
    return pixels.transpose(2, 0, 1) if channels in _COLOUR else pixels.reshape(shape)
