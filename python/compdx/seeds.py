"""Seeds: the uint8 images that a search starts from, with their labels and identities."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class", "class_id")
INDEX_LIMIT = 1 << 56  # the random number generator has 56 bits for the identity of a seed
LABEL_LIMIT = 1 << 31

_CPU_DEVICES = (1, 3)  # DLPack: kDLCPU, kDLCUDAHost
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_DECODE_BLOCK = 64


class Seeds:
    """A set of seed images with optional labels; each seed keeps its identity in every selection.

    Args:
        images: uint8 ``[N, C, H, W]``, N >= 1: NumPy, or any DLPack array on the CPU (a torch tensor, for one). Taken
            without a copy when it is contiguous, so do not write to it afterwards.
        labels: Integers ``[N]``, 0 or greater, -1 where a label is unknown; ``None`` when there are no labels.
        indices: The identities, integers ``[N]``, unique, 0 <= index < 2**56; default ``0..N-1``. Randomness of a
            search depends on the identity of a seed, never on its row.
        source: Where the images come from, for people.
        names: Class names; label ``k`` is called ``names[k]``.

    Raises:
        TypeError: An argument is no array, or its dtype is wrong.
        ValueError: A shape, a label or an identity is wrong.
    """

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        *,
        indices: Any = None,
        source: str = "",
        names: Sequence[str] | None = None,
    ) -> None:
        self._images = _check_images(images)
        count = len(self._images)
        self._labels = None if labels is None else _check_integers("labels", labels, count, -1, LABEL_LIMIT)
        self._indices = (
            np.arange(count, dtype=np.int64)
            if indices is None
            else _check_integers("indices", indices, count, 0, INDEX_LIMIT)
        )
        values, counts = np.unique(self._indices, return_counts=True)
        if len(values) != count:
            msg = f"indices must be unique, got {values[counts > 1][0]} more than once"
            raise ValueError(msg)
        self._source = source
        self._names = None if names is None else tuple(names)
        if self._names is not None and self._labels is not None and self._labels.max() >= len(self._names):
            msg = f"names must name every label, got {len(self._names)} names and the label {self._labels.max()}"
            raise ValueError(msg)

    @classmethod
    def of(cls, seeds: Any) -> Seeds:
        """``seeds`` themselves, or the seeds of a uint8 array ``[N, C, H, W]``.

        Raises:
            TypeError, ValueError: They are neither.
        """
        if isinstance(seeds, Seeds):
            return seeds
        if not isinstance(seeds, np.ndarray) and not hasattr(seeds, "__dlpack__"):
            msg = f"seeds must be compdx.Seeds or a uint8 array [N, C, H, W], got {type(seeds).__name__}"
            raise TypeError(msg)
        return cls(_check_images(seeds, "seeds"))

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """The images, uint8 ``[N, C, H, W]``, contiguous."""
        return self._images

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The labels, int64 ``[N]``, -1 where unknown; ``None`` without labels."""
        return self._labels

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """The identities, int64 ``[N]``."""
        return self._indices

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names, where the source knows them."""
        return self._names

    @property
    def source(self) -> str:
        """Where the images come from, for people."""
        return self._source

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        _, channels, height, width = self._images.shape
        return channels, height, width

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of shape, identities and bytes; labels and names do not count."""
        digest = hashlib.sha256(np.array(self._images.shape, "<i8").tobytes())
        digest.update(self._indices.astype("<i8").tobytes())
        digest.update(self._images.reshape(-1).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        channels, height, width = self.shape
        labelled = "without labels" if self._labels is None else "with labels"
        origin = f" from {self._source}" if self._source else ""
        return f"<Seeds: {len(self)} images {channels}x{height}x{width} {labelled}{origin}>"

    def select(self, rows: Any) -> Seeds:
        """The seeds at these rows (integers, a boolean mask or a slice), with the identities they have here."""
        return Seeds(
            self._images[rows],
            None if self._labels is None else self._labels[rows],
            indices=self._indices[rows],
            source=self._source,
            names=self._names,
        )

    def locate(self, indices: Any) -> npt.NDArray[np.int64]:
        """The rows of these identities, int64, in their order.

        Raises:
            ValueError: An identity is not in the set.
        """
        wanted = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        order = np.argsort(self._indices)
        places = np.minimum(np.searchsorted(self._indices, wanted, sorter=order), len(self) - 1)
        rows = order[places]
        missing = wanted[self._indices[rows] != wanted]
        if len(missing):
            msg = f"seeds must hold every seed asked for, but seed {missing[0]} is not among its {len(self)}"
            raise ValueError(msg)
        return rows

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], *, size: tuple[int, int] | None = None) -> Seeds:
        """Every image below a folder (png, jpg, jpeg, bmp, webp), in sorted order of their paths.

        When all images lie exactly one level down, the sub-folders are classes: their names in sorted order are
        ``names`` and their numbers are the labels. The images have one channel when all of them are greyscale, else
        three; alpha is dropped and orientation tags are not applied. Hidden files and folders are passed over.

        Args:
            path: The folder.
            size: ``(H, W)`` to resize to (bilinear); needed when the sizes differ.

        Raises:
            FileNotFoundError, NotADirectoryError: There is no such folder.
            ValueError: No image there, an unreadable one, more than 8 bits a channel, several sizes without ``size``.
        """
        if size is not None:
            _check_size(size)
        folder = Path(path)
        if not folder.exists():
            msg = f"path must be a folder of images, but {folder} does not exist"
            raise FileNotFoundError(msg)
        if not folder.is_dir():
            msg = f"path must be a folder of images, but {folder} is a file"
            raise NotADirectoryError(msg)
        parts = sorted(
            file.relative_to(folder).parts
            for file in folder.rglob("*")
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        )
        parts = [p for p in parts if not any(part.startswith(".") for part in p)]
        if not parts:
            msg = f"path must hold images ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}), found none below {folder}"
            raise ValueError(msg)
        files = [folder.joinpath(*p) for p in parts]
        images = _decode([(str(file), file) for file in files], size)
        if any(len(p) != 2 for p in parts):
            return cls(images, source=str(folder))
        names = sorted({p[0] for p in parts})
        number = {name: k for k, name in enumerate(names)}
        return cls(images, [number[p[0]] for p in parts], source=str(folder), names=names)

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        limit: int | None = None,
    ) -> Seeds:
        """Encoded images in Parquet: the layout of Hugging Face data sets, or the run directory of an earlier search.

        The image column is ``struct<bytes, path>`` or plain binary. Class names come from the ``huggingface`` metadata
        where it has them. Of a run directory the found images are read, with the identity and the label of their seeds.

        Args:
            path: A file, several files in their order, a directory of ``*.parquet``, or a run directory.
            image_column: Its name; not needed when exactly one column can be it.
            label_column: Its name, an integer column; default: the first of label, labels, fine_label, target, class,
                class_id that is there.
            limit: Take only the first so many rows.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: No Parquet, no or several possible image columns, an unreadable image, several sizes.
        """
        if limit is not None and limit < 1:
            msg = f"limit must be at least 1, got {limit}"
            raise ValueError(msg)
        files = _parquet_files(path)
        schema = _open_parquet(files[0]).schema_arrow
        metadata = schema.metadata or {}
        ours = b"compdx.format" in metadata
        image_column = _image_column(schema, image_column, files[0])
        label_column = "seed_label" if ours and label_column is None else _label_column(schema, label_column, files[0])
        columns = [c for c in (image_column, label_column, "seed_index" if ours else None) if c is not None]

        rows: list[tuple[str, bytes]] = []
        labels: list[int] = []
        indices: list[int] = []
        for file, batch in _batches(files, columns):
            images = batch.column(image_column)
            values = (images.field("bytes") if pa.types.is_struct(images.type) else images).to_pylist()
            kept = []
            for row, value in enumerate(values):
                if value is None and not ours:
                    msg = f"{file}: an entry of column {image_column!r} holds no image bytes (near image {len(rows)})"
                    raise ValueError(msg)
                if value is not None:  # else a chain that found nothing
                    rows.append((f"{file}: image {len(rows)}", value))
                    kept.append(row)
            chosen = pa.array(kept, pa.int64())
            if label_column is not None:
                labels += batch.column(label_column).fill_null(-1).take(chosen).to_pylist()
            if ours:
                indices += batch.column("seed_index").take(chosen).to_pylist()
            if limit is not None and not ours and len(rows) >= limit:
                break
        # A run that was killed may hold a seed twice: the first one counts, as it does when the run itself is read.
        first = (np.unique(indices, return_index=True)[1] if ours else np.arange(len(rows)))[:limit]
        if not len(first):
            msg = f"path must hold at least one image, found none in column {image_column!r} of {files[0]}"
            raise ValueError(msg)
        decoded = _decode([rows[k] for k in first], None, shape=_stored_shape(metadata))
        known = np.array(labels, dtype=np.int64)[first] if labels else None
        if ours and known is not None and (known < 0).any():
            known = None
        return cls(
            decoded,
            known,
            indices=np.array(indices, dtype=np.int64)[first] if ours else None,
            source=str(path) if isinstance(path, (str, os.PathLike)) else str(files[0]),
            names=_class_names(metadata, label_column),
        )

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str], *, images: str = "images", labels: str | None = "labels") -> Seeds:
        """Arrays of an ``.npz`` file; nothing pickled is ever loaded.

        Args:
            path: The file.
            images: Name of the array with the images, uint8 ``[N, C, H, W]``.
            labels: Name of the array with the labels; the default may be absent; ``None`` reads no labels.

        Raises:
            FileNotFoundError: There is no such file.
            TypeError, ValueError: No ``.npz``, no such array, or not what `Seeds` takes.
        """
        file = Path(path)
        if not file.is_file():
            msg = f"path must be an .npz file, but there is no file {file}"
            raise FileNotFoundError(msg)
        with file.open("rb") as stream:
            try:
                archive = np.load(stream, allow_pickle=False)
            except Exception as error:  # NumPy and zipfile raise many kinds on a damaged file
                msg = f"{file}: not a readable .npz file: {error}"
                raise ValueError(msg) from error
            if not isinstance(archive, np.lib.npyio.NpzFile):
                msg = f"{file}: not an .npz file but a single array; save it with np.savez(path, images=...)"
                raise ValueError(msg)
            for argument, name in (("images", images), ("labels", labels)):
                if name is not None and name not in archive.files and (argument, name) != ("labels", "labels"):
                    msg = f"{argument} must name an array of {file}, got {name!r}; it has {', '.join(archive.files)}"
                    raise ValueError(msg)
            try:
                arrays = [archive[name] if name in archive.files else None for name in (images, labels)]
            except Exception as error:  # damaged, or an object array, which only pickle could read
                msg = f"{file}: an array cannot be read: {error}"
                raise ValueError(msg) from error
        return cls(*arrays, source=str(file))


