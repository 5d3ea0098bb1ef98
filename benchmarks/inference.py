"""Times of one picture through YOLOv3 (random weights): python -m benchmarks.inference

Keras's predict, our bundle in float32 and bfloat16 under the session loader that TensorFlow Serving uses,
OpenVINO (which takes bfloat16 by itself where the processor has it) and onnxruntime from our float32 bundle, PyTorch.
The candidates take turns in one process, so that what else the machine does falls on all of them; the table has the
smallest and the middle time of each, and the ratio to OpenVINO. Needs the extra `bench`; what is not installed is left
out.
"""

import importlib.util
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from common import cli, export, runtime
from yolov3 import export as yolov3_export
from yolov3 import predict
from yolov3.model import ANCHORS, STRIDES, TINY_ANCHORS


def measure(candidates, rounds):
    """{name: seconds of each round} of functions that take turns, after two runs each that do not count."""
    for run in candidates.values():
        run()
        run()
    seconds = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds, base):
    """Lines of smallest and middle milliseconds and the ratio of the middles to that of `base`."""
    width = max(map(len, seconds))
    unit = statistics.median(seconds[base]) if base in seconds else None
    lines = [f"{'':{width}}  least ms  middle ms" + ("" if unit is None else f"  of {base}")]
    for name, values in seconds.items():
        middle = statistics.median(values)
        ratio = "" if unit is None else f"  {middle / unit:6.2f}"
        lines.append(f"{name:{width}}  {1e3 * min(values):8.1f}  {1e3 * middle:9.1f}{ratio}")
    return "\n".join(lines)


def is_installed(*names):
    return all(importlib.util.find_spec(name) for name in names)


def random_model(config, precision, weights=None):
    """The network with random weights, and statistics of its normalisations that keep activations bounded."""
    with runtime.dtype_policy(precision):
        model = predict.build(config)
    if weights is not None:
        model.set_weights(weights)
        return model
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("beta", "moving_mean")):
            weight.assign(rng.normal(0.0, 0.1, weight.shape))
        elif weight.path.endswith("moving_variance"):
            weight.assign(rng.uniform(1.0, 3.0, weight.shape))
    return model


def onnx_network(bundle, images, folder):
    """Returns a function that runs our bundle's network signature under onnxruntime."""
    import onnxruntime

    path = pathlib.Path(folder) / "network.onnx"
    # In a process of its own, because the conversion takes gigabytes.
    command = ["--saved-model", bundle, "--tag", "serve", "--signature_def", "network", "--opset", "17"]
    subprocess.run([sys.executable, "-m", "tf2onnx.convert", *command, "--output", path], check=True,
                   capture_output=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: images})


def candidates(config, images, folder):
    """{name: function that runs the network once}."""
    model = random_model(config, "float32")
    yolov3_export.write_bundle(folder / "float32", model, config)
    half = random_model(config, "mixed_bfloat16", model.get_weights())
    yolov3_export.write_bundle(folder / "bfloat16", half, config, precision="bfloat16")
    del half

    def bundle(name):
        run = export.Session(folder / name).callable("network")
        return lambda: run({"images": images})

    found = {"Keras predict, float32": lambda: model.predict(images, verbose=0),
             "bundle, float32": bundle("float32"), "bundle, bfloat16": bundle("bfloat16")}
    if is_installed("openvino"):
        infer, _ = runtime.bundle_network(folder / "float32", "openvino")
        found["OpenVINO"] = lambda: infer(images)
    if is_installed("onnxruntime", "tf2onnx"):
        try:
            found["onnxruntime, float32"] = onnx_network(folder / "float32", images, folder)
        except subprocess.CalledProcessError as error:  # the converter wants more than 20 GiB at full size
            print(f"onnxruntime is left out: the conversion ended with code {error.returncode}")
    if is_installed("torch") and config["model"] == "yolov3" and config["width"] == 1.0:
        from benchmarks import torch_yolov3

        net = torch_yolov3.build(len(config["labels"]))
        torch_yolov3.copy_weights(net, model)
        found["PyTorch, float32"] = torch_yolov3.inference(net, images)
        found["PyTorch, bfloat16"] = torch_yolov3.inference(net, images, bfloat16=True)
    return found


def define_flags():
    flags = cli.flags
    flags.DEFINE_integer("image_size", 416, "Side of the network input.")
    flags.DEFINE_integer("batch_size", 1, "Pictures per run.")
    flags.DEFINE_integer("rounds", 15, "Runs of each candidate.")
    flags.DEFINE_enum("model", "yolov3", list(STRIDES), "Network; PyTorch has yolov3 alone.")
    flags.DEFINE_float("width", 1.0, "Multiplies the filters of all layers.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    anchors = TINY_ANCHORS if flags.model == "tiny" else ANCHORS
    config = {"article": "yolov3", "model": flags.model, "width": flags.width, "image_size": flags.image_size,
              "labels": [f"class {i}" for i in range(80)], "anchors": anchors.tolist()}
    images = np.random.default_rng(1).uniform(
        size=[flags.batch_size, flags.image_size, flags.image_size, 3]).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(candidates(config, images, pathlib.Path(folder)), flags.rounds)
    print(table(seconds, "OpenVINO"))


if __name__ == "__main__":
    cli.run(main, define_flags)
