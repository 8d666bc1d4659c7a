"""Seeds: what is taken, what is refused and with which words, and that pixels arrive unchanged."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from compdx.seeds import Seeds, load
from compdx.store import RunWriter
from make_golden import SHAPE, make_header, make_outcomes


def some_images(count: int = 4, shape: tuple[int, int, int] = (1, 6, 5)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    """A [C, H, W] image as PNG, in another mode when asked for."""
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path: Path, columns: dict[str, Any], names: list[str] | None = None) -> Path:
    table = pa.table(columns)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)
    return path


def as_structs(images: np.ndarray) -> list[dict[str, Any]]:
    return [{"bytes": png(image), "path": None} for image in images]


class TestArrays:
    def test_properties(self) -> None:
        images = some_images()
        seeds = Seeds(images, [3, 1, 2, -1], indices=[10, 7, 2**56 - 1, 0], names=list("abcd"))
        assert seeds.images is images
        assert seeds.shape == (1, 6, 5)
        assert len(seeds) == 4
        assert seeds.labels is not None
        assert seeds.labels.dtype == seeds.indices.dtype == np.int64
        assert seeds.labels.tolist() == [3, 1, 2, -1]
        assert seeds.names == ("a", "b", "c", "d")
        assert Seeds(images).labels is None
        assert Seeds(images).indices.tolist() == [0, 1, 2, 3]

    def test_selection_keeps_identities(self) -> None:
        seeds = Seeds(some_images(), [3, 1, 2, 0], indices=[10, 7, 5, 3])
        for rows in ([2, 0], np.array([2, 0])):
            part = seeds.select(rows)
            assert part.indices.tolist() == [5, 10]
            assert part.labels is not None
            assert part.labels.tolist() == [2, 3]
            assert (part.images == seeds.images[[2, 0]]).all()
        assert seeds.select(seeds.labels > 1).indices.tolist() == [10, 5]
        assert seeds.select(slice(1, 3)).indices.tolist() == [7, 5]

    def test_locate(self) -> None:
        seeds = Seeds(some_images(), indices=[10, 7, 5, 3])
        assert seeds.locate([3, 10, 7, 7]).tolist() == [3, 0, 1, 1]
        for missing in (4, 99):
            with pytest.raises(ValueError, match=f"seed {missing} is not among"):
                seeds.locate([3, missing])

    def test_fingerprint_is_what_the_format_says(self) -> None:
        images = some_images()
        seeds = Seeds(images, indices=[4, 3, 2, 1])
        content = np.array([4, 1, 6, 5, 4, 3, 2, 1], "<i8").tobytes() + images.tobytes()
        assert seeds.fingerprint == hashlib.sha256(content).hexdigest()
        assert Seeds(images, [1, 1, 1, 1], indices=[4, 3, 2, 1]).fingerprint == seeds.fingerprint
        assert Seeds(images).fingerprint != seeds.fingerprint
        assert Seeds(images.reshape(4, 1, 5, 6), indices=[4, 3, 2, 1]).fingerprint != seeds.fingerprint

    def test_strided_input_is_made_contiguous(self) -> None:
        nhwc = some_images(3, (6, 5, 3))
        seeds = Seeds(nhwc.transpose(0, 3, 1, 2))
        assert seeds.images.flags.c_contiguous
        assert (seeds.images == nhwc.transpose(0, 3, 1, 2)).all()

    def test_torch_tensors(self) -> None:
        torch = pytest.importorskip("torch")
        images = some_images()
        seeds = Seeds(torch.from_numpy(images), torch.tensor([1, 2, 3, 4], dtype=torch.int32))
        assert (seeds.images == images).all()
        assert seeds.labels is not None
        assert seeds.labels.tolist() == [1, 2, 3, 4]

    def test_an_array_on_another_device(self) -> None:
        class OnCuda:
            device = "cuda:0"

            def __dlpack__(self) -> None:
                raise AssertionError

            def __dlpack_device__(self) -> tuple[int, int]:
                return 2, 0

        with pytest.raises(ValueError, match="images must be on the CPU, got an array on cuda:0; copy it first"):
            Seeds(OnCuda())

    @pytest.mark.parametrize(
        ("images", "error", "words"),
        [
            ([[1]], TypeError, "images must be an array .* got list"),
            (np.zeros((2, 1, 4, 4), np.float32), TypeError, "dtype uint8, got float32; scale to 0..255"),
            (np.zeros((2, 1, 4, 4), np.int8), TypeError, "dtype uint8, got int8"),
            (np.zeros((2, 4, 4), np.uint8), ValueError, r"rank 4 .* got shape \(2, 4, 4\); .* images\[:, None\]"),
            (np.zeros((4, 4), np.uint8), ValueError, "rank 4"),
            (np.zeros((0, 1, 4, 4), np.uint8), ValueError, "at least one image"),
            (np.zeros((2, 1, 0, 4), np.uint8), ValueError, "no empty axis"),
            (np.zeros((2, 28, 28, 1), np.uint8), ValueError, r"looks like \[N, H, W, C\]; pass images.transpose"),
            (np.zeros((2, 32, 32, 3), np.uint8), ValueError, "looks like"),
        ],
    )
    def test_bad_images(self, images: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            Seeds(images)

    @pytest.mark.parametrize(
        ("labels", "error", "words"),
        [
            (np.zeros(4), TypeError, "labels must be integers, got dtype float64"),
            ([True] * 4, TypeError, "labels must be integers, got dtype bool"),
            ("abcd", TypeError, "labels must be an array"),
            ([1, 2, 3], ValueError, r"labels must have shape \(4,\), one for each image, got \(3,\)"),
            (np.zeros((4, 1), int), ValueError, "labels must have shape"),
            ([0, 1, 2, -2], ValueError, "labels must be in -1..2147483647, got -2..2"),
            ([0, 1, 2, 2**31], ValueError, "labels must be in"),
        ],
    )
    def test_bad_labels(self, labels: Any, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            Seeds(some_images(), labels)

    @pytest.mark.parametrize(
        ("indices", "words"),
        [
            ([0, 1, 2, 2], "indices must be unique, got 2 more than once"),
            ([0, 1, 2, -1], "indices must be in"),
            ([0, 1, 2, 2**56], "indices must be in"),
            ([0, 1, 2], "indices must have shape"),
        ],
    )
    def test_bad_indices(self, indices: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            Seeds(some_images(), indices=indices)

    def test_seeds_of(self) -> None:
        seeds = Seeds(some_images())
        assert Seeds.of(seeds) is seeds
        assert Seeds.of(some_images()).fingerprint == seeds.fingerprint
        for wrong in (3, "folder", [some_images()]):
            with pytest.raises(TypeError, match=r"seeds must be compdx\.Seeds or a uint8 array \[N, C, H, W\], got "):
                Seeds.of(wrong)
        with pytest.raises(TypeError, match="seeds must have dtype uint8, got float64"):
            Seeds.of(np.zeros((2, 1, 4, 4)))
        with pytest.raises(ValueError, match=r"seeds must have rank 4 .* pass seeds\[:, None\]"):
            Seeds.of(some_images()[:, 0])

    def test_a_label_without_a_name(self) -> None:
        with pytest.raises(ValueError, match="got 2 names and the label 2"):
            Seeds(some_images(), [0, 1, 2, 0], names=["a", "b"])


class TestFolder:
    def test_plain_and_nested_folder(self, tmp_path: Path) -> None:
        images = some_images()
        places = ["b.png", "a.PNG", "sub/deep/c.png", "sub/d.png"]
        for place, image in zip(places, images, strict=True):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_bytes(png(image))
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "._a.png").write_bytes(b"no image either")
        seeds = Seeds.from_folder(tmp_path)
        assert seeds.labels is None
        assert seeds.names is None
        assert (seeds.images == images[[1, 0, 3, 2]]).all()

    def test_folders_of_classes(self, tmp_path: Path) -> None:
        images = some_images(4, (3, 6, 5))
        for place, image in zip(["dog/1.png", "cat/2.png", "cat/1.png", "ant eater/1.png"], images, strict=True):
            (tmp_path / place).parent.mkdir(exist_ok=True)
            (tmp_path / place).write_bytes(png(image))
        seeds = load(tmp_path)
        assert seeds.names == ("ant eater", "cat", "dog")
        assert seeds.labels is not None
        assert seeds.labels.tolist() == [0, 1, 1, 2]
        assert (seeds.images == images[[3, 2, 1, 0]]).all()

    def test_one_colour_image_makes_all_three_channels(self, tmp_path: Path) -> None:
        grey = some_images(2)
        for k, image in enumerate(grey):
            (tmp_path / f"{k}.png").write_bytes(png(image))
        assert Seeds.from_folder(tmp_path).shape == (1, 6, 5)
        (tmp_path / "2.png").write_bytes(png(some_images(1, (3, 6, 5))[0]))
        seeds = Seeds.from_folder(tmp_path)
        assert seeds.shape == (3, 6, 5)
        assert (seeds.images[:2] == grey).all()

    @pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("P", 3), ("RGBA", 3), ("LA", 3)])
    def test_modes(self, tmp_path: Path, mode: str, channels: int) -> None:
        (tmp_path / "a.png").write_bytes(png(np.full((1, 4, 4), 255, np.uint8), mode))
        seeds = Seeds.from_folder(tmp_path)
        assert seeds.shape == (channels, 4, 4)
        assert (seeds.images == 255).all()

    def test_sixteen_bits_are_not_cut_down_silently(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
        with pytest.raises(ValueError, match=r"deep\.png: images must have 8 bits a channel, got mode I;16"):
            Seeds.from_folder(tmp_path)

    def test_sizes(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(png(np.full((1, 4, 6), 7, np.uint8)))
        (tmp_path / "b.png").write_bytes(png(np.full((1, 8, 8), 9, np.uint8)))
        with pytest.raises(ValueError, match=r"a\.png is 4x6 and .*b\.png is 8x8; give size="):
            Seeds.from_folder(tmp_path)
        seeds = Seeds.from_folder(tmp_path, size=(5, 3))
        assert seeds.shape == (1, 5, 3)
        assert (seeds.images[0] == 7).all()
        assert (seeds.images[1] == 9).all()

    @pytest.mark.parametrize("size", [(0, 4), (4,), 4, (4.0, 4), "ab"])
    def test_bad_size(self, tmp_path: Path, size: Any) -> None:
        (tmp_path / "a.png").write_bytes(png(some_images(1)[0]))
        with pytest.raises((TypeError, ValueError), match=r"size must be \(H, W\)"):
            Seeds.from_folder(tmp_path, size=size)

    @pytest.mark.parametrize("cut", [0, 20, 70])
    def test_unreadable_image_is_named(self, tmp_path: Path, cut: int) -> None:
        (tmp_path / "fine.png").write_bytes(png(some_images(1)[0]))
        (tmp_path / "torn.png").write_bytes(png(some_images(1)[0])[:cut])
        with pytest.raises(ValueError, match=r"torn\.png: not a readable image"):
            Seeds.from_folder(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="found none below"):
            Seeds.from_folder(tmp_path)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            Seeds.from_folder(tmp_path / "nowhere")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="is a file"):
            Seeds.from_folder(tmp_path / "file")


class TestParquet:
    def test_structs_with_class_names(self, tmp_path: Path) -> None:
        images = some_images()
        columns = {"image": as_structs(images), "label": [1, 0, 1, None]}
        seeds = load(write_parquet(tmp_path / "a.parquet", columns, ["off", "on"]))
        assert (seeds.images == images).all()
        assert seeds.labels is not None
        assert seeds.labels.tolist() == [1, 0, 1, -1]
        assert seeds.names == ("off", "on")

    @pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
    def test_plain_binary_and_no_label(self, tmp_path: Path, kind: pa.DataType) -> None:
        images = some_images()
        column = pa.array([png(image) for image in images], kind)
        seeds = Seeds.from_parquet(write_parquet(tmp_path / "a.parquet", {"picture": column, "label": list("abcd")}))
        assert (seeds.images == images).all()
        assert seeds.labels is None

    def test_columns_by_name(self, tmp_path: Path) -> None:
        images = some_images()
        columns = {
            "a": as_structs(images),
            "b": as_structs(images[::-1]),
            "coarse": [1, 1, 2, 2],
            "label": [0, 1, 2, 3],
        }
        path = write_parquet(tmp_path / "a.parquet", columns)
        with pytest.raises(ValueError, match="found several: a, b; give image_column="):
            Seeds.from_parquet(path)
        seeds = Seeds.from_parquet(path, image_column="b", label_column="coarse")
        assert (seeds.images == images[::-1]).all()
        assert seeds.labels is not None
        assert seeds.labels.tolist() == [1, 1, 2, 2]
        with pytest.raises(ValueError, match=r"image_column must name .* got 'label'; there is \['a', 'b'\]"):
            Seeds.from_parquet(path, image_column="label")
        with pytest.raises(ValueError, match=r"label_column must name .* got 'a'; there is \['coarse', 'label'\]"):
            Seeds.from_parquet(path, image_column="a", label_column="a")

    def test_no_image_column(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="found none among label, text"):
            Seeds.from_parquet(write_parquet(tmp_path / "a.parquet", {"label": [1], "text": ["x"]}))

    def test_several_files_and_limit(self, tmp_path: Path) -> None:
        images = some_images(6)
        for k in range(3):
            columns = {"image": as_structs(images[2 * k : 2 * k + 2]), "label": [2 * k, 2 * k + 1]}
            write_parquet(tmp_path / f"{k}.parquet", columns)
        assert (load(tmp_path).images == images).all()
        chosen = Seeds.from_parquet([tmp_path / "2.parquet", str(tmp_path / "0.parquet")], limit=3)
        assert (chosen.images == images[[4, 5, 0]]).all()
        assert chosen.labels is not None
        assert chosen.labels.tolist() == [4, 5, 0]
        assert chosen.indices.tolist() == [0, 1, 2]
        write_parquet(tmp_path / "3.parquet", {"other": [1]})
        with pytest.raises(ValueError, match=r"3\.parquet: the column 'image' is missing; it has other"):
            Seeds.from_parquet(tmp_path)

    def test_unreadable(self, tmp_path: Path) -> None:
        rows = [*as_structs(some_images(2)), {"bytes": b"no image", "path": None}]
        with pytest.raises(ValueError, match=r"a\.parquet: image 2: not a readable image"):
            Seeds.from_parquet(write_parquet(tmp_path / "a.parquet", {"image": rows}))
        rows[2] = {"bytes": None, "path": "elsewhere.png"}
        with pytest.raises(ValueError, match=r"a\.parquet: .* holds no image bytes"):
            Seeds.from_parquet(write_parquet(tmp_path / "a.parquet", {"image": rows}))
        (tmp_path / "b.parquet").write_bytes(b"no Parquet")
        with pytest.raises(ValueError, match=r"b\.parquet: not a readable Parquet file"):
            Seeds.from_parquet(tmp_path / "b.parquet")
        with pytest.raises(FileNotFoundError, match=r"no file .*c\.parquet"):
            Seeds.from_parquet(tmp_path / "c.parquet")
        with pytest.raises(ValueError, match="found none in column"):
            Seeds.from_parquet(write_parquet(tmp_path / "d.parquet", {"image": pa.array([], pa.binary())}))
        with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
            Seeds.from_parquet(tmp_path / "a.parquet", limit=0)

    @pytest.mark.parametrize("shape", [SHAPE, (2, 4, 5), (3, 4, 5), (4, 4, 5)])
    def test_run_directory(self, tmp_path: Path, shape: tuple[int, int, int]) -> None:
        with RunWriter.create(tmp_path / "run", make_header(shape=shape)) as writer:
            writer.append(make_outcomes([8, 6, 7], shape))
            writer.append(make_outcomes([6, 1], shape))
        seeds = load(tmp_path / "run")
        assert seeds.indices.tolist() == [1, 6, 8]  # 7 found nothing, 6 is there twice
        assert seeds.labels is not None
        assert seeds.labels.tolist() == [1, 6, 8]
        assert (seeds.images == make_outcomes([1, 6, 8], shape).images).all()
        assert Seeds.from_parquet(tmp_path / "run", limit=2).indices.tolist() == [1, 6]

    @pytest.mark.parametrize(
        ("name", "shape", "first"), [("mnist", (1, 28, 28), "0"), ("cifar10", (3, 32, 32), "airplane")]
    )
    def test_real_data(self, data_sets: Path, name: str, shape: tuple[int, int, int], first: str) -> None:
        path = data_sets / name / "test.parquet"
        seeds = Seeds.from_parquet(path, limit=300)
        assert len(seeds) == 300
        assert seeds.shape == shape
        assert seeds.labels is not None
        assert set(seeds.labels) == set(range(10))
        assert seeds.names is not None
        assert seeds.names[0] == first
        row = pq.read_table(path).column(0)[299].as_py()
        expected = np.asarray(Image.open(io.BytesIO(row["bytes"])))
        assert (seeds.images[299] == (expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1))).all()


class TestNpz:
    def test_arrays(self, tmp_path: Path) -> None:
        images = some_images()
        np.savez(tmp_path / "a.npz", images=images, labels=[1, 2, 3, 4], x=images[:1], y=[9])
        seeds = load(tmp_path / "a.npz")
        assert (seeds.images == images).all()
        assert seeds.labels is not None
        assert seeds.labels.tolist() == [1, 2, 3, 4]
        other = Seeds.from_npz(tmp_path / "a.npz", images="x", labels="y")
        assert other.labels is not None
        assert other.labels.tolist() == [9]
        assert Seeds.from_npz(tmp_path / "a.npz", labels=None).labels is None
        np.savez(tmp_path / "b.npz", images=images)
        assert Seeds.from_npz(tmp_path / "b.npz").labels is None

    def test_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, x=some_images())
        with pytest.raises(ValueError, match=r"images must name an array of .* got 'images'; it has x"):
            Seeds.from_npz(path)
        with pytest.raises(ValueError, match=r"labels must name an array of .* got 'y'; it has x"):
            Seeds.from_npz(path, images="x", labels="y")
        np.savez(path, images=np.array([{}], dtype=object))
        with pytest.raises(ValueError, match=r"a\.npz: an array cannot be read: .*allow_pickle"):
            Seeds.from_npz(path)
        np.savez(path, images=some_images())
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            Seeds.from_npz(path)
        with path.open("wb") as file:
            np.save(file, some_images())
        with pytest.raises(ValueError, match="a single array"):
            Seeds.from_npz(path)
        with pytest.raises(FileNotFoundError, match="no file"):
            Seeds.from_npz(tmp_path / "nothing.npz")


def test_load_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match=r"a folder, a \.parquet or an \.npz file, got .*a\.csv"):
        load(tmp_path / "a.csv")