def load(path: str | os.PathLike[str]) -> Seeds:
    """Seeds from what the path is: a folder of images, a directory of Parquet, a ``.parquet`` or an ``.npz`` file.

    Raises:
        FileNotFoundError: There is no such path.
        ValueError: It is none of these, or cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        parquet = any(place.glob("*.parquet")) or any(place.glob("parts/*.parquet"))
        return Seeds.from_parquet(place) if parquet else Seeds.from_folder(place)
    if not place.exists():
        msg = f"path must be a folder, a .parquet or an .npz file, but {place} does not exist"
        raise FileNotFoundError(msg)
    readers: dict[str, Callable[[Path], Seeds]] = {".npz": Seeds.from_npz, ".parquet": Seeds.from_parquet}
    if place.suffix.lower() not in readers:
        msg = f"path must be a folder, a .parquet or an .npz file, got {place}"
        raise ValueError(msg)
    return readers[place.suffix.lower()](place)


def _as_array(name: str, value: Any) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        msg = f"{name} must be an array (NumPy, or one that speaks DLPack), got {type(value).__name__}"
        raise TypeError(msg)
    if value.__dlpack_device__()[0] not in _CPU_DEVICES:
        msg = f"{name} must be on the CPU, got an array on {getattr(value, 'device', 'another device')}; copy it first"
        raise ValueError(msg)
    return np.from_dlpack(value)


def _check_images(images: Any, name: str = "images") -> npt.NDArray[np.uint8]:
    array = _as_array(name, images)
    if array.dtype != np.uint8:
        hint = "; scale to 0..255, round and convert" if array.dtype.kind == "f" else ""
        msg = f"{name} must have dtype uint8, got {array.dtype}{hint}"
        raise TypeError(msg)
    shape = array.shape
    if array.ndim == 3:
        msg = f"{name} must have rank 4 [N, C, H, W], got shape {shape}; if this is [N, H, W], pass {name}[:, None]"
        raise ValueError(msg)
    if array.ndim != 4 or 0 in shape[1:]:
        msg = f"{name} must have rank 4 [N, C, H, W] and no empty axis, got shape {shape}"
        raise ValueError(msg)
    if shape[0] < 1:
        msg = f"{name} must hold at least one image, got shape {shape}"
        raise ValueError(msg)
    if shape[3] in (1, 3, 4) and shape[1] > 4 and shape[2] > 4:
        hint = f"which looks like [N, H, W, C]; pass {name}.transpose(0, 3, 1, 2)"
        msg = f"{name} must be [N, C, H, W], got shape {shape}, {hint}"
        raise ValueError(msg)
    return np.ascontiguousarray(array)


def _check_integers(name: str, values: Any, count: int, low: int, limit: int) -> npt.NDArray[np.int64]:
    array = np.asarray(values) if isinstance(values, (list, tuple, range)) else _as_array(name, values)
    if array.dtype.kind not in "iu":
        msg = f"{name} must be integers, got dtype {array.dtype}"
        raise TypeError(msg)
    if array.shape != (count,):
        msg = f"{name} must have shape ({count},), one for each image, got {array.shape}"
        raise ValueError(msg)
    if int(array.min()) < low or int(array.max()) >= limit:
        msg = f"{name} must be in {low}..{limit - 1}, got {array.min()}..{array.max()}"
        raise ValueError(msg)
    return array.astype(np.int64)


def _check_size(size: Any) -> None:
    if not isinstance(size, (tuple, list)) or len(size) != 2 or not all(isinstance(n, int) for n in size):
        msg = f"size must be (H, W), two integers, got {size!r}"
        raise TypeError(msg)
    if min(size) < 1:
        msg = f"size must be (H, W), both at least 1, got {size}"
        raise ValueError(msg)


def _open_image(name: str, source: Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except _DECODE_ERRORS as error:
        msg = f"{name}: not a readable image: {error}"
        raise ValueError(msg) from error


def _decode(
    sources: Sequence[tuple[str, Path | bytes]],
    size: tuple[int, int] | None,
    shape: tuple[int, int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode named images to uint8 ``[N, C, H, W]``: first all headers, for one mode and one size, then the pixels.

    ``shape`` is that of images stored by compdx, whose channels lie below one another where PNG has no mode for them.
    """
    first_size: tuple[int, int] | None = None
    grey = True
    for name, source in sources:
        with _open_image(name, source) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                msg = f"{name}: images must have 8 bits a channel, got mode {image.mode}; convert it first"
                raise ValueError(msg)
            first_size = first_size or image.size
            if size is None and image.size != first_size:
                one, other = (f"{s[1]}x{s[0]}" for s in (first_size, image.size))
                msg = f"images must have one size, but {sources[0][0]} is {one} and {name} is {other}; give size=(H, W)"
                raise ValueError(msg)
            grey = grey and image.mode in ("1", "L")
    if first_size is None:
        msg = "no image to decode"
        raise ValueError(msg)
    mode = "L" if grey else "RGBA" if shape is not None and shape[0] == 4 else "RGB"
    width, height = first_size if size is None else (size[1], size[0])
    channels = len(mode) if mode != "L" else 1
    pixels = np.empty((len(sources), height, width, channels), dtype=np.uint8)

    def decode(start: int) -> None:
        for row in range(start, min(start + _DECODE_BLOCK, len(sources))):
            name, source = sources[row]
            with _open_image(name, source) as image:
                try:
                    if image.mode == "P" and "transparency" in image.info:
                        image = image.convert("RGBA")  # straight to RGB, Pillow warns
                    image = image.convert(mode)
                    if image.size != (width, height):
                        image = image.resize((width, height), Image.Resampling.BILINEAR)
                    pixels[row] = np.asarray(image).reshape(height, width, channels)
                except _DECODE_ERRORS as error:
                    msg = f"{name}: not a readable image: {error}"
                    raise ValueError(msg) from error

    with ThreadPoolExecutor() as threads:
        list(threads.map(decode, range(0, len(sources), _DECODE_BLOCK)))
    if shape is not None and channels == 1:
        return pixels.reshape(len(sources), *shape)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _parquet_files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    if not isinstance(path, (str, os.PathLike)):
        files = [Path(p) for p in path]
    elif Path(path).is_dir():
        # A run directory keeps its parts one level down.
        files = sorted(Path(path).glob("*.parquet")) or sorted(Path(path).glob("parts/*.parquet"))
    else:
        files = [Path(path)]
    if not files:
        msg = f"path must name at least one .parquet file, found none in {path}"
        raise ValueError(msg)
    for file in files:
        if not file.is_file():
            msg = f"path must name .parquet files, but there is no file {file}"
            raise FileNotFoundError(msg)
    return files


