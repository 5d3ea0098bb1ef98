"""Poses in pictures, folders, videos and cameras: drawn skeletons, JSON lines, persons per second.

    python -m hourglass.predict --run runs/hourglass/mpii photo.jpg folder/ "more/*.png" video.mp4 0
    python -m hourglass.predict --run runs/hourglass/mpii --detector serving/yolov3/1 street.jpg video.mp4
    python -m hourglass.predict --run runs/hourglass/mpii --boxes predictions/detections.jsonl street.jpg

The network sees one person at a time: the square on the middle of the person's box, its side 1.25 times the longer
side of the box, which is how evaluation crops. Without --detector and --boxes the whole picture is the box of one
person. Pictures are turned as their EXIF orientation says; boxes and joints are in pixels of the picture as shown.

N persons, B crops, K joints, H, W picture, S side of the network input, h, w heatmap.
"""

import functools
import pathlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from common import boxes, cli, detection_predict, drawing, media, runtime, writer
from common.errors import UserError
from hourglass import crops, doctor, people, poses
from hourglass.model import MODELS
from hourglass.postprocess import postprocess

SHAPE = ("num_stacks", "filters", "order", "num_residual", "variant")  # of the network
KEYS = (*SHAPE, "image_size", "labels", "pairs", "skeleton", "metric")
MAX_SHRINK = 8  # as in `decoding.decode_reduced`


def build(config):
    """The network of a config.json with random weights."""
    return MODELS["hourglass"](len(config["labels"]), **{key: config[key] for key in SHAPE})


