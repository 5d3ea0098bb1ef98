"""From a data set to detection records, and from records to batches with the targets of the loss.

    python -m yolov3.preprocess --dataset voc2007 --source VOCdevkit        builds tfrecords/voc2007
    python -m yolov3.preprocess --dataset voc2007 --check --kmeans --visualize

Article, "Preprocessing": every truth box goes to the scale and anchor that fit it best, and to the cell its
centre is in. records -> parse -> augment (training) or letterbox (evaluation) -> encode_targets -> batches.

H, W picture, h, w grid, A anchors per scale, N boxes, C classes, S side of the network input.
"""

import shlex

import cv2
import numpy as np
import tensorflow as tf

from common import boxes, cli, detection, detection_data, detection_doctor, drawing, records
from common.errors import UserError
from yolov3 import doctor
from yolov3.model import DEFAULT_ANCHORS, STRIDES

KIND = detection.KIND        # of records
SCALE_RANGE = (0.6, 1.6)     # size of the picture in the network input, 1 fits it in
ASPECT_JITTER = 1.3          # largest change of width against height
MIN_VISIBLE = 0.25           # share of a box that must stay in view for it to stay a truth
MULTI_SCALE = (0.75, 1.5)    # side of the network input in multi-scale training, as a share of image_size
STEPS_PER_SIZE = 10          # Darknet draws another size every ten batches


def parse(record, decode=True):
    """One record as a dict: `detection.parse`, and "image" uint8 [H, W, 3] of the true size."""
    example = detection.parse(record)
    if decode:
        example["image"] = detection.decode_image(example["image_bytes"])
    return example


def augment(image, boxes_xyxy, labels, seed, size):
    """Random zoom, shift, stretch, flip and colour; boxes follow the pixels.

    image uint8 [H, W, 3]; boxes_xyxy [N, 4] fractions; labels [N]; seed int [2]. The same seed gives the same
    result. Returns image float32 [S, S, 3] in 0..1, boxes_xyxy in fractions of it, clipped, and the labels of
    those that stay.
    """
    image, boxes_xyxy, labels = augment_bytes(image, boxes_xyxy, labels, seed, size)
    return as_floats(image), boxes_xyxy, labels


def as_floats(images):
    """uint8 as float32 in 0..1; floats as they are."""
    return images if images.dtype == tf.float32 else tf.cast(images, tf.float32) * (1 / 255)


def augment_bytes(image, boxes_xyxy, labels, seed, size):
    """`augment` with a uint8 image: a quarter of the bytes to copy until a batch is complete."""
    draws = tf.random.stateless_uniform([8], seed)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    side = tf.cast(size, tf.float32)

    low, high = (tf.math.log(bound) for bound in SCALE_RANGE)
    scale = tf.exp(low + draws[0] * (high - low)) * side / tf.maximum(height, width)
    stretch = tf.exp((draws[1] - 0.5) * tf.math.log(ASPECT_JITTER))
    scale_x, scale_y = scale * stretch, scale / stretch                     # network pixels per picture pixel
    left = draws[2] * (side - width * scale_x)                        # of the picture in the network input
    top = draws[3] * (side - height * scale_y)
    flip = draws[4] < 0.5

    image = place_bytes(image, left, top, scale_x, scale_y, flip, size, color_matrix(draws[5:]))
    moved = boxes_xyxy * tf.stack([width * scale_x, height * scale_y] * 2) + tf.stack([left, top] * 2)
    moved /= side
    x1, y1, x2, y2 = tf.unstack(moved, axis=-1)
    moved = tf.where(flip, tf.stack([1 - x2, y1, 1 - x1, y2], axis=-1), moved)
    visible = boxes.clip(moved)
    stay = boxes.area(visible) > MIN_VISIBLE * boxes.area(moved)
    return image, tf.boolean_mask(visible, stay), tf.boolean_mask(labels, stay)


def place(image, left, top, scale_x, scale_y, flip, size):
    """The picture, scaled, with its corner at (left, top) of a grey square of side `size`, perhaps flipped.

    image uint8 [H, W, 3]. Returns float32 [S, S, 3] in 0..1.
    """
    return as_floats(place_bytes(image, left, top, scale_x, scale_y, flip, size, tf.eye(3)))


def place_bytes(image, left, top, scale_x, scale_y, flip, size, colors):
    """`place` with a uint8 result [S, S, 3], its pixels multiplied by the 3x3 matrix `colors`.

    One bilinear resampling does it all, in OpenCV: TensorFlow's crop_and_resize takes six times as long.
    """
    shift_x, shift_y = left + (scale_x - 1) / 2, top + (scale_y - 1) / 2    # between pixel centres
    mirrored = tf.cast(size, tf.float32) - 1 - shift_x
    scale_x, shift_x = tf.where(flip, -scale_x, scale_x), tf.where(flip, mirrored, shift_x)
    transform = tf.reshape(tf.stack([scale_x, 0.0, shift_x, 0.0, scale_y, shift_y]), [2, 3])
    placed = tf.numpy_function(_place, [image, transform, colors, size], tf.uint8, stateful=False)
    side = tf.get_static_value(size)    # None where the size is drawn in the graph
    return tf.ensure_shape(placed, [side, side, 3])