def _open_parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        msg = f"{file}: not a readable Parquet file: {error}"
        raise ValueError(msg) from error


def _batches(files: Sequence[Path], columns: list[str]) -> Iterator[tuple[Path, pa.RecordBatch]]:
    for file in files:
        with _open_parquet(file) as reader:
            missing = [c for c in columns if c not in reader.schema_arrow.names]
            if missing:
                msg = f"{file}: the column {missing[0]!r} is missing; it has {', '.join(reader.schema_arrow.names)}"
                raise ValueError(msg)
            try:
                for batch in reader.iter_batches(batch_size=1024, columns=columns):
                    yield file, batch
            except (pa.ArrowException, OSError) as error:
                msg = f"{file}: not a readable Parquet file: {error}"
                raise ValueError(msg) from error


def _is_image_type(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image_type(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_column(schema: pa.Schema, name: str | None, file: Path) -> str:
    candidates: list[str] = [field.name for field in schema if _is_image_type(field.type)]
    if name is not None:
        if name not in candidates:
            msg = f"image_column must name a column of encoded images in {file}, got {name!r}; there is {candidates}"
            raise ValueError(msg)
        return name
    if len(candidates) != 1:
        found = f"several: {', '.join(candidates)}" if candidates else f"none among {', '.join(schema.names)}"
        msg = f"{file}: one column of encoded images was expected, found {found}; give image_column="
        raise ValueError(msg)
    return candidates[0]


def _label_column(schema: pa.Schema, name: str | None, file: Path) -> str | None:
    integers: list[str] = [field.name for field in schema if pa.types.is_integer(field.type)]
    if name is not None:
        if name not in integers:
            msg = f"label_column must name an integer column in {file}, got {name!r}; there is {integers}"
            raise ValueError(msg)
        return name
    return next((column for column in LABEL_COLUMNS if column in integers), None)


def _class_names(metadata: dict[bytes, bytes], label_column: str | None) -> list[str] | None:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _stored_shape(metadata: dict[bytes, bytes]) -> tuple[int, int, int] | None:
    if b"compdx.shape" not in metadata:
        return None
    channels, height, width = json.loads(metadata[b"compdx.shape"])
    return channels, height, width