def load_run(folder, which="best", precision="float32"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError.

    precision: float32 or mixed_bfloat16, the arithmetic of the network whatever it was trained in.
    """
    with runtime.dtype_policy(precision):
        return runtime.read_run(folder, which, article="hourglass", keys=KEYS, build=build)


def last_stack(model):
    """The model without the heatmaps of all stacks but the last, which are there to be supervised."""
    return keras.Model(model.input, tf.nest.flatten(model.output)[-1])


def body_of(config):
    """The `poses.Body` of a config.json."""
    keys = ("labels", "pairs", "skeleton", "metric", "unpaired")
    return poses.Body(**{key: config[key] for key in keys if key in config})


def require_mirrors(body):
    """Raises UserError where a flip test would take a joint for its partner, because it is not known which that is."""
    if not body.mirrors:
        raise UserError(f"A flip test needs the partners of left and right joints, and {', '.join(body.unpaired)} "
                        "have none. Leave --flip_test out, or build the records with --pairs and train on them.")


# From a picture to crops, in the graph


def squares(boxes_xyxy):
    """float32 [N, 3]: `crops.square_around` of boxes [N, 4] with the margin of evaluation, in the graph."""
    left, top, right, bottom = tf.unstack(boxes_xyxy, axis=-1)
    side = crops.EVALUATION_MARGIN * tf.maximum(right - left, bottom - top)
    return tf.stack([(left + right - side) / 2, (top + bottom - side) / 2, side], axis=-1)


def to_picture(squares, size):
    """float32 [N, 2, 3]: `crops.to_picture` of squares [N, 3], in the graph."""
    left, top, side = tf.unstack(squares, axis=-1)
    zoom, zero = side / size, tf.zeros_like(side)
    return tf.stack([tf.stack([zoom, zero, left], -1), tf.stack([zero, zoom, top], -1)], axis=-2)


def crop(image, square, size):
    """float32 [S, S, 3] in 0..1: the square [3] of a picture uint8 [H, W, 3], grey beyond it; in the graph.

    As `crops.view` of a JPEG file: a square of more than twice the crop's side is averaged over blocks of 2, 4 or
    8 pixels first, and then sampled bilinearly. Without blocks it is `crops.warp` but for OpenCV's rounding: its
    weights are multiples of 1/32.
    """
    left, top, side = tf.unstack(square)
    zoom = side / size
    shrink = tf.cast(2 ** tf.reduce_sum(tf.cast(zoom >= [2.0, 4.0, MAX_SHRINK], tf.int32)), tf.float32)
    shape = tf.cast(tf.shape(image)[:2], tf.float32)

    def blocks(start, length):
        """(first, number of) blocks of an axis that the square needs: its own and one on each side."""
        last = tf.minimum(tf.math.ceil(length / shrink), tf.math.ceil((start + side) / shrink) + 1)
        first = tf.maximum(tf.floor(start / shrink) - 1, 0)
        return first, tf.maximum(last - first, 1)

    (first_y, rows), (first_x, columns) = blocks(top, shape[0]), blocks(left, shape[1])
    step = tf.cast(shrink, tf.int32)

    def pixels(first, count, length):
        """The indices of the blocks' pixels; the last block is filled up with the picture's last pixels."""
        start = tf.cast(first, tf.int32) * step
        return tf.minimum(tf.range(start, start + tf.cast(count, tf.int32) * step), tf.cast(length, tf.int32) - 1)

    region = tf.gather(image, pixels(first_y, rows, shape[0]))
    region = tf.gather(region, pixels(first_x, columns, shape[1]), axis=1)[None]
    size_of_blocks = tf.cast(tf.stack([rows, columns]), tf.int32)
    region = tf.cond(step > 1, lambda: tf.image.resize(region, size_of_blocks, method="area"),
                     lambda: tf.cast(region, tf.float32))
    zoom /= shrink
    # The operation counts from the middle of the first pixel.
    offset_x = (left - first_x * shrink) / shrink + (zoom - 1) / 2
    offset_y = (top - first_y * shrink) / shrink + (zoom - 1) / 2
    transform = tf.stack([zoom, 0.0, offset_x, 0.0, zoom, offset_y, 0.0, 0.0])
    found = tf.raw_ops.ImageProjectiveTransformV3(
        images=region, transforms=transform[None], output_shape=[size, size], fill_value=float(crops.GREY),
        interpolation="BILINEAR", fill_mode="CONSTANT")
    return tf.ensure_shape(found[0], [size, size, 3]) * (1 / 255)


def crop_all(image, boxes_xyxy, size):
    """(crops float32 [N, S, S, 3] in 0..1, `to_picture` float32 [N, 2, 3]) of boxes [N, 4] in a picture."""
    places = squares(boxes_xyxy)
    images = tf.map_fn(lambda square: crop(image, square, size), places,
                       fn_output_signature=tf.TensorSpec([size, size, 3], tf.float32))
    return images, to_picture(places, size)


def within(boxes_xyxy, height, width):
    """(boxes [..., N, 4] cut at the picture's border, bool [..., N]: whether anything is left of them)."""
    cut = boxes.clip(boxes_xyxy, height, width)
    return cut, tf.reduce_all(cut[..., 2:] > cut[..., :2], axis=-1)


# From crops to joints, in the graph


def with_mirrored(images, flip_test):
    """The network's input: images [B, S, S, 3], and behind them, for the flip test, their mirror images."""
    return tf.concat([images, images[:, :, ::-1]], axis=0) if flip_test else images


def joints_of(heatmaps, matrices, pairs, flip_test):
    """(joints_xy [B, K, 2] in pixels of the pictures, scores [B, K]) of the network's output for `with_mirrored`.

    matrices: `to_picture` of the crops, [B, 2, 3], or [1, 2, 3] for all of them.
    """
    flipped = None
    if flip_test:
        heatmaps, flipped = tf.split(heatmaps, 2)
    joints_xy, scores = postprocess(heatmaps, flipped, pairs)
    return tf.matmul(joints_xy, matrices[:, :, :2], transpose_b=True) + matrices[:, None, :, 2], scores


def make_pose(infer, config, *, flip_test=None, batch_size=16):
    """The function from a picture uint8 [H, W, 3] and boxes [N, 4] to its poses and the seconds they took.

    Poses: joints_xy [N, K, 2] in pixels of the picture, scores [N, K]; the seconds are those of the network and of
    finding the peaks alone. Boxes must have an area inside the picture. infer: function from images [B, S, S, 3]
    to the list of the last stack's heatmaps; batch_size: crops in a run of it, at most. flip_test None: as the bundle
    was exported whose config it is, else without.
    """
    flip_test = config.get("flip_test", False) if flip_test is None else flip_test
    if flip_test:
        require_mirrors(body_of(config))
    size, pairs, count = config["image_size"], config["pairs"], len(config["labels"])

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([None, 4], tf.float32)],
                 autograph=False)
    def cut(image, boxes_xyxy):
        images, matrices = crop_all(image, boxes_xyxy, size)
        return with_mirrored(images, flip_test), matrices

    @tf.function(reduce_retracing=True, autograph=False)
    def find(heatmaps, matrices):
        return joints_of(heatmaps, matrices, pairs, flip_test)

    def pose(image, boxes_xyxy):
        boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
        joints_xy, scores, seconds = [np.zeros([0, count, 2])], [np.zeros([0, count])], 0.0
        for first in range(0, len(boxes_xyxy), batch_size):
            images, matrices = cut(image, boxes_xyxy[first:first + batch_size])
            start = time.perf_counter()
            found = find(infer(images)[0], matrices)
            for collected, value in zip((joints_xy, scores), found):
                collected.append(value.numpy())
            seconds += time.perf_counter() - start
        return np.concatenate(joints_xy), np.concatenate(scores), seconds

    return pose


