"""From a data set to detection records, and from records to batches with the targets of the loss.

    python -m yolov1.preprocess --dataset chat_rat                       the article's words, made up
    python -m yolov1.preprocess --dataset mine --source folder           its label files, VOC or COCO layout
    python -m yolov1.preprocess --dataset chat_rat --export_labels out   records as the article's label files

Article, "Making a grid mathematically": a truth box belongs to the cell that its centre is in.
records -> parse -> warp to the network's input -> encode_batch -> batches. The article augments nothing.

B batch, N boxes, S side of the network input, h, w grid (a square), C classes.
"""

import functools
import math
import pathlib

import cv2
import numpy as np
import tensorflow as tf

from common import boxes, cli, detection, detection_data, detection_doctor, drawing, records
from common.errors import UserError
from yolov1 import label_files, words

KIND = detection.KIND  # of records


def encode_targets(boxes_xyxy, labels, grid, num_classes):
    """Targets of one picture: float32 [h * w, C + 5], packed (classes, x, y, w, h, obj).

    boxes_xyxy [N, 4] fractions of the picture; labels [N]; grid: cells on a side. x, y is the centre in cells from
    the picture's corner (the article's y_true), w, h are fractions of the picture. Of several boxes in a cell the
    first stays, as in Darknet. Boxes without area, and those with a label below 0 (crowds), are no truths.
    """
    boxes_xyxy, labels = tf.convert_to_tensor(boxes_xyxy), tf.convert_to_tensor(labels)
    return encode_batch(boxes_xyxy[None], labels[None], grid, num_classes)[0]


def encode_batch(boxes_xyxy, labels, grid, num_classes):
    """`encode_targets` of B pictures, [B, N, 4] and [B, N]: float32 [B, h * w, C + 5]."""
    centers, sizes = tf.split(boxes.to_cxcywh(boxes_xyxy), 2, axis=-1)
    position = centers * grid
    cell = tf.clip_by_value(tf.cast(tf.floor(position), tf.int32), 0, grid - 1)           # (column, row)
    index = cell[..., 1] * grid + cell[..., 0]                                            # [B, N]
    real = tf.reduce_all(sizes > 0, axis=-1) & (labels >= 0)
    same = (index[:, :, None] == index[:, None]) & real[:, None]                          # [B, N, N]
    earlier = tf.linalg.band_part(same, -1, 0) & ~tf.linalg.band_part(same, 0, 0)
    first = tf.where(real & ~tf.reduce_any(earlier, axis=-1))                             # [K, 2]
    values = tf.concat([tf.one_hot(labels, num_classes), position, sizes, tf.ones_like(sizes[..., :1])], axis=-1)
    place = tf.stack([tf.cast(first[:, 0], tf.int32), tf.gather_nd(index, first)], axis=-1)
    shape = [tf.shape(labels)[0], grid * grid, num_classes + 5]
    return tf.scatter_nd(place, tf.gather_nd(values, first), shape)


def training_dataset(folder, *, grid, image_size, num_classes, batch_size, seed, start_step=0,
                     global_batch_size=None, limit=0, num_workers=1, worker=0):
    """Endless batches for the loss: (images [B, S, S, 3] in 0..1, targets [B, h * w, C + 5], crowds_xyxy [B, N, 4]).

    Step k takes the examples k * global_batch_size onwards of the endless stream of epochs, so that training can
    start at any step; the order depends on (seed, epoch) alone. batch_size is a replica's.
    """
    global_batch_size = global_batch_size or batch_size
    per_epoch = records.count(folder, "train", limit=limit) // num_workers * num_workers
    start = divmod(start_step * global_batch_size, max(per_epoch, 1))
    stream = records.dataset(folder, "train", seed=seed, limit=limit, start=start, num_shards=num_workers,
                             shard_index=worker)

    def prepare(item):
        example = detection.parse(item["record"])
        image = boxes.warp(detection.decode_image(example["image_bytes"]), image_size)
        return image, example["boxes_xyxy"], detection_data.known_labels(example, num_classes)

    def encode(images, boxes_xyxy, labels):
        targets = encode_batch(boxes_xyxy, labels, grid, num_classes)
        crowds_xyxy = tf.where(labels[..., tf.newaxis] < 0, boxes_xyxy, 0.0)
        return images, tf.ensure_shape(targets, [batch_size, grid * grid, num_classes + 5]), crowds_xyxy

    dataset = stream.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.padded_batch(batch_size, ([image_size, image_size, 3], [None, 4], [None]), (0.0, 0.0, -1),
                                   drop_remainder=True)
    return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(folder, split, *, image_size, batch_size, global_batch_size=None, limit=0):
    """Batches for evaluation: warped, in the order of the records, each example once.

    See `detection_data.evaluation_dataset`.
    """
    return detection_data.evaluation_dataset(
        folder, split, boxes.warp, image_size=image_size, batch_size=batch_size,
        global_batch_size=global_batch_size, limit=limit)


