"""Detections in pictures, folders, videos and cameras: drawn pictures, JSON lines, images per second.

    python -m yolov3.predict --run runs/yolov3/voc2007 photo.jpg folder/ "more/*.png" video.mp4 0
    python -m yolov3.predict --weights yolov3.weights --labels coco.names photo.jpg

Pictures are turned as their EXIF orientation says; boxes are (left, top, right, bottom) in pixels of the
picture as shown. B batch, S side of the network input, M detections kept, C classes.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from common import boxes, cli, drawing, export, files, media
from common.errors import UserError
from yolov3 import convert
from yolov3.model import ANCHORS, MODELS, TINY_ANCHORS
from yolov3.postprocess import postprocess

RUNTIMES = ("keras", "openvino")
PRECISIONS = ("float32", "bfloat16")


def load_run(folder, which="best", precision="float32"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError.

    precision: float32 or mixed_bfloat16, the arithmetic of the network whatever it was trained in.
    """
    with dtype_policy(precision):
        return convert.read_run(folder, which)


def build(config):
    """The network of a run's or a bundle's config.json, with random weights."""
    return MODELS[config["model"]](len(config["labels"]), len(config["anchors"][0]), config["width"])


def load_darknet(weights, labels, name=None, image_size=416, precision="float32"):
    """(model, config) of a Darknet weight file and a text file of class names. Raises UserError."""
    if not labels:
        raise UserError("--weights needs --labels, a text file with one class name per line (coco.names).")
    labels = convert.read_labels(labels)
    with dtype_policy(precision):
        model, _, name = convert.from_darknet(weights, labels, name)
    anchors = TINY_ANCHORS if name == "tiny" else ANCHORS
    config = {"article": "yolov3", "model": name, "width": 1.0, "image_size": image_size, "labels": labels}
    return model, {**config, "anchors": anchors.tolist()}


