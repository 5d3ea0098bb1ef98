"""From a data set to detection records, and from records to batches with the targets of the loss.

    python -m yolov3.preprocess --dataset voc2007 --source VOCdevkit        builds tfrecords/voc2007
    python -m yolov3.preprocess --dataset voc2007 --check --kmeans --visualize

Article, "Preprocessing": every truth box goes to the scale and anchor that fit it best, and to the cell its
centre is in. records -> parse -> augment (training) or letterbox (evaluation) -> encode_targets -> batches.

H, W picture, h, w grid, A anchors per scale, N boxes, C classes, S side of the network input.
"""

import shlex

import numpy as np
import tensorflow as tf

from common import boxes, cli, decoding, detection, detection_data, detection_doctor, drawing, records
from common.errors import UserError
from yolov3 import augment, darknet_cfg, doctor
from yolov3.model import DEFAULT_ANCHORS, STRIDES

KIND = detection.KIND        # of records
MULTI_SCALE = (0.75, 1.5)    # side of the network input in multi-scale training, as a share of image_size
STEPS_PER_SIZE = 10          # Darknet draws another size every ten batches


def encode_targets(boxes_xyxy, labels, anchors, strides, size, num_classes):
    """Truth grids of one picture: over scales float32 [h, w, A, 5 + C], packed (x, y, w, h, obj, classes).

    boxes_xyxy [N, 4] fractions of the network input; anchors [scales, A, 2] in its pixels. x, y is the offset
    in the cell, w, h is log(box / anchor) (paper, sec. 2.1, inverted). The best of all anchors is the one
    whose shape overlaps most on a common centre (article, "Preprocessing"). Of two boxes in one cell and
    anchor the later stays, with the classes of both, as in Darknet. Boxes without area, and those with a
    label below 0 (crowds), are no truths.
    """
    boxes_xyxy, labels = tf.convert_to_tensor(boxes_xyxy), tf.convert_to_tensor(labels)
    grids = encode_batch(boxes_xyxy[None], labels[None], anchors, strides, size, num_classes)
    return tuple(grid[0] for grid in grids)


