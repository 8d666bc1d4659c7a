"""The reference networks, their files, their data and their training."""

from __future__ import annotations

import io
import json
import platform
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from compdx import Inputs, Seeds, compress, zoo
from compdx.training import Recipe, accuracy
from compdx.zoo import digits, files
from compdx.zoo.train import inputs_of

# Parameters at one channel of 28x28 and at three of 32x32, and ReLUs. Of LeNet-1 and LeNet-5 the first, of the others
# the second number is that of the literature: He et al. (ResNet-20), and github.com/kuangliu/pytorch-cifar.
LITERATURE = {
    "lenet1": (3_246, 4_526, 2),
    "lenet5": (61_706, 83_126, 4),
    "resnet20": (269_434, 269_722, 19),
    "vgg11": (9_229_962, 9_231_114, 8),
    "resnet18": (11_172_810, 11_173_962, 17),
    "densenet121": (6_955_146, 6_956_298, 120),
}
RECIPE = Recipe(epochs=3, batch_size=64, rate=0.05, flip=False, crop=2)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    with digits.one_thread():
        yield


@pytest.fixture(scope="module")
def data() -> tuple[Seeds, Seeds]:
    return digits.load()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: tuple[Seeds, Seeds]) -> tuple[Path, zoo.Pretrained]:
    """LeNet-5 after three epochs on digits; tests only read it."""
    folder = tmp_path_factory.mktemp("trained") / "net"
    with digits.one_thread():
        return folder, zoo.train_network("lenet5", data, folder, recipe=RECIPE)


def relus(network: Any) -> int:
    graph = torch.fx.symbolic_trace(network).graph
    modules = dict(network.named_modules())
    return sum(
        (node.op == "call_function" and node.target is torch.relu)
        or (node.op == "call_module" and isinstance(modules[node.target], torch.nn.ReLU))
        for node in graph.nodes
    )