def _place(image, transform, colors, size):
    step = max(image.shape[:2]) // 32767 + 1  # OpenCV takes shorter sides than that
    image, transform = np.ascontiguousarray(image[::step, ::step]), transform * np.float32([step, step, 1])
    sides = int(size), int(size)
    placed = cv2.warpAffine(image, transform, sides, flags=cv2.INTER_LINEAR, borderValue=(128, 128, 128))
    return cv2.transform(placed, colors)


def color_matrix(draws):
    """The 3x3 matrix that changes exposure, saturation and hue of an RGB pixel; draws [3] in 0..1.

    In the luma-chroma plane (Y'IQ) saturation is a scaling and hue a rotation, so that a 3x3 matrix does what
    Darknet does in HSV, in a tenth of the time. Exposure and saturation up to 1.5 either way, as
    in yolov3.cfg; hue up to 0.05 of a turn, half of what stands there.
    """
    exposure = tf.exp((2 * draws[0] - 1) * tf.math.log(1.5))
    saturation = tf.exp((2 * draws[1] - 1) * tf.math.log(1.5))
    angle = (2 * draws[2] - 1) * 0.1 * 3.14159265
    cos, sin = saturation * tf.cos(angle), saturation * tf.sin(angle)
    turn = tf.stack([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]],
                      np.float32)
    return exposure * np.linalg.inv(to_yiq) @ tf.cast(turn, tf.float32) @ to_yiq


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
    """Endless batches (images [B, S, S, 3], {"boxes_xyxy": [B, N, 4], "grids": [...]}) for the loss.

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

    def prepare(item):
        example = parse(item["record"])
        # A crowd is not learnt as one object; its box stays, so that the ignore mask spares its members.
        example["labels"] = tf.where(example["is_crowd"], -1, example["labels"])
        # Every example of a step gets the size that belongs to the step, on whichever replica it lands.
        step = (item["epoch"] * per_epoch + item["index"]) // global_batch_size
        draw = tf.random.stateless_uniform([], [seed, step // STEPS_PER_SIZE], 0, len(sizes), tf.int32)
        size = tf.constant(sizes)[draw] if multi_scale else image_size
        if not augmented:
            return letterboxed(example, size)
        item_seed = tf.stack([tf.cast(seed, tf.int64) * 1_000_003 + item["epoch"], item["index"]])
        return augment_bytes(example["image"], example["boxes_xyxy"], example["labels"], item_seed, size)

    def encode(images, boxes_xyxy, labels):
        size = tf.shape(images)[1] if multi_scale else image_size
        grids = encode_batch(boxes_xyxy, labels, anchors, strides, size, num_classes)
        grids = [tf.ensure_shape(grid, [batch_size] + shape) for grid, shape in zip(grids, grid_shapes)]
        return as_floats(images), {"boxes_xyxy": boxes_xyxy, "grids": tuple(grids)}

    side = None if multi_scale else image_size
    grid_shapes = [[side and side // stride] * 2 + [len(anchors[0]), 5 + num_classes] for stride in strides]
    dataset = stream.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.padded_batch(batch_size, ([side, side, 3], [None, 4], [None]), drop_remainder=True)
    return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(folder, split, *, image_size, batch_size, global_batch_size=None, limit=0):
    """Batches for evaluation: letterboxed, in the order of the records, not augmented, each example once.

    See `detection_data.evaluation_dataset`.
    """
    return detection_data.evaluation_dataset(
        folder, split, boxes.letterbox, image_size=image_size, batch_size=batch_size,
        global_batch_size=global_batch_size, limit=limit)


def letterboxed(example, size):
    """(image [S, S, 3] in 0..1, boxes_xyxy in fractions of it, labels) of a parsed example, not augmented."""
    height, width = tf.unstack(tf.shape(example["image"])[:2])
    truth = boxes.letterbox_boxes(example["boxes_xyxy"], height, width, size)
    return boxes.letterbox(example["image"], size), truth, example["labels"]


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
        example = parse(item["record"])
        item_seed = tf.stack([seed, item["index"]])
        image, truth, classes = augment(
            example["image"], example["boxes_xyxy"], example["labels"], item_seed, image_size)
        grids = encode_targets(truth, classes, anchors, strides, image_size, len(labels))
        decoded = decode_targets(grids, anchors, image_size)
        names = [f"{'+'.join(labels[i] for i in ids)} /{strides[scale]} {anchors[scale][anchor][0]:g}x"
                 f"{anchors[scale][anchor][1]:g}" for _, ids, scale, anchor in decoded]
        boxes_xyxy = np.reshape([box for box, *_ in decoded], [-1, 4]) * image_size
        pixels = np.rint(image.numpy() * 255).astype(np.uint8)
        colors = [ids[0] for _, ids, *_ in decoded]
        pictures.append(drawing.draw_boxes(pixels, boxes_xyxy, names, class_ids=colors))
        before, after, targets = before + len(example["labels"]), after + len(classes), targets + len(decoded)
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
    flags.DEFINE_integer("seed", 0, "Seed of made-up pictures, k-means and drawn augmentation.")


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
              f'{flags.image_size} --anchors "{doctor.anchors_text(found)}"')
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