# From sources to files


def predict(arguments, pose, config, out, *, persons_of=people.whole_picture, joint_threshold=0.2, report=print):
    """Finds the poses in all sources and writes to `out`; says what cannot be read, and goes on.

    pose: of `make_pose`. persons_of: one of `people`. Joints that score less than joint_threshold are written but
    not drawn. Returns {"images", "persons", "unreadable" (names), "network_seconds", "seconds", "interrupted"}.
    Ctrl-C, which ends a camera, keeps what was found until then.
    """
    unreadable, body = [], body_of(config)
    colors = doctor.side_colors(body)

    def on_unreadable(name, reason):
        unreadable.append(name)
        report(f"unreadable: {name}: {reason}")

    size = config["image_size"]
    pose(np.zeros([size, size, 3], np.uint8), [[0, 0, size, size]])  # tracing and the first run are not counted
    images, count, network_seconds, interrupted, start = 0, 0, 0.0, False, time.perf_counter()
    with writer.Writer(out, "poses.jsonl", arguments) as written:
        try:
            for frame in media.frames(arguments, on_unreadable):
                persons = _in_picture(persons_of(frame), frame, report)
                joints_xy, scores, seconds = pose(frame.image, [person["box_xyxy"] for person in persons])
                network_seconds += seconds
                drawn = drawing.draw_skeletons(frame.image, joints_xy, scores, body.skeleton, colors=colors,
                                               threshold=joint_threshold)
                found = [{**person, "joints": _readable(body.labels, *values)}
                         for person, *values in zip(persons, joints_xy, scores)]
                written.write(frame, drawn, {"persons": found})
                images, count = images + 1, count + len(persons)
        except KeyboardInterrupt:
            interrupted = True
    return {"images": images, "persons": count, "unreadable": unreadable, "network_seconds": network_seconds,
            "seconds": time.perf_counter() - start, "interrupted": interrupted}


def _in_picture(persons, frame, report):
    """The persons with their boxes cut at the border; says how many have nothing inside."""
    boxes_xyxy = np.array([person["box_xyxy"] for person in persons], np.float32).reshape(-1, 4)
    cut, inside = (value.numpy() for value in within(boxes_xyxy, *frame.image.shape[:2]))
    if not inside.all():
        report(f"{frame.source} frame {frame.index}: {(~inside).sum()} boxes without area in the picture left out")
    return [{**person, "box_xyxy": [round(float(edge), 2) for edge in box]}
            for person, box, kept in zip(persons, cut, inside) if kept]