def same(a: Any, b: Any) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class TestNetworks:
    @pytest.mark.parametrize("name", zoo.NETWORKS)
    def test_shapes_and_counts(self, name: str) -> None:
        grey, colour, activations = LITERATURE[name]
        for channels, size, parameters in ((1, 28, grey), (3, 32, colour)):
            network = zoo.build(name, channels=channels, size=size).eval()
            with torch.no_grad():
                assert network(torch.zeros(2, channels, size, size)).shape == (2, 10)
            assert sum(parameter.numel() for parameter in network.parameters()) == parameters
            assert relus(network) == activations

    def test_other_classes_and_sizes(self) -> None:
        for name in ("lenet1", "lenet5", "vgg11", "resnet20"):
            network = zoo.build(name, channels=3, size=28, classes=4).eval()
            assert network(torch.zeros(1, 3, 28, 28)).shape == (1, 4)

    def test_weights_come_from_torchs_random_state(self) -> None:
        networks = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            networks.append(zoo.build("lenet1"))
        assert same(networks[0], networks[1])
        assert not same(networks[0], networks[2])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "alexnet"}, "name must be one of 'lenet1', .*, got 'alexnet'"),
            ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
            ({"classes": 1}, "classes must be an integer of at least 2, got 1"),
            ({"size": 224}, "size must be 28 or 32, got 224"),
        ],
    )
    def test_what_cannot_be_built(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            zoo.build(**{"name": "lenet1", **arguments})


def some(seed: int = 0) -> Any:
    """A network with normalisation whose statistics are not those it was born with."""
    torch.manual_seed(seed)
    network = zoo.build("resnet20", channels=1, size=28, classes=4)
    network(torch.randn(8, 1, 28, 28))
    return network


KIND: dict[str, Any] = {
    "name": "resnet20",
    "inputs": Inputs(mean=0.25, std=0.5),
    "channels": 1,
    "size": 28,
    "classes": 4,
}


class TestFiles:
    @pytest.mark.parametrize("half", [True, False])
    def test_round_trip(self, tmp_path: Path, half: bool) -> None:
        network = some()
        before = torch.random.get_rng_state()
        path = zoo.save(network, tmp_path / "a.safetensors", half=half, about={"accuracy": 0.5}, **KIND)
        loaded = zoo.load(path)
        assert torch.equal(torch.random.get_rng_state(), before)
        for key, tensor in network.state_dict().items():
            rounded = tensor.half().float() if half and tensor.ndim > 1 else tensor
            assert torch.equal(loaded.network.state_dict()[key], rounded), key
        assert not loaded.network.training
        assert loaded.name == "a"
        assert loaded.inputs == KIND["inputs"]
        assert loaded.about == {
            **{"network": "resnet20", "channels": 1, "size": 28, "classes": 4},
            **{"mean": 0.25, "std": 0.5, "bounds": [0.0, 1.0], "accuracy": 0.5},
        }
        images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), np.uint8)
        with torch.no_grad():
            x = torch.from_numpy((images / 255 - 0.25) / 0.5).float()
            expected = loaded.network(x).numpy()
        np.testing.assert_allclose(loaded.model()(images), expected, atol=1e-4)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors"]

    def test_the_file_is_what_its_format_says(self, tmp_path: Path) -> None:
        """Eight bytes of length, a JSON header with texts as metadata, then the numbers and nothing else."""
        network = some()
        content = zoo.save(network, tmp_path / "a.safetensors", **KIND).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        assert json.loads(header.pop("__metadata__")["network"]) == "resnet20"
        kinds = {2: "F16", 1: "F32", 0: "I64"}
        state = network.state_dict()
        assert {key: entry["dtype"] for key, entry in header.items()} == {
            key: kinds[min(tensor.ndim, 2)] for key, tensor in state.items()
        }
        assert len(content) == 8 + length + max(entry["data_offsets"][1] for entry in header.values())

    def test_what_cannot_be_saved(self, tmp_path: Path) -> None:
        network, path = some(), tmp_path / "a.safetensors"
        with pytest.raises(ValueError, match=r"path must end in \.safetensors, got .*a\.pt"):
            zoo.save(network, tmp_path / "a.pt", **KIND)
        with pytest.raises(ValueError, match=r"which has \[10, 64\] at '.*weight', got \[4, 64\]"):
            zoo.save(network, path, **{**KIND, "classes": 10})
        with pytest.raises(ValueError, match="about must not hold 'mean'"):
            zoo.save(network, path, about={"mean": 1}, **KIND)
        with torch.no_grad():
            network[0].weight[0, 0, 0, 0] = 1e5
        with pytest.raises(ValueError, match=r"those of 0\.weight do not; pass half=False"):
            zoo.save(network, path, **KIND)
        assert not path.exists()

    def test_what_cannot_be_loaded(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.safetensors"):
            zoo.load(tmp_path / "nowhere.safetensors")
        good = zoo.save(some(), tmp_path / "good.safetensors", **KIND)
        bad = tmp_path / "bad.safetensors"
        for content in (b"", b"not a network", good.read_bytes()[:-1]):
            bad.write_bytes(content)
            with pytest.raises(ValueError, match="not a readable safetensors file"):
                zoo.load(bad)
        save_file({"weight": torch.zeros(2)}, bad)
        with pytest.raises(ValueError, match="not a network of the zoo: its metadata lack network, channels"):
            zoo.load(bad)
        content = good.read_bytes()
        bad.write_bytes(content.replace(b'"classes":"4"', b'"classes":"5"'))
        with pytest.raises(ValueError, match=r"not a network of the zoo: (?s:.*)size mismatch"):
            zoo.load(bad)
        bad.write_bytes(content.replace(b"resnet20", b"resnet21"))
        with pytest.raises(ValueError, match="not a network of the zoo: name must be one of"):
            zoo.load(bad)

    def test_a_name_that_is_not_shipped(self) -> None:
        with pytest.raises(ValueError, match=r"name must be one of .*got 'resnet20-imagenet'"):
            zoo.pretrained("resnet20-imagenet")


class TestShipped:
    def test_it_says_what_it_is(self) -> None:
        assert "resnet20-cifar10" in zoo.names()
        shipped = zoo.pretrained("resnet20-cifar10")
        assert sum(parameter.numel() for parameter in shipped.network.parameters()) == 269_722
        assert shipped.inputs == Inputs(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
        assert shipped.about["accuracy"] >= 0.89
        assert shipped.model().name == "resnet20-cifar10"
        weights = Path(files.__file__).parent / "weights"
        assert (weights / "resnet20-cifar10.safetensors").stat().st_size < 700_000
        log = json.loads((weights / "resnet20-cifar10.json").read_text())
        assert log["accuracy"] == shipped.about["accuracy"]
        assert log["stages"] == shipped.about["stages"]
        recipes = [Recipe(**stage["recipe"]) for stage in log["stages"]]
        assert [recipe.epochs for recipe in recipes] == [
            sum(epoch["stage"] == stage for epoch in log["epochs"]) for stage in (1, 2, 3)
        ]

    @pytest.mark.slow
    def test_it_is_as_good_as_it_says(self, data_sets: Path) -> None:
        shipped = zoo.pretrained("resnet20-cifar10")
        count = 2000
        test = Seeds.from_parquet(data_sets / "cifar10" / "test.parquet", limit=count)
        found = accuracy(shipped.network, test, shipped.inputs)
        share = shipped.about["accuracy"]
        assert abs(found - share) < 4 * (share * (1 - share) / count) ** 0.5


def labelled(count: int, channels: int = 3, size: int = 28) -> Seeds:
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, channels, size, size), np.uint8)
    return Seeds(images, np.arange(count) % 2, names=("cat", "dog"))


