"""Times of SSD300 (vgg300, random weights): python -m benchmarks.ssd_inference

Two tables. First the network alone: Keras's predict, our bundle in float32 and bfloat16 under the session loader
that TensorFlow Serving uses, OpenVINO from our float32 bundle, PyTorch with the same weights. Then pictures in,
detections out from the bfloat16 bundle, with few and with many positives: the article's speed "is a function of
the number of positive predictions". The candidates take turns in one process. Needs the extra `bench`; what is not
installed is left out.
"""

import pathlib
import statistics
import tempfile

import numpy as np

from benchmarks.inference import is_installed, measure, table
from common import cli, detection_export, export, runtime
from ssd import convert
from ssd import export as ssd_export
from ssd.model import IMAGE_SIZE

CONFIG = {"article": "ssd", "model": "vgg300", "variant": "caffe", "width": 1.0, "batch_norm": False,
          "image_size": IMAGE_SIZE["vgg300"], "labels": [f"class {i}" for i in range(20)]}
POSITIVES = (20, 1_000, 20_000, 100_000)  # pairs of anchor and class above the threshold, of 174,640
SUPPRESSION = {"score_threshold": 0.01, "iou_threshold": 0.45, "max_detections": 200}  # as the evaluation has it


def spread_logits(model, images, deviation=2.0):
    """Scales the class predictors so that the logits of a picture differ as much as trained ones; returns them."""
    for layer in model.layers:
        if layer.name.startswith("classes_") and hasattr(layer, "kernel"):
            # Maps differ in scale where nothing is trained.
            of_map = model.get_layer(f"{layer.name}_anchors").output
            found = type(model)(model.input, of_map)(images, training=False)
            layer.kernel.assign(layer.kernel * deviation / np.std(found))
    return model(images, training=False)["logits"].numpy()


def background_bias(logits, positives):
    """What to add to the background's logit so that about so many scores are above the threshold."""
    low, high = -20.0, 40.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        shifted = logits + np.eye(1, logits.shape[-1]) * middle
        odds = np.exp(shifted - shifted.max(-1, keepdims=True))
        count = ((odds / odds.sum(-1, keepdims=True))[..., 1:] > SUPPRESSION["score_threshold"]).sum()
        low, high = (middle, high) if count > positives else (low, middle)
    return low


def set_background(model, value):
    """The same bias of the background in all class predictors."""
    num_outputs = 1 + len(CONFIG["labels"])
    for layer in model.layers:
        if layer.name.startswith("classes_") and hasattr(layer, "bias"):
            bias = np.zeros([layer.bias.shape[0] // num_outputs, num_outputs], np.float32)
            bias[:, 0] = value
            layer.bias.assign(bias.reshape(-1))


def bundle(folder, model, precision):
    """Writes a bundle and returns its open `export.Session`."""
    built = detection_export.in_precision(model, convert.build, CONFIG, precision)
    ssd_export.write_bundle(folder, built, CONFIG, precision=precision, **SUPPRESSION)
    return export.Session(folder)


def networks(model, images, folder):
    """{name: function that runs the network once}."""
    found = {"Keras predict, float32": lambda: model.predict(images, verbose=0)}
    for precision in runtime.PRECISIONS:
        run = bundle(folder / precision, model, precision).callable("network")
        found[f"bundle, {precision}"] = lambda run=run: run({"images": images})
    if is_installed("openvino"):
        infer, _ = runtime.bundle_network(folder / "float32", "openvino")
        found["OpenVINO"] = lambda: infer(images)
    if is_installed("torch"):
        from benchmarks import torch_ssd, torch_yolov3

        net = torch_ssd.build(len(CONFIG["labels"]))
        torch_ssd.copy_weights(net, model)
        found["PyTorch, float32"] = torch_yolov3.inference(net, images)
        found["PyTorch, bfloat16"] = torch_yolov3.inference(net, images, bfloat16=True, float32=("classes", "boxes"))
    return found


def detections(model, logits, images, folder, rounds):
    """Lines: positives, detections kept, milliseconds of network and of all, pictures per second."""
    lines = ["positives  kept  network ms  all ms  pictures/s"]
    for positives in POSITIVES:
        set_background(model, background_bias(logits, positives))
        with bundle(folder / str(positives), model, "bfloat16") as session:
            network, detect = session.callable("network"), session.callable("serving_default")
            kept = detect({"images": images})["num"].mean()
            seconds = measure({"network": lambda: network({"images": images}),
                               "all": lambda: detect({"images": images})}, rounds)
        network_ms, all_ms = (1e3 * statistics.median(values) for values in seconds.values())
        lines.append(f"{positives:9,}  {kept:4.0f}  {network_ms:10.1f}  {all_ms:6.1f}  "
                     f"{1e3 * len(images) / all_ms:10.1f}")
    return "\n".join(lines)


def define_flags():
    cli.flags.DEFINE_integer("rounds", 15, "Runs of each candidate.")
    cli.flags.DEFINE_integer("batch_size", 1, "Pictures per run.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    size = CONFIG["image_size"]
    images = np.random.default_rng(0).uniform(size=[flags.batch_size, size, size, 3]).astype(np.float32)
    model = convert.build(CONFIG)
    logits = spread_logits(model, images)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        print(table(measure(networks(model, images, folder), flags.rounds), "OpenVINO"), flush=True)
        print(detections(model, logits[:1], images, folder, flags.rounds))


if __name__ == "__main__":
    cli.run(main, define_flags)