def decode_targets(targets):
    """What the targets of one picture stand for: [(box_xyxy in fractions, label, cell (column, row))]."""
    targets = np.asarray(targets)
    grid = math.isqrt(len(targets))
    found = []
    for cell in np.flatnonzero(targets[:, -1] > 0):
        center, side = targets[cell, -5:-3] / grid, targets[cell, -3:-1]
        box_xyxy = np.concatenate([center - side / 2, center + side / 2])
        found.append((box_xyxy, int(targets[cell, :-5].argmax()), (int(cell) % grid, int(cell) // grid)))
    return found


def visualize(folder, split, path, *, labels, grid, image_size, seed=0, count=12):
    """Writes a PNG of `count` records, the grid, and their targets decoded back to boxes, named by class and cell.

    Returns (objects, targets).
    """
    pictures, objects, targets, scale = [], 0, 0, max(1, round(320 / image_size))
    for item in records.dataset(folder, split, seed=seed, epochs=1).take(count):
        example = detection.parse(item["record"])
        image = boxes.warp(detection.decode_image(example["image_bytes"]), image_size).numpy()
        truths = tf.where(example["is_crowd"], -1, example["labels"])
        decoded = decode_targets(encode_targets(example["boxes_xyxy"], truths, grid, len(labels)))
        side = image_size * scale
        pixels = cv2.resize(np.rint(image * 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        for line in range(1, grid):
            pixels[line * side // grid, :] = pixels[:, line * side // grid] = 128
        names = [f"{labels[label]} ({column},{row})" for _, label, (column, row) in decoded]
        boxes_xyxy = np.reshape([box for box, *_ in decoded], [-1, 4]) * side
        class_ids = [label for _, label, _ in decoded]
        pictures.append(drawing.draw_boxes(pixels, boxes_xyxy, names, class_ids=class_ids))
        objects, targets = objects + int(tf.math.count_nonzero(truths >= 0)), targets + len(decoded)
    drawing.write_png(path, drawing.grid(pictures))
    return objects, targets


def crowded(contents, grid):
    """How many objects share their cell with another, so that YOLO cannot learn them, in words.

    contents: {split: `detection_doctor.Contents`}.
    """
    lines = []
    for split, part in contents.items():
        boxes_xyxy, picture = part.boxes_xyxy[~part.is_crowd], part.picture[~part.is_crowd]
        centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        cells = np.clip(np.nan_to_num(centers) * grid, 0, grid - 1).astype(int)
        lost = len(picture) - len(np.unique(np.concatenate([picture[:, None], cells], axis=1), axis=0))
        lines.append(f"{split}: {lost} of {len(picture)} objects ({lost / max(len(picture), 1):.1%}) have another one "
                     f"in their cell at --grid {grid} and are not learnt")
    return "\n".join(lines)


def find(name, source=None, labels=None, *, seed=0, size=64, grid=2):
    """The `detection.Source` that the article has of its own: its made-up words, or its label files; else None."""
    if name == words.NAME and source is not None:
        raise UserError(f"--dataset {name} is made up and takes no --source. Give your own set another name.")
    if name == words.NAME:
        return words.source(seed=seed, size=size, grid=grid, words=labels or words.LABELS)
    if source is not None and pathlib.Path(source).is_dir() and label_files.find_layout(source)[0]:
        return label_files.source(source, name, labels)
    return None


def ensure_records(name):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once."""
    return detection_data.ensure_records("yolov1", name, find=find)


def command(name):
    """The command line that builds the record set `name`."""
    if pathlib.Path(name).name == words.NAME:
        return f"python -m yolov1.preprocess --dataset {words.NAME}"
    return detection_data.command("yolov1", name)


def define_flags():
    detection_data.define_flags()
    flags = cli.flags
    flags.DEFINE_integer("grid", 2, "Cells on a side of the picture.", lower_bound=1)
    flags.DEFINE_integer("image_size", 64, "Side of made-up pictures, and of the network input.", lower_bound=16)
    flags.DEFINE_integer("seed", 0, "Seed of made-up pictures and of those that are drawn.", lower_bound=0)
    flags.DEFINE_string("export_labels", None, "Folder for the records as pictures and the article's label files.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    own = functools.partial(find, seed=flags.seed, size=flags.image_size, grid=flags.grid)
    folder = detection_data.build_or_find(flags, flags.check or flags.visualize or flags.export_labels, find=own)
    if flags.check:
        findings = detection_doctor.examine(folder, progress=True)
        print(detection_doctor.describe(findings))
        print(crowded(findings.contents, flags.grid))
    if flags.visualize:
        path = folder / "targets.png"
        split, labels = detection_data.split_to_draw(folder)
        objects, targets = visualize(folder, split, path, labels=labels, grid=flags.grid,
                                     image_size=flags.image_size, seed=flags.seed)
        print(f"{path}: {targets} of {objects} objects have a cell of their own")
    if flags.export_labels:
        counts = label_files.export(folder, flags.export_labels, flags.grid)
        print(f"{flags.export_labels}: {counts['pictures']} pictures with their label files, "
              f"{counts['objects']} objects")
        for what, became in (("difficult", "like all others there"), ("crowds", "left out")):
            if counts[what]:
                print(f"note: {counts[what]} {what}: the format has none, they are {became}.")
    if flags.check:
        detection_doctor.require_sound(findings)


if __name__ == "__main__":
    cli.run(main, define_flags)