def write_parquet(path: Path, seeds: Seeds, *, with_labels: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = []
    for image in seeds.images:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    columns: dict[str, Any] = {"img": cells}
    if with_labels:
        columns["label"] = seeds.labels.tolist()
    pq.write_table(pa.table(columns), path)


def write_folders(path: Path, seeds: Seeds) -> None:
    for row, (image, label) in enumerate(zip(seeds.images, seeds.labels, strict=True)):
        folder = path / seeds.names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{row:03}.png")


def equal(a: Seeds, b: Seeds) -> bool:
    return np.array_equal(a.images, b.images) and np.array_equal(a.labels, b.labels)


class TestData:
    def test_parquet_whole_and_in_shards(self, tmp_path: Path) -> None:
        train, test = labelled(9), labelled(4)
        write_parquet(tmp_path / "whole" / "train.parquet", train)
        write_parquet(tmp_path / "whole" / "test.parquet", test)
        hub = tmp_path / "hub" / "data"
        write_parquet(hub / "train-00000-of-00002.parquet", train.select(slice(5)))
        write_parquet(hub / "train-00001-of-00002.parquet", train.select(slice(5, None)))
        write_parquet(hub / "test-00000-of-00001.parquet", test)
        for name in ("whole", "hub"):
            found = zoo.read_data(tmp_path / name)
            assert equal(found[0], train)
            assert equal(found[1], test)

    def test_folders_with_and_without_a_test_part(self, tmp_path: Path) -> None:
        train, test = labelled(22), labelled(6)
        write_folders(tmp_path / "split" / "train", train)
        write_folders(tmp_path / "split" / "test", test)
        # A folder is sorted by class, then by name.
        order = np.argsort(train.labels, kind="stable")
        found = zoo.read_data(tmp_path / "split")
        assert equal(found[0], train.select(order))
        assert found[0].names == found[1].names == ("cat", "dog")
        assert equal(found[1], test.select(np.argsort(test.labels, kind="stable")))
        write_folders(tmp_path / "one", train)
        found = zoo.read_data(tmp_path / "one")
        assert equal(found[1], train.select(order[[0, 10, 20]]))
        assert equal(found[0], train.select(np.delete(order, [0, 10, 20])))
        assert zoo.read_data(tmp_path / "one", size=32)[0].shape == (3, 32, 32)

    def test_digits(self, data: tuple[Seeds, Seeds]) -> None:
        found = zoo.read_data("digits")
        assert all(equal(a, b) for a, b in zip(found, data, strict=True))

    def test_what_is_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="data must be 'digits' or a directory"):
            zoo.read_data(tmp_path / "nowhere")
        write_parquet(tmp_path / "half" / "train.parquet", labelled(4))
        with pytest.raises(ValueError, match=r"holds train\*\.parquet and no test\*\.parquet"):
            zoo.read_data(tmp_path / "half")
        write_parquet(tmp_path / "half" / "test.parquet", labelled(4), with_labels=False)
        with pytest.raises(ValueError, match="the test images must all have labels"):
            zoo.read_data(tmp_path / "half")
        write_parquet(tmp_path / "half" / "test.parquet", labelled(4, size=32))
        with pytest.raises(ValueError, match="train and test images must have one shape"):
            zoo.read_data(tmp_path / "half")
        with pytest.raises(ValueError, match="size is for images in folders, not for the digits; got 32"):
            zoo.read_data("digits", size=32)
        write_folders(tmp_path / "other" / "train", labelled(4))
        write_folders(tmp_path / "other" / "test", labelled(1))
        with pytest.raises(ValueError, match="train and test must have the same classes"):
            zoo.read_data(tmp_path / "other")


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    seeds = labelled(50)
    inputs = inputs_of(seeds)
    values = seeds.images / 255
    np.testing.assert_allclose(inputs.mean, values.mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(inputs.std, values.std((0, 2, 3)), atol=5.1e-5)
    flat = Seeds(np.full((3, 1, 28, 28), 51, np.uint8))
    assert (inputs_of(flat).mean, inputs_of(flat).std) == ((0.2,), (1.0,))


class TestTraining:
    def test_what_it_leaves(self, trained: tuple[Path, zoo.Pretrained], data: tuple[Seeds, Seeds]) -> None:
        folder, network = trained
        assert sorted(path.name for path in folder.iterdir()) == ["lenet5.safetensors", "log.jsonl", "train.json"]
        scores = zoo.load(folder / "lenet5.safetensors").model()(data[1].images)
        measured = (np.asarray(scores).argmax(1) == data[1].labels).mean()
        assert network.about["accuracy"] == pytest.approx(measured, abs=1e-12)
        assert measured > 0.7
        assert network.about["recipe"] == RECIPE.settings()
        record = json.loads((folder / "train.json").read_text())
        assert record["accuracy"] == network.about["accuracy"]
        assert record["finished"] is True
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert log == record["epochs"]
        assert [epoch["epoch"] for epoch in log] == [1, 2, 3]
        assert log[2]["loss"] < log[0]["loss"]
        assert platform.node() not in json.dumps(record["machine"])
        # float16 weights are as good as the last epoch's.
        assert abs(log[-1]["test_accuracy"] - measured) < 0.01

    def test_killed_and_resumed_is_the_same_bit_for_bit(
        self, trained: tuple[Path, zoo.Pretrained], data: tuple[Seeds, Seeds], tmp_path: Path
    ) -> None:
        folder = tmp_path / "net"

        def kill(epoch: Any) -> None:
            if epoch.epoch == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            zoo.train_network("lenet5", data, folder, recipe=RECIPE, listen=kill)
        # As if the kill had come between the checkpoint and the log.
        lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
        (folder / "log.jsonl").write_text(lines[0])
        torch.manual_seed(99)
        seen: list[int] = []
        resumed = zoo.train_network(
            "lenet5", data, folder, recipe=RECIPE, resume=True, listen=lambda epoch: seen.append(epoch.epoch)
        )
        assert seen == [3]
        assert same(resumed.network, trained[1].network)
        numbers = [
            [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
            for path in (folder / "log.jsonl", trained[0] / "log.jsonl")
        ]
        assert numbers[0] == numbers[1]

    def test_resume_of_a_finished_training_and_of_another(
        self, trained: tuple[Path, zoo.Pretrained], data: tuple[Seeds, Seeds], tmp_path: Path
    ) -> None:
        folder = tmp_path / "net"
        shutil.copytree(trained[0], folder)
        again = zoo.train_network("lenet5", data, folder, recipe=RECIPE, resume=True, listen=lambda _: 1 / 0)
        assert same(again.network, trained[1].network)
        with pytest.raises(FileExistsError, match="already holds a training"):
            zoo.train_network("lenet5", data, folder, recipe=RECIPE)
        with pytest.raises(ValueError, match="cannot be resumed with other settings: recipe, seed changed"):
            zoo.train_network("lenet5", data, folder, recipe=Recipe(), seed=1, resume=True)
        relabelled = Seeds(data[0].images, data[0].labels[::-1].copy())
        with pytest.raises(ValueError, match="other settings: train changed"):
            zoo.train_network("lenet5", (relabelled, data[1]), folder, recipe=RECIPE, resume=True)

    @pytest.mark.parametrize("seed", [0, 5])
    def test_the_first_weights_are_those_of_the_seed(
        self, data: tuple[Seeds, Seeds], tmp_path: Path, seed: int
    ) -> None:
        torch.manual_seed(99)
        still = Recipe(epochs=1, batch_size=64, rate=1e-6, flip=False)
        trained = zoo.train_network("lenet1", data, tmp_path / "net", recipe=still, seed=seed, half=False)
        torch.manual_seed(seed)
        for key, tensor in zoo.build("lenet1", channels=1, size=28).state_dict().items():
            torch.testing.assert_close(trained.network.state_dict()[key], tensor, atol=1e-4, rtol=0)

    def test_going_on_from_a_trained_network(
        self, trained: tuple[Path, zoo.Pretrained], data: tuple[Seeds, Seeds], tmp_path: Path
    ) -> None:
        few = Recipe(epochs=1, batch_size=64, rate=1e-6, flip=False)
        start = zoo.load(trained[0] / "lenet5.safetensors")
        further = zoo.train_network("lenet5", data, tmp_path / "net", recipe=few, start=start, half=False)
        # A rate that moves nothing leaves what it started from.
        for key, tensor in start.network.state_dict().items():
            torch.testing.assert_close(further.network.state_dict()[key], tensor, atol=1e-4, rtol=0)
        assert further.inputs == start.inputs
        own = Inputs(mean=0.5, std=0.25)
        assert zoo.train_network("lenet1", data, tmp_path / "own", recipe=few, inputs=own).inputs == own
        with pytest.raises(ValueError, match="other settings: start changed"):
            zoo.train_network("lenet5", data, tmp_path / "net", recipe=few, half=False, resume=True)
        with pytest.raises(ValueError, match="start must be what build"):
            zoo.train_network("lenet1", data, tmp_path / "other", recipe=few, start=start)
        assert not (tmp_path / "other").exists()

    def test_a_checkpoint_that_is_none(self, data: tuple[Seeds, Seeds], tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            zoo.train_network("lenet1", data, tmp_path / "net", recipe=RECIPE, tick=interrupt)
        (tmp_path / "net" / "checkpoint.pt").write_bytes(b"cos\nsystem\n(S'echo ran'\ntR.")
        with pytest.raises(ValueError, match=r"checkpoint\.pt: not a readable checkpoint"):
            zoo.train_network("lenet1", data, tmp_path / "net", recipe=RECIPE, resume=True)

    def test_what_cannot_be_trained_with(self, data: tuple[Seeds, Seeds], tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "letter.txt").write_text("dear")
        with pytest.raises(FileExistsError, match="holds something else"):
            zoo.train_network("lenet1", data, tmp_path / "full", recipe=RECIPE)
        out = tmp_path / "net"
        with pytest.raises(ValueError, match="data must have labels"):
            zoo.train_network("lenet1", (data[0], Seeds(data[1].images)), out)
        with pytest.raises(ValueError, match=r"data must be images of 28x28 or 32x32, got \[C, H, W\] = \[3, 30, 30\]"):
            zoo.train_network("lenet1", (labelled(4, size=30), labelled(4, size=30)), out)
        few = data[0].select(data[0].labels < 5)
        with pytest.raises(ValueError, match="the same two or more classes in both parts, got 5"):
            zoo.train_network("lenet1", (few, data[1]), out)
        assert not out.exists()

    def test_the_callers_random_state_is_left_alone(self, data: tuple[Seeds, Seeds], tmp_path: Path) -> None:
        before = torch.random.get_rng_state()
        zoo.train_network("lenet1", data, tmp_path / "net", recipe=Recipe(epochs=1, flip=False))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_grey_images_are_not_mirrored_by_default(self) -> None:
        assert zoo.default_recipe(3).flip
        assert not zoo.default_recipe(1).flip

    @pytest.mark.gpu
    def test_on_a_gpu(self, data: tuple[Seeds, Seeds], tmp_path: Path) -> None:
        recipe = Recipe(epochs=6, batch_size=64, rate=0.05, flip=False, crop=2)
        trained = zoo.train_network("lenet5", data, tmp_path / "net", recipe=recipe, device="cuda")
        assert trained.about["accuracy"] > 0.9


def interrupt(*_: int) -> None:
    raise KeyboardInterrupt


class TestPairs:
    def made(self, scheme: str, network: zoo.Pretrained, data: tuple[Seeds, Seeds]) -> zoo.CompressedPair:
        images = data[0].select(slice(64)) if scheme in ("quantize", "qat", "artifact") else None
        if scheme == "prune":
            tuning = Recipe(epochs=1, batch_size=64, rate=0.01, flip=False)
            compressed = compress.prune(
                network.network, 0.6, scope="layer", train=data[0], recipe=tuning, inputs=network.inputs
            )
        elif scheme == "half":
            compressed = compress.half(network.network)
        elif scheme == "quantize":
            compressed = compress.quantize(network.network, images, inputs=network.inputs)
        else:
            tuning = Recipe(epochs=1, batch_size=64, rate=0.001, flip=False, precision="float32")
            compressed = compress.quantize(
                network.network, images, mode=scheme, train=data[0], recipe=tuning, inputs=network.inputs
            )
        return zoo.CompressedPair(original=network, compressed=compressed, calibration=images)

    @pytest.mark.parametrize("scheme", ["prune", "half", "quantize", "qat", "artifact"])
    def test_round_trip(
        self, scheme: str, trained: tuple[Path, zoo.Pretrained], data: tuple[Seeds, Seeds], tmp_path: Path
    ) -> None:
        pair = self.made(scheme, trained[1], data)
        loaded = zoo.load_pair(pair.save(tmp_path / "small"))
        images = data[1].images[:200]
        expected = np.asarray(pair.model()(images))
        assert not np.array_equal(expected, trained[1].model()(images))
        np.testing.assert_array_equal(loaded.model()(images), expected)
        assert same(loaded.compressed.twin, pair.compressed.twin)
        assert same(loaded.original.network, trained[1].network)
        assert loaded.compressed.record == json.loads(json.dumps(pair.compressed.record))
        assert loaded.model().name == f"{pair.compressed.record['scheme']} lenet5"
        # What a repair can start from anew: the twin as the compression left the original.
        started = pair.compressed.twin.state_dict() if pair.compressed.start is None else pair.compressed.start
        assert loaded.compressed.start.keys() == started.keys()
        assert all(torch.equal(loaded.compressed.start[key], tensor) for key, tensor in started.items())
        # A repaired twin comes back as it was repaired.
        with torch.no_grad():
            for parameter in loaded.compressed.twin.parameters():
                parameter.mul_(1.05)
        mended = zoo.CompressedPair(
            original=loaded.original,
            compressed=loaded.compressed.rebuilt(loaded.compressed.twin),
            calibration=loaded.calibration,
        )
        again = zoo.load_pair(mended.save(tmp_path / "mended"))
        np.testing.assert_array_equal(again.model()(images), mended.model()(images))
        assert not np.array_equal(again.model()(images), expected)

    def test_what_cannot_be_saved_or_loaded(
        self, trained: tuple[Path, zoo.Pretrained], data: tuple[Seeds, Seeds], tmp_path: Path
    ) -> None:
        pair = self.made("half", trained[1], data)
        pair.save(tmp_path / "small")
        with pytest.raises(FileExistsError, match="out must be a new or empty directory"):
            pair.save(tmp_path / "small")
        with pytest.raises(FileNotFoundError, match=r"holds no compressed\.json"):
            zoo.load_pair(tmp_path)
        (tmp_path / "small" / "twin.safetensors").write_bytes(b"nothing")
        with pytest.raises(ValueError, match=r"twin\.safetensors: not the weights of this compressed network"):
            zoo.load_pair(tmp_path / "small")
        (tmp_path / "small" / "compressed.json").write_text('{"name": "a"}')
        with pytest.raises(ValueError, match=r"compressed\.json: not the record of a compressed network: KeyError"):
            zoo.load_pair(tmp_path / "small")
        quantized = self.made("quantize", trained[1], data)
        bare = zoo.CompressedPair(original=quantized.original, compressed=quantized.compressed)
        with pytest.raises(ValueError, match="'quantize' and no calibration images"):
            bare.save(tmp_path / "bare")
        assert not (tmp_path / "bare").exists()