@contextlib.contextmanager
def dtype_policy(name):
    """Layers made inside have this Keras policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def network(model, image_size, runtime="keras"):
    """The function from images float32 [B, S, S, 3] in 0..1 to logits, as fast as the runtime can.

    model: of `load_run` or `load_darknet`. openvino takes bfloat16 by itself where the processor has it.
    """
    frozen = export.freeze(model, tf.TensorSpec([None, image_size, image_size, 3], tf.float32, "images"))
    return frozen if runtime == "keras" else openvino_network(frozen)


def bundle_network(folder, runtime="keras"):
    """(network, config) of an exported bundle."""
    folder = export.resolve_version(folder)
    config = export.read_config(folder)
    signature = tf.saved_model.load(str(folder)).signatures["network"]
    names = [f"logits_{i}" for i in range(len(config["anchors"]))]
    spec = tf.TensorSpec([None, config["image_size"], config["image_size"], 3], tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def infer(images):
        found = signature(images=images)
        return [found[name] for name in names]

    concrete = export.inlined(infer.get_concrete_function())
    return (openvino_network(concrete) if runtime == "openvino" else concrete), config


def openvino_network(concrete):
    """A ConcreteFunction from images to a list of logits, compiled by OpenVINO.

    Raises UserError where OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise UserError(
            '--runtime openvino needs the package openvino. Install it: pip install -e ".[openvino]"'
        ) from None
    converted = openvino.convert_model(concrete.graph)
    compiled = openvino.compile_model(converted, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    outputs = [compiled.output(tensor.name) for tensor in concrete.outputs]

    def run(images):
        found = compiled(np.asarray(images))
        return [tf.constant(found[output]) for output in outputs]

    return run


def make_detect(infer, config, **options):
    """The function from a list of uint8 RGB pictures of any sizes to (detections of each, seconds).

    infer: function from images to logits; options: keywords of `postprocess`. Detections of a picture: list
    of {"label", "score", "box_xyxy" (pixels of the picture)}, best first. The seconds are those of network
    and suppression alone.
    """
    size, labels = config["image_size"], config["labels"]
    anchors = np.array(config["anchors"], np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    def letterbox(image):
        return boxes.letterbox(image, size)

    @tf.function(reduce_retracing=True, autograph=False)
    def suppress(logits, height, width):
        found = postprocess(logits, anchors, (size, size), **options)
        return {**found, "boxes": boxes.unletterbox_boxes(found["boxes"], height, width, size)}

    def detect(pictures):
        images = tf.stack([letterbox(picture) for picture in pictures])
        height, width = np.array([picture.shape[:2] for picture in pictures], np.int32).T
        start = time.perf_counter()
        found = {name: value.numpy() for name, value in suppress(infer(images), height, width).items()}
        seconds = time.perf_counter() - start
        return [_readable(found, index, labels) for index in range(len(pictures))], seconds

    return detect


def _readable(found, index, labels):
    detections = []
    for rank in range(found["num"][index]):
        box = [round(float(value), 2) for value in found["boxes"][index, rank]]
        score = round(float(found["scores"][index, rank]), 5)
        detections.append({"label": labels[found["classes"][index, rank]], "score": score, "box_xyxy": box})
    return detections


class Writer:
    """Drawn pictures and videos and detections.jsonl in a folder; use it with `with`.

    Every file has its name only when it is complete.
    """

    def __init__(self, folder, labels):
        self.folder = pathlib.Path(folder)
        self.labels = labels
        self._names = set()
        self._source, self._video = None, None

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._stack.enter_context(files.replacing(self.folder / "detections.jsonl"))
            self._lines = self._stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"--out {self.folder} cannot be written ({files.reason(error)}). Choose another folder."
            ) from None
        return self

    def write(self, frame, detections):
        """Draws the detections of one frame and appends its line."""
        height, width = frame.image.shape[:2]
        boxes_xyxy = [found["box_xyxy"] for found in detections]
        labels = [found["label"] for found in detections]
        scores = [found["score"] for found in detections]
        ids = [self.labels.index(label) for label in labels]
        drawn = drawing.draw_boxes(frame.image, boxes_xyxy, labels, scores, ids)
        if frame.fps is None:
            path = self.folder / f"{self._free_name(frame.source)}.png"
            drawing.write_png(path, drawn)
        else:
            path = self._write_video(frame, drawn)
        line = {"file": frame.source, "frame": frame.index, "width": width, "height": height,
                "drawn": path.name, "detections": detections}
        print(json.dumps(line, ensure_ascii=False), file=self._lines)

    def _write_video(self, frame, drawn):
        if self._video is None or frame.index == 0:
            self._close_video()
            size = drawn.shape[1::-1]
            self._video = media.VideoWriter(self.folder / self._free_name(frame.source), frame.fps, size)
        self._video.write(drawn)
        return self._video.path

    def _free_name(self, source):
        """File name without suffix that no earlier source has taken."""
        stem = re.sub(r"\W", "_", source)  # "camera 0"
        if os.path.exists(source):
            stem = pathlib.Path(source).stem
        name, number = stem, 2
        while name in self._names:
            name, number = f"{stem}_{number}", number + 1
        self._names.add(name)
        return name

    def _close_video(self):
        if self._video is not None:
            self._video.close()
            self._video = None

    def __exit__(self, kind, error, traceback):
        try:
            self._close_video()
        finally:
            self._stack.__exit__(kind, error, traceback)


def predict(arguments, detect, config, out, *, batch_size=1, report=print):
    """Detects in all sources and writes to `out`; says what cannot be read, and goes on.

    Returns {"images", "unreadable" (names), "network_seconds", "seconds", "interrupted"}. Ctrl-C, which ends
    a camera, keeps what was detected until then.
    """
    unreadable = []

    def on_unreadable(name, reason):
        unreadable.append(name)
        report(f"unreadable: {name}: {reason}")

    size = config["image_size"]
    detect([np.zeros([size, size, 3], np.uint8)])  # tracing and the first run are not counted
    count, network_seconds, interrupted, start = 0, 0.0, False, time.perf_counter()
    with Writer(out, config["labels"]) as writer:
        try:
            for batch in _batches(media.frames(arguments, on_unreadable), batch_size):
                found, seconds = detect([frame.image for frame in batch])
                network_seconds += seconds
                for frame, detections in zip(batch, found):
                    writer.write(frame, detections)
                    count += 1
        except KeyboardInterrupt:
            interrupted = True
    return {"images": count, "unreadable": unreadable, "network_seconds": network_seconds,
            "seconds": time.perf_counter() - start, "interrupted": interrupted}


def _batches(stream, batch_size):
    batch = []
    for frame in stream:
        batch.append(frame)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def define_detection_flags():
    """Flags of what is kept as a detection, shared with export; `detection_options` reads them."""
    flags = cli.flags
    share = {"lower_bound": 0.0, "upper_bound": 1.0}
    flags.DEFINE_float("score_threshold", 0.25, "Detections must score higher.", **share)
    flags.DEFINE_float("iou_threshold", 0.45, "Of boxes that overlap more, the best is kept.", **share)
    flags.DEFINE_integer("max_detections", 100, "Detections kept in a picture.", lower_bound=1)
    flags.DEFINE_bool("class_agnostic", False, "One class per box; boxes suppress those of other classes.")


def detection_options(flags):
    """Keywords of `postprocess`."""
    names = ("score_threshold", "iou_threshold", "max_detections", "class_agnostic")
    return {name: flags[name].value for name in names}


def define_flags():
    cli.define_run_flag()
    define_detection_flags()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_string("weights", None, "Darknet weight file, instead of --run; needs --labels.")
    flags.DEFINE_string("labels", None, "Text file with one class name per line, for --weights.")
    flags.DEFINE_enum("model", None, list(MODELS), "Network of --weights; default: the one its length fits.")
    flags.DEFINE_integer("image_size", None, "Side of the network input, a multiple of 32; default: the "
                         "run's, or 416.", lower_bound=32)
    flags.DEFINE_string("bundle", None, "Exported bundle, instead of --run.")
    flags.DEFINE_string("out", "predictions", "Folder of the drawn pictures and of detections.jsonl.")
    flags.DEFINE_integer("batch_size", 1, "Pictures per run of the network.", lower_bound=1)
    flags.DEFINE_enum("runtime", "keras", RUNTIMES, "openvino is faster on Intel processors, and an extra.")
    flags.DEFINE_enum("precision", "float32", PRECISIONS, "Arithmetic under --runtime keras; bfloat16 is "
                      "faster on processors with amx_bf16 or avx512_bf16 only.")


def load_flags(flags):
    """(network, config) that --run, --weights or --bundle stands for."""
    given = [name for name in ("run", "weights", "bundle") if flags[name].value]
    if len(given) != 1:
        came = " and ".join(given) or "none"
        raise UserError(f"Exactly one of --run, --weights and --bundle must be given; {came} came.")
    size = flags.image_size
    if size and size % 32:
        raise UserError(f"--image_size must be a multiple of 32; {size} came.")
    if flags.bundle:
        if size:
            raise UserError("--image_size is fixed in a bundle; leave it out, or give --run.")
        return bundle_network(flags.bundle, flags.runtime)
    precision = "mixed_bfloat16" if flags.precision == "bfloat16" and flags.runtime == "keras" else "float32"
    if flags.run:
        model, config = load_run(flags.run, flags.which, precision)
        config = {**config, "image_size": size or config["image_size"]}
    else:
        model, config = load_darknet(flags.weights, flags.labels, flags.model, size or 416, precision)
    return network(model, config["image_size"], flags.runtime), config


def main(args):
    flags = cli.FLAGS
    if not args:
        raise UserError(
            "Say what to look at: files, folders, globs, videos or a camera's number, e.g. photo.jpg"
        )
    infer, config = load_flags(flags)
    detect = make_detect(infer, config, **detection_options(flags))
    result = predict(args, detect, config, flags.out, batch_size=flags.batch_size,
                     report=functools.partial(print, file=sys.stderr))
    count, unreadable = result["images"], result["unreadable"]
    if not count and not result["interrupted"]:
        raise UserError(f"None of the {len(unreadable)} sources could be read; their names stand above.")
    if count:
        network_rate, rate = count / result["network_seconds"], count / result["seconds"]
        print(f"{count} images, {network_rate:.1f} per second in network and suppression, {rate:.1f} all in; "
              f"{len(unreadable)} unreadable")
        print(pathlib.Path(flags.out) / "detections.jsonl")
    if result["interrupted"]:
        raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(main, define_flags)
