"""From a model under test to the network that can be looked into."""

from __future__ import annotations

from compdx.environments.layers.graph import Network
from compdx.environments.layers.onnx_graph import OnnxNetwork, feeder, onnxruntime_at, openvino_at
from compdx.environments.layers.torch_graph import TorchNetwork
from compdx.model import Model
from compdx.runtimes import Runner

CPU = "CPUExecutionProvider"
SUPPORTED = "a torch module, a .pt2 file, or an ONNX file on ONNX Runtime or OpenVINO"


def network_of(model: Model) -> Network:
    """The network of a model.

    Raises:
        ModuleNotFoundError: A package that its runtime needs is missing.
        ValueError: Nobody can look into what runs it, or it has more than one input or output.
    """
    if model.module is not None:
        if type(model.module).__name__ == "OptimizedModule":
            msg = f"model {model.name!r} is compiled: its values have no names; localize what was compiled"
            raise ValueError(msg)
        return TorchNetwork(model)
    runner = model.runner
    if runner is not None and runner.runtime == "torch":
        return _exported(model, runner)
    if runner is None or runner.path.suffix != ".onnx" or runner.runtime not in ("onnxruntime", "openvino"):
        what = "a callable" if runner is None else f"{runner.path.name} on {runner.runtime}"
        msg = f"model {model.name!r} must be one whose layers can be looked at, {SUPPORTED}, got {what}"
        raise ValueError(msg)
    used = runner.settings
    # Parts run on the CPU and with nothing but these settings; what they say is said of no other model.
    if used["device"] != "cpu" or "config" in used or used.get("providers", [CPU]) != [CPU]:
        what = "on the CPU without config and other providers"
        msg = f"model {model.name!r} must run {what} to be looked into, got {used}"
        raise ValueError(msg)
    if runner.runtime == "onnxruntime":
        load = onnxruntime_at(used["level"], used["threads"])
    else:
        load = openvino_at(used["level"], used["precision"], used["threads"])
    return OnnxNetwork(
        runner.path, load, feeder(model), name=model.name, runtime=runner.runtime, output=used.get("output")
    )


def _exported(model: Model, runner: Runner) -> Network:
    """The network of a ``.pt2`` file: the module of its program, as the runner has it before anything is done to it."""
    used = runner.settings
    if (used["level"], used["precision"], used["batch"]) != ("eager", "file", "free"):
        what = "eagerly, in float32 and with a free batch"
        msg = f"model {model.name!r} must run {what} to be looked into, got {used}"
        raise ValueError(msg)
    return TorchNetwork(model.replace(runner.session))
