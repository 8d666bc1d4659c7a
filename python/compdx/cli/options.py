"""Options that several commands share, and what is made of their texts."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from compdx.engine import Numerics
from compdx.training import Recipe

TARGET = (
    "package.module:factory, a model file (.onnx, .tflite, .keras, .h5, .xml, .pt2, .so), a network file or directory "
    "of compdx, or the name of a network that comes with it."
)
OWN = ("mean", "std", "bounds", "layout", "outputs", "class_offset", "runtime", "level", "precision", "threads")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")]
Original = Annotated[str, typer.Option("--original", metavar="MODEL", help=f"The original model: {TARGET}")]
Compressed = Annotated[str, typer.Option("--compressed", metavar="MODEL", help="The compressed model, likewise.")]
SeedsPath = Annotated[
    Path, typer.Option("--seeds", help='Seeds: a folder of images, an .npz, Parquet, a run, or "digits".')
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use the first N seeds only.")]
Mean = Annotated[str | None, typer.Option("--mean", help="Mean of bare models: a number, or one per channel: a,b,c.")]
Std = Annotated[str | None, typer.Option("--std", help="Standard deviation of bare models, likewise.")]
Bounds = Annotated[str | None, typer.Option("--bounds", metavar="LO,HI", help="What bare models get for 0 and 255.")]
Layout = Annotated[str | None, typer.Option("--layout", metavar="NCHW|NHWC", help="Layout of bare models.")]
Outputs = Annotated[
    str | None, typer.Option("--outputs", metavar="logits|probabilities", help="Scores of bare models.")
]
Offset = Annotated[
    int | None, typer.Option("--class-offset", min=0, help="Leading scores of bare models to drop: background classes.")
]
OriginalOption = Annotated[
    list[str] | None,
    typer.Option(
        "--original-option",
        metavar="KEY=VALUE",
        help=f"For the original model alone, repeatable: {', '.join(OWN)}; the last four for model files.",
    ),
]
CompressedOption = Annotated[
    list[str] | None,
    typer.Option("--compressed-option", metavar="KEY=VALUE", help="For the compressed model alone, likewise."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads, of torch and the runtimes of model files, and of compdx."),
]
Device = Annotated[str | None, typer.Option("--device", help="Where the models run: cpu, cuda, cuda:1, ...")]
Chains = Annotated[str, typer.Option("--chains", metavar="auto|N", help="Batch size; auto measures a good one.")]
Engine = Annotated[
    str, typer.Option("--engine", metavar="auto|graph|eager", help="How CUDA runs: as a CUDA graph, or one by one.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile both models with torch.compile.")]
Tf32 = Annotated[
    bool | None,
    typer.Option("--tf32/--no-tf32", help="Whether CUDA may round float32 to TF32; torch's settings if not."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no report; errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="train.parquet and test.parquet (or shards), folders of class folders in train/ and test/ or a tenth of "
        'them held out, or "digits".',
    ),
]
DataIfAny = Annotated[str | None, typer.Option("--data", help="Labelled images, as for train.")]
ImageSize = Annotated[int | None, typer.Option("--size", min=1, help="Resize the images of folders to N x N.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Learning rate; the peak of a one-cycle schedule.")]
Crop = Annotated[int | None, typer.Option("--crop", min=0, help="Pixels by which images are shifted at random.")]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Whether images are mirrored at random.")]
Erase = Annotated[int | None, typer.Option("--erase", min=0, help="Side of a grey square put on images at random.")]
Schedule = Annotated[
    str | None, typer.Option("--schedule", metavar="one-cycle|constant", help="How the learning rate goes.")
]
Average = Annotated[int | None, typer.Option("--average", min=0, help="Average the weights of the last N epochs.")]
Precision = Annotated[
    str | None, typer.Option("--precision", metavar="bfloat16|float32", help="Arithmetic of the training.")
]
Seed = Annotated[int, typer.Option("--seed", help="Fixes all randomness.")]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def chains(text: str) -> int | None:
    """``auto``, which is None, or a number."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        msg = f"--chains must be auto or a number, got {text!r}"
        raise ValueError(msg) from None


def numerics(tf32: bool | None) -> Numerics | None:
    """TF32 on or off; None where nothing was said."""
    if tf32 is None:
        return None
    return Numerics(matmul_precision="high" if tf32 else "highest", convolution_tf32=tf32)


def recipe_of(default: Recipe, **changes: Any) -> Recipe:
    """A recipe with the settings that were given."""
    return Recipe(**{**default.settings(), **given(**changes)})


def literal(text: str) -> Any:
    """A Python literal where the text is one, else the text itself: 8, 0.5, None, wrap."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def numbers(option: str, text: str) -> tuple[float, ...] | float:
    """``0.5`` or ``0.4,0.5,0.6``."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        expected = "two numbers LO,HI" if option == "--bounds" else "a number, or one per channel separated by commas"
        msg = f"{option} must be {expected}, got {text!r}"
        raise ValueError(msg) from None
    return values if len(values) > 1 else values[0]


def preprocessing(
    mean: str | None,
    std: str | None,
    bounds: str | None,
    layout: str | None,
    outputs: str | None,
    class_offset: int | None,
) -> dict[str, Any]:
    """The settings that were given on the command line, for models that come without any."""
    return given(
        mean=mean and numbers("--mean", mean),
        std=std and numbers("--std", std),
        bounds=bounds and numbers("--bounds", bounds),
        layout=layout,
        outputs=outputs,
        class_offset=class_offset,
    )


def own(original: list[str] | None, compressed: list[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``--original-option`` and ``--compressed-option`` say."""
    return own_settings("--original-option", original), own_settings("--compressed-option", compressed)


def own_settings(option: str, assignments: list[str] | None) -> dict[str, Any]:
    """What ``KEY=VALUE`` texts say of one model: preprocessing, and how its file is opened."""
    settings: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        key = key.replace("-", "_")
        if not equals or key not in OWN:
            msg = f"{option} must be KEY=VALUE with one of the keys {', '.join(OWN)}, got {assignment!r}"
            raise ValueError(msg)
        if key in ("mean", "std", "bounds"):
            settings[key] = numbers(f"--{key}", text)
        elif key in ("class_offset", "threads"):
            settings[key] = literal(text)
        else:
            settings[key] = text
    return settings