def encode_batch(boxes_xyxy, labels, anchors, strides, size, num_classes):
    """`encode_targets` of B pictures, [B, N, 4] and [B, N]: over scales float32 [B, h, w, A, 5 + C]."""
    anchors = tf.convert_to_tensor(anchors, tf.float32)
    num_anchors, cells = anchors.shape[1], [size // stride for stride in strides]
    all_anchors = tf.reshape(anchors, [-1, 2])
    centers, sizes = tf.split(boxes.to_cxcywh(boxes_xyxy), 2, axis=-1)
    sizes *= tf.cast(size, tf.float32)                                                    # [B, N, 2] pixels
    best = tf.argmax(boxes.shape_iou(sizes, all_anchors), axis=-1, output_type=tf.int32)
    scale = best // num_anchors

    side = tf.gather(tf.stack(cells), scale)[..., None]                                   # [B, N, 1] cells
    position = centers * tf.cast(side, tf.float32)
    cell = tf.clip_by_value(tf.cast(tf.floor(position), tf.int32), 0, side - 1)           # (column, row)
    index = tf.stack([scale, cell[..., 1], cell[..., 0], best % num_anchors], axis=-1)    # [B, N, 4]
    real = tf.reduce_all(sizes > 0, axis=-1) & (labels >= 0)
    same = tf.reduce_all(index[:, :, None] == index[:, None], axis=-1) & real[:, None]    # [B, N, N]
    later = tf.linalg.band_part(same, 0, -1) & ~tf.linalg.band_part(same, 0, 0)
    last = real & ~tf.reduce_any(later, axis=-1)
    classes = tf.minimum(tf.cast(same, tf.float32) @ tf.one_hot(labels, num_classes), 1.0)
    log_sizes = tf.math.log(tf.maximum(sizes, 1e-6) / tf.gather(all_anchors, best))
    offsets = position - tf.cast(cell, tf.float32)
    values = tf.concat([offsets, log_sizes, tf.ones_like(log_sizes[..., :1]), classes], axis=-1)
    grids = []
    for number, side in enumerate(cells):
        here = tf.where(last & (scale == number))                                         # [K, 2]
        at = tf.concat([tf.cast(here[:, :1], tf.int32), tf.gather_nd(index, here)[:, 1:]], axis=-1)
        shape = [tf.shape(labels)[0], side, side, num_anchors, 5 + num_classes]
        grids.append(tf.scatter_nd(at, tf.gather_nd(values, here), shape))
    return grids


def training_dataset(folder, *, anchors, strides, image_size, num_classes, batch_size, seed, augmented=True,
                     start_step=0, global_batch_size=None, limit=0, multi_scale=False, num_workers=1,
                     worker=0):
    """Endless batches for the loss: (images uint8 [B, S, S, 3], {"boxes_xyxy": [B, N, 4], "is_crowd": [B, N],
    "grids": [...]}).

    Pictures stay bytes, a quarter of what floats take to the device; the step makes floats of them.
    Step k takes the examples k * global_batch_size onwards of the endless stream of epochs, so that training
    can start at any step; order and augmentation depend on (seed, epoch, index) alone. batch_size is a
    replica's.
    """
    global_batch_size = global_batch_size or batch_size
    per_epoch = records.count(folder, "train", limit=limit) // num_workers * num_workers
    start = divmod(start_step * global_batch_size, max(per_epoch, 1))
    stream = records.dataset(folder, "train", seed=seed, limit=limit, start=start, num_shards=num_workers,
                             shard_index=worker)
    sizes = multi_scale_sizes(image_size) if multi_scale else [image_size]

    def prepare(batch):
        example = detection.parse_batch(batch["record"])
        # A crowd is not learnt as one object; its box stays, so that what lies in it is not learnt as background.
        labels = detection_data.known_labels(example, num_classes)
        # Every example of a step gets the size that belongs to the step, on whichever replica it lands.
        step = (batch["epoch"][0] * per_epoch + batch["index"][0]) // global_batch_size
        draw = tf.random.stateless_uniform([], [seed, step // STEPS_PER_SIZE], 0, len(sizes), tf.int32)
        size = tf.constant(sizes)[draw] if multi_scale else image_size
        # One call for the whole batch: OpenCV leaves Python's lock, and several batches are on their way.
        images, boxes_xyxy, labels = tf.numpy_function(
            lambda *arrays: _training_pictures(*arrays, seed, augmented),
            [example["image_bytes"], example["filename"], example["boxes_xyxy"], labels, batch["epoch"],
             batch["index"], size], (tf.uint8, tf.float32, tf.int32), stateful=False)
        boxes_xyxy = tf.ensure_shape(boxes_xyxy, [batch_size, None, 4])
        labels = tf.ensure_shape(labels, [batch_size, None])
        grids = encode_batch(boxes_xyxy, labels, anchors, strides, size, num_classes)
        grids = [tf.ensure_shape(grid, [batch_size] + shape) for grid, shape in zip(grids, grid_shapes)]
        images = tf.ensure_shape(images, [batch_size, side, side, 3])
        is_crowd = (labels < 0) & tf.reduce_any(boxes_xyxy > 0, axis=-1)
        return images, {"boxes_xyxy": boxes_xyxy, "is_crowd": is_crowd, "grids": tuple(grids)}

    side = None if multi_scale else image_size
    grid_shapes = [[side and side // stride] * 2 + [len(anchors[0]), 5 + num_classes] for stride in strides]
    dataset = stream.batch(batch_size, drop_remainder=True).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _training_pictures(image_bytes, filenames, boxes_xyxy, labels, epoch, index, size, seed, augmented):
    """(images uint8 [B, S, S, 3], boxes_xyxy float32 [B, N, 4] in fractions of them, labels int32 [B, N])."""
    images = np.empty([len(image_bytes), size, size, 3], np.uint8)
    placed_xyxy, kept_labels = np.zeros_like(boxes_xyxy), np.full_like(labels, -1)
    for i, (data, filename) in enumerate(zip(image_bytes, filenames)):
        real = boxes_xyxy[i].any(axis=-1)
        image, truth, known = decoding.decode(data, filename), boxes_xyxy[i][real], labels[i][real]
        if augmented:
            rng = np.random.default_rng([seed, epoch[i], index[i]])
            truth, known = augment.augment(image, truth, known, rng, images[i])
        else:
            truth = augment.letterbox(image, truth, images[i])
        placed_xyxy[i, :len(truth)], kept_labels[i, :len(known)] = truth, known
    return images, placed_xyxy, kept_labels


def evaluation_dataset(folder, split, *, image_size, batch_size, global_batch_size=None, limit=0):
    """Batches for evaluation: letterboxed, in the order of the records, not augmented, each example once.

    See `detection_data.evaluation_dataset`.
    """
    return detection_data.evaluation_dataset(
        folder, split, boxes.letterbox, image_size=image_size, batch_size=batch_size,
        global_batch_size=global_batch_size, limit=limit)


def multi_scale_sizes(image_size):
    """Multiples of 32 around image_size (Darknet: 320 to 608 for 416)."""
    low, high = (image_size * share / 32 for share in MULTI_SCALE)
    return [32 * size for size in range(max(round(low), 1), int(high) + 1)]


def decode_targets(grids, anchors, size):
    """What the grids of one picture stand for: [(box_xyxy in fractions, labels, scale, anchor)]."""
    found = []
    for scale, grid in enumerate(grids):
        grid = np.asarray(grid)
        for row, column, anchor in np.argwhere(grid[..., 4] > 0):
            values = grid[row, column, anchor]
            center = (values[0:2] + [column, row]) / grid.shape[1::-1]
            sides = np.exp(values[2:4]) * anchors[scale][anchor] / size
            box_xyxy = np.concatenate([center - sides / 2, center + sides / 2])
            found.append((box_xyxy, np.flatnonzero(values[5:]), scale, anchor))
    return found


def visualize(folder, split, path, *, labels, anchors, strides, image_size, seed=0, count=12):
    """Writes a PNG of `count` records after augmentation, with their targets decoded back to boxes.

    Article, "Preprocessing": look at your ground truth after all of the preprocessing. A box is named by its
    class, stride and anchor. Returns (objects before augmentation, after it, targets).
    """
    pictures, before, after, targets = [], 0, 0, 0
    for item in records.dataset(folder, split, seed=seed, epochs=1).take(count):
        example = {key: value.numpy() for key, value in detection.parse(item["record"]).items()}
        rng = np.random.default_rng([seed, 0, item["index"].numpy()])
        picture = decoding.decode(example["image_bytes"], example["filename"])
        image = np.empty([image_size, image_size, 3], np.uint8)
        known = np.where(example["is_crowd"], -1, example["labels"])
        truth, classes = augment.augment(picture, example["boxes_xyxy"], known, rng, image)
        grids = encode_targets(truth, classes, anchors, strides, image_size, len(labels))
        decoded = decode_targets(grids, anchors, image_size)
        names = [f"{'+'.join(labels[i] for i in ids)} /{strides[scale]} {anchors[scale][anchor][0]:g}x"
                 f"{anchors[scale][anchor][1]:g}" for _, ids, scale, anchor in decoded]
        boxes_xyxy = np.reshape([box for box, *_ in decoded], [-1, 4]) * image_size
        colors = [ids[0] for _, ids, *_ in decoded]
        pictures.append(drawing.draw_boxes(image, boxes_xyxy, names, class_ids=colors))
        before, after, targets = before + np.sum(known >= 0), after + np.sum(classes >= 0), targets + len(decoded)
    drawing.write_png(path, drawing.grid(pictures))
    return before, after, targets


def ensure_records(name):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once."""
    return detection_data.ensure_records("yolov3", name)


def command(name):
    """The command line that builds the record set `name`."""
    return detection_data.command("yolov3", name)


def define_flags():
    detection_data.define_flags()
    flags = cli.flags
    flags.DEFINE_bool("kmeans", False, "Look for anchors for this data set.")
    flags.DEFINE_enum("model", "yolov3", list(DEFAULT_ANCHORS), "Network whose anchors are looked at.")
    flags.DEFINE_integer("image_size", 416, "Side of the network input, a multiple of 32.", lower_bound=32)
    flags.DEFINE_integer("seed", 0, "Seed of made-up pictures, k-means and drawn augmentation.", lower_bound=0)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if flags.image_size % 32:
        raise UserError(f"--image_size must be a multiple of 32; {flags.image_size} came.")
    folder = detection_data.build_or_find(flags, flags.check or flags.kmeans or flags.visualize)
    look(folder, flags)


def look(folder, flags):
    """The doctor (--check), k-means (--kmeans) and pictures (--visualize) of a record set."""
    anchors, strides = DEFAULT_ANCHORS[flags.model], STRIDES[flags.model]
    if flags.check or flags.kmeans:
        findings = detection_doctor.examine(folder, decode=flags.check, progress=True)
    if flags.check:
        print(detection_doctor.describe(findings))
        print(doctor.describe(findings.contents, anchors, strides, flags.image_size))
    if flags.kmeans:
        parts = findings.contents.values()                                 # article: over the whole data set
        found = doctor.find_anchors(parts, *anchors.shape[:2], flags.image_size, seed=flags.seed)
        print(doctor.compare_anchors(parts, anchors, found, flags.image_size))
        name = shlex.quote(flags.out or flags.dataset)
        print(f"python -m yolov3.train --tfrecords {name} --model {flags.model} --image_size "
              f'{flags.image_size} --anchors "{darknet_cfg.text_of(found)}"')
    if flags.visualize:
        path = folder / "targets.png"
        split, labels = detection_data.split_to_draw(folder)
        before, after, targets = visualize(folder, split, path, labels=labels, anchors=anchors,
                                           strides=strides, image_size=flags.image_size, seed=flags.seed)
        print(f"{path}: of {before} objects {after} are in view after augmentation, {targets} of them "
              "have a cell and anchor")
    if flags.check:
        detection_doctor.require_sound(findings)


if __name__ == "__main__":
    cli.run(main, define_flags)