def _readable(labels, joints_xy, scores):
    return [{"name": name, "x": round(float(x), 2), "y": round(float(y), 2), "score": round(float(score), 5)}
            for name, (x, y), score in zip(labels, joints_xy, scores)]


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_string("bundle", None, "Exported bundle, instead of --run.")
    flags.DEFINE_string("out", "predictions", "Folder of the drawn pictures and of poses.jsonl.")
    flags.DEFINE_string("detector", None, "Exported bundle of a detector (yolov3, ssd) that finds the persons.")
    flags.DEFINE_string("boxes", None, f"File of the persons' boxes: {people.FORMATS}.")
    flags.DEFINE_string("detector_class", people.PERSON, "Class of the persons, for --detector and --boxes.")
    flags.DEFINE_float("score_threshold", 0.3, "Boxes of --detector and --boxes must score higher.",
                       lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_float("joint_threshold", 0.2, "Joints that score less are written, but not drawn.")
    flags.DEFINE_bool("flip_test", None, "Average with the mirrored picture: twice the work, a little better; "
                      "default: as a bundle was exported, else not.")
    flags.DEFINE_integer("batch_size", 16, "Persons of a picture per run of the network, at most.", lower_bound=1)
    flags.DEFINE_enum("runtime", "keras", runtime.RUNTIMES,
                      "openvino is faster on Intel processors, and an extra.")
    flags.DEFINE_enum("precision", "float32", runtime.PRECISIONS, "Arithmetic under --runtime keras; bfloat16 is "
                      "faster on processors with amx_bf16 or avx512_bf16 only.")


def load_network(flags):
    """(network, config) that --run or --bundle stands for."""
    detection_predict.require_one(flags, ["run", "bundle"])
    if flags.run:
        model, config = load_run(flags.run, flags.which, detection_predict.policy(flags))
        return runtime.network(last_stack(model), config["image_size"], flags.runtime), config
    return runtime.bundle_network(flags.bundle, flags.runtime, article="hourglass")


def load_persons(flags):
    """The function of `people` that --boxes or --detector stands for; the whole picture without them."""
    if flags.boxes and flags.detector:
        raise UserError("--boxes and --detector both say where the persons are; give one of them.")
    if flags.boxes:
        found = people.BoxesFile(flags.boxes, flags.detector_class, flags.score_threshold)
        print(found.describe())
        return found
    if flags.detector:
        return people.Detector(flags.detector, flags.detector_class, flags.score_threshold)
    return people.whole_picture


def main(args):
    flags = cli.FLAGS
    if not args:
        raise UserError(
            "Say what to look at: files, folders, globs, videos or a camera's number, e.g. photo.jpg"
        )
    infer, config = load_network(flags)
    persons_of = load_persons(flags)
    pose = make_pose(infer, config, flip_test=flags.flip_test, batch_size=flags.batch_size)
    result = predict(args, pose, config, flags.out, persons_of=persons_of, joint_threshold=flags.joint_threshold,
                     report=functools.partial(print, file=sys.stderr))
    images, persons, unreadable = result["images"], result["persons"], result["unreadable"]
    if not images and not result["interrupted"]:
        raise UserError(f"None of the {len(unreadable)} sources could be read; their names stand above.")
    unused = persons_of.unused if flags.boxes else []
    for source, frames in (persons_of.unknown if flags.boxes else {}).items():
        print(f"{flags.boxes} says nothing of {source}" + f", {frames} frames" * (frames > 1), file=sys.stderr)
    if unused:
        print(f"{flags.boxes} has boxes of {len(unused)} files that were not looked at: "
              f"{', '.join(unused[:5])}{', ...' if len(unused) > 5 else ''}", file=sys.stderr)
    if images:
        rate = persons / result["network_seconds"] if persons else 0.0
        print(f"{persons} persons in {images} images, {rate:.1f} persons per second in the network, "
              f"{images / result['seconds']:.1f} images all in; {len(unreadable)} unreadable")
        print(pathlib.Path(flags.out) / "poses.jsonl")
    if result["interrupted"]:
        raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(main, define_flags)
