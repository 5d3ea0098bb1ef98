"""Detections in pictures, folders, videos and cameras: what every article's predict.py has around its own network.

Pictures are turned as their EXIF orientation says; boxes are (left, top, right, bottom) in pixels of the
picture as shown. B batch, S side of the network input.
"""

import functools
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf

from common import cli, drawing, media, runtime, writer
from common.errors import UserError


def make_detect(infer, config, geometry, find):
    """The function from a list of uint8 RGB pictures of any sizes to (detections of each, seconds).

    infer: function from images [B, S, S, 3] to the list of the network's outputs; geometry: a `boxes.Geometry`;
    find: function from that list to detections of `nms` with boxes in fractions of the network input.
    Detections of a picture: list of {"label", "score", "box_xyxy" (pixels of the picture)}, best first. The
    seconds are those of network and suppression alone.
    """
    size, labels = config["image_size"], config["labels"]

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)], autograph=False)
    def to_input(image):
        return geometry.to_input(image, size)

    @tf.function(reduce_retracing=True, autograph=False)
    def suppress(outputs, height, width):
        found = find(outputs)
        return {**found, "boxes": geometry.to_pixels(found["boxes"], height, width, size)}

    def detect(pictures):
        images = tf.stack([to_input(picture) for picture in pictures])
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


class Writer(writer.Writer):
    """Drawn pictures and videos and detections.jsonl in a folder; use it with `with`."""

    def __init__(self, folder, labels, arguments):
        super().__init__(folder, "detections.jsonl", arguments)
        self.labels = labels

    def write(self, frame, detections):
        """Draws the detections of one frame and appends its line."""
        boxes_xyxy = [found["box_xyxy"] for found in detections]
        labels = [found["label"] for found in detections]
        scores = [found["score"] for found in detections]
        ids = [self.labels.index(label) for label in labels]
        drawn = drawing.draw_boxes(frame.image, boxes_xyxy, labels, scores, ids)
        super().write(frame, drawn, {"detections": detections})


def predict(arguments, detect, config, out, *, batch_size=1, max_detections=None, report=print):
    """Detects in all sources and writes to `out`; says what cannot be read, and goes on.

    max_detections: what `detect` keeps of a picture, None where that is not to be said. Returns {"images", "unreadable"
    (names), "full": images with that many detections, "network_seconds", "seconds", "interrupted"}. Ctrl-C, which ends
    a camera, keeps what was detected until then.
    """
    unreadable, full = [], 0

    def on_unreadable(name, reason):
        unreadable.append(name)
        report(f"unreadable: {name}: {reason}")

    size = config["image_size"]
    detect([np.zeros([size, size, 3], np.uint8)])  # tracing and the first run are not counted
    count, network_seconds, interrupted, start = 0, 0.0, False, time.perf_counter()
    with Writer(out, config["labels"], arguments) as written:
        try:
            for batch in _batches(media.frames(arguments, on_unreadable), batch_size):
                found, seconds = detect([frame.image for frame in batch])
                network_seconds += seconds
                for frame, detections in zip(batch, found):
                    written.write(frame, detections)
                    count, full = count + 1, full + (len(detections) == max_detections)
        except KeyboardInterrupt:
            interrupted = True
    return {"images": count, "unreadable": unreadable, "full": full, "network_seconds": network_seconds,
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


def define_detection_flags(score_threshold, iou_threshold, max_detections):
    """Flags of what is kept as a detection, with the article's defaults; `detection_options` reads them."""
    flags = cli.flags
    share = {"lower_bound": 0.0, "upper_bound": 1.0}
    flags.DEFINE_float("score_threshold", score_threshold, "Detections must score higher.", **share)
    flags.DEFINE_float("iou_threshold", iou_threshold, "Of boxes that overlap more, the best is kept.", **share)
    flags.DEFINE_integer("max_detections", max_detections, "Detections kept in a picture.", lower_bound=1)
    flags.DEFINE_bool("class_agnostic", False, "One class per box; boxes suppress those of other classes.")


def detection_options(flags):
    """Keywords of an article's `postprocess`."""
    names = ("score_threshold", "iou_threshold", "max_detections", "class_agnostic")
    return {name: flags[name].value for name in names}


def define_flags():
    """The flags of every detector's predict.py, besides those of what is kept."""
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_string("bundle", None, "Exported bundle, instead of --run.")
    flags.DEFINE_string("out", "predictions", "Folder of the drawn pictures and of detections.jsonl.")
    flags.DEFINE_integer("batch_size", 1, "Pictures per run of the network.", lower_bound=1)
    flags.DEFINE_enum("runtime", "keras", runtime.RUNTIMES,
                      "openvino is faster on Intel processors, and an extra.")
    flags.DEFINE_enum("precision", "float32", runtime.PRECISIONS, "Arithmetic under --runtime keras; bfloat16 is "
                      "faster on processors with amx_bf16 or avx512_bf16 only.")


def require_one(flags, names):
    """Raises UserError unless exactly one of the flags is given: a run, a bundle, ..."""
    given = [name for name in names if flags[name].value]
    if len(given) != 1:
        *first, last = [f"--{name}" for name in names]
        raise UserError(f"Exactly one of {', '.join(first)} and {last} must be given; "
                        f"{' and '.join(given) or 'none'} came.")


def policy(flags):
    """The Keras policy that --precision and --runtime stand for."""
    return "mixed_bfloat16" if flags.precision == "bfloat16" and flags.runtime == "keras" else "float32"


def run(args, load, flags):
    """What predict.py does with its command line: detects in the sources `args`, writes, says how fast.

    load: function from the flags to (detect, config), see `make_detect`.
    """
    if not args:
        raise UserError(
            "Say what to look at: files, folders, globs, videos or a camera's number, e.g. photo.jpg"
        )
    detect, config = load(flags)
    result = predict(args, detect, config, flags.out, batch_size=flags.batch_size, max_detections=flags.max_detections,
                     report=functools.partial(print, file=sys.stderr))
    count, unreadable = result["images"], result["unreadable"]
    if result["full"]:
        print(f"note: {result['full']} of {count} images have the {flags.max_detections} detections that "
              "--max_detections keeps, and may have more. Give more to see them.", file=sys.stderr)
    if not count and not result["interrupted"]:
        raise UserError(f"None of the {len(unreadable)} sources could be read; their names stand above.")
    if count:
        network_rate, rate = count / result["network_seconds"], count / result["seconds"]
        print(f"{count} images, {network_rate:.1f} per second in network and suppression, {rate:.1f} all in; "
              f"{len(unreadable)} unreadable")
        print(pathlib.Path(flags.out) / "detections.jsonl")
    if result["interrupted"]:
        raise KeyboardInterrupt
