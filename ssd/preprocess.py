"""From a data set to detection records, and from records to batches with the targets of the loss.

    python -m ssd.preprocess --dataset voc2007 --source VOCdevkit        builds tfrecords/voc2007
    python -m ssd.preprocess --dataset voc2007 --check --visualize

Article, "Default Boxes": every truth box belongs to its best anchor, and to all that overlap it by half.
records -> augment, in worker processes (article, "Issues with Parallelism") -> encode_batch -> batches.

B batch, N boxes, A anchors of all maps, C classes, S side of the network input.
"""

import functools

import cv2
import numpy as np
import tensorflow as tf

from common import boxes, cli, detection, detection_data, detection_doctor, drawing, records
from common import workers as worker_pool
from ssd import augment, doctor
from ssd import model as models

KIND = detection.KIND  # of records
THRESHOLD = 0.5        # overlap from which on an anchor belongs to a truth that it is not the best one of


def encode_targets(boxes_xyxy, labels, anchors, threshold=THRESHOLD):
    """Targets of one picture: {"classes": int32 [A], 0 is background, "offsets": float32 [A, 4], 0 there}.

    boxes_xyxy [N, 4] fractions of the picture; labels [N] from 0; anchors [A, 4] (cx, cy, w, h). Labels below 0
    (crowds, padding) and boxes without area are no truths. An anchor that lies in a crowd by more than `threshold` of
    its own area, as the COCO evaluator has it, and has no truth, is of class -1: it is not background. As Caffe's
    MatchBBox: each truth gets an anchor of its own, those that overlap most first, however little that is; then every
    other anchor gets the truth that it overlaps most, from `threshold` on. The article matches above 0.5 alone, which
    leaves small objects without.
    """
    boxes_xyxy, anchors = tf.cast(boxes_xyxy, tf.float32), tf.convert_to_tensor(anchors, tf.float32)
    labels, total = tf.cast(labels, tf.int32), anchors.shape[0]
    solid = tf.reduce_all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=-1)
    real, crowds_xyxy = (labels >= 0) & solid, tf.boolean_mask(boxes_xyxy, (labels < 0) & solid)
    boxes_xyxy, labels = tf.boolean_mask(boxes_xyxy, real), tf.boolean_mask(labels, real)
    overlap = boxes.iou(boxes_xyxy, boxes.to_xyxy(anchors))                              # [N, A]

    truth, anchor = tf.unstack(tf.cast(tf.where(overlap >= threshold), tf.int32), axis=1)
    first = first_of_largest(tf.boolean_mask(overlap, overlap >= threshold), anchor, total)
    owner = tf.tensor_scatter_nd_update(                                                 # [A] a truth, or -1
        tf.fill([total], -1), tf.boolean_mask(anchor, first)[:, None], tf.boolean_mask(truth, first))
    anchor, matched = best_anchors(overlap)
    owner = tf.tensor_scatter_nd_update(owner, tf.boolean_mask(anchor, matched)[:, None],
                                        tf.cast(tf.where(matched)[:, 0], tf.int32))

    positive = tf.where(owner >= 0)                                                      # [P, 1]
    owner = tf.gather_nd(owner, positive)
    offsets = models.encode(tf.gather(boxes_xyxy, owner), tf.gather_nd(anchors, positive))
    classes = tf.scatter_nd(positive, 1 + tf.gather(labels, owner), [total])
    inside = boxes.iou(boxes.to_xyxy(anchors), crowds_xyxy, is_crowd=tf.constant(True))
    in_crowd = tf.reduce_any(inside > threshold, axis=-1)
    return {"classes": tf.where(in_crowd & (classes == 0), -1, classes),
            "offsets": tf.scatter_nd(positive, offsets, [total, 4])}


def best_anchors(overlap):
    """(anchor [N], matched [N] bool): an anchor of its own for each truth, greedily by overlap [N, A].

    To take the largest overlap of all, again and again, comes to the same as this: every truth asks for its best
    anchor, an anchor keeps the best that asks, and who is turned down asks for his next best, until all are kept
    (Gale and Shapley), since both sides rank by the same numbers; that moves all truths at once. Equal overlaps:
    the first anchor, then the first truth. An overlap of 0 is no match.
    """
    total = overlap.shape[1]
    values, wanted = tf.math.top_k(overlap, tf.minimum(tf.shape(overlap)[0], total))     # [N, min(N, A)]
    values, wanted = (tf.pad(each, [[0, 0], [0, 1]]) for each in (values, wanted))       # who has asked them all

    def ask(turned_down):
        value, anchor = (tf.gather(each, turned_down, batch_dims=1) for each in (values, wanted))
        asks = value > 0
        return anchor, asks, first_of_largest(value, tf.where(asks, anchor, -1), total)

    def next_round(turned_down, _):
        _, asks, kept = ask(turned_down)
        lost = asks & ~kept
        return turned_down + tf.cast(lost, tf.int32), tf.reduce_any(lost)

    nobody = tf.zeros_like(overlap[:, 0], tf.int32)
    turned_down, _ = tf.while_loop(lambda _, unsettled: unsettled, next_round, [nobody, True])
    anchor, asks, _ = ask(turned_down)
    return anchor, asks


def first_of_largest(values, group, num_groups):
    """[P] bool: the first among those with the largest value of their group; a group below 0 has none."""
    position = tf.range(tf.size(values))
    largest = tf.math.unsorted_segment_max(values, group, num_groups)
    ties = (group >= 0) & (values == tf.gather(largest, tf.maximum(group, 0)))
    first = tf.math.unsorted_segment_min(position, tf.where(ties, group, -1), num_groups)
    return tf.ensure_shape(ties & (position == tf.gather(first, tf.maximum(group, 0))), [None])


def encode_batch(boxes_xyxy, labels, anchors, threshold=THRESHOLD):
    """`encode_targets` of B pictures, [B, N, 4] and [B, N]: {"classes": [B, A], "offsets": [B, A, 4]}.

    Picture by picture, so that its targets are the same in any batch and its overlaps fit into the cache.
    """
    total = len(anchors)
    signature = {"classes": tf.TensorSpec([total], tf.int32), "offsets": tf.TensorSpec([total, 4], tf.float32)}
    return tf.map_fn(lambda truths: encode_targets(*truths, anchors, threshold), (boxes_xyxy, labels),
                     fn_output_signature=signature)


def training_dataset(folder, *, anchors, image_size, num_classes, batch_size, seed, augmented=True, start_step=0,
                     global_batch_size=None, limit=0, workers=2, num_workers=1, worker=0):
    """Endless batches (images [B, S, S, 3] in 0..1, targets of `encode_batch`) for the loss.

    Step k takes the examples k * global_batch_size onwards of the endless stream of epochs, so that training can
    start at any step; order and augmentation depend on (seed, epoch, index) alone. batch_size is a replica's.
    workers: processes that augment, 0 does it in this one; the batches are the same for any number.
    """
    global_batch_size = global_batch_size or batch_size
    per_epoch = records.count(folder, "train", limit=limit) // num_workers * num_workers
    start = divmod(start_step * global_batch_size, max(per_epoch, 1))
    stream = records.dataset(folder, "train", seed=seed, limit=limit, start=start, num_shards=num_workers,
                             shard_index=worker)
    most = detection_data.most_objects(folder, "train")

    def encode(outputs):
        targets = encode_batch(outputs["boxes_xyxy"], outputs["labels"], anchors)
        targets = {name: tf.ensure_shape(target, [batch_size, len(anchors), *target.shape[2:]])
                   for name, target in targets.items()}
        return tf.image.convert_image_dtype(outputs["image"], tf.float32), targets

    prepare = functools.partial(augment.prepare, size=image_size, most=most, augmented=augmented)
    dataset = worker_pool.tf_dataset(
        prepare, augment.specs(image_size, most), functools.partial(jobs, parsed(stream), num_classes),
        batch_size=batch_size, workers=workers, seed=seed)
    return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def parsed(stream):
    """A `records.dataset` as a dataset of what `jobs` needs."""
    def parse(item):
        example = detection.parse(item["record"])
        return {"epoch": item["epoch"], "index": item["index"], "name": example["filename"],
                **{key: example[key] for key in ("image_bytes", "boxes_xyxy", "labels", "is_crowd")}}

    return stream.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(16)


def jobs(examples, num_classes):
    """(epoch, index, payload of `augment.prepare`) of each of the `parsed` examples; crowds have the label -1.

    Raises UserError for a class that is none of num_classes.
    """
    for item in examples.as_numpy_iterator():
        detection_data.require_known(item["labels"], item["boxes_xyxy"], item["name"], num_classes)
        labels = np.where(item["is_crowd"], -1, item["labels"])
        yield item["epoch"], item["index"], augment.pack(item["image_bytes"], item["name"], item["boxes_xyxy"], labels)


def evaluation_dataset(folder, split, *, image_size, batch_size, global_batch_size=None, limit=0):
    """Batches for evaluation: warped, in the order of the records, not augmented, each example once.

    See `detection_data.evaluation_dataset`.
    """
    return detection_data.evaluation_dataset(
        folder, split, boxes.warp, image_size=image_size, batch_size=batch_size,
        global_batch_size=global_batch_size, limit=limit)


def decode_targets(targets, anchors):
    """What the targets of one picture stand for: [(box_xyxy in fractions, label, [its anchors as boxes_xyxy])]."""
    found = []
    classes, offsets = (np.asarray(targets[name]) for name in ("classes", "offsets"))
    matched = np.flatnonzero(classes > 0)
    corners = boxes.to_xyxy(anchors[matched]).numpy()
    decoded = models.decode(offsets[matched], anchors[matched]).numpy()
    for box, label, anchor in zip(decoded, classes[matched], corners):
        for other, known, its_anchors in found:
            if known == label - 1 and np.allclose(other, box, atol=1e-4):
                its_anchors.append(anchor)
                break
        else:
            found.append((box, label - 1, [anchor]))
    return found


def draw_targets(image, decoded, labels, scale):
    """The picture, `scale` times as large, with what `decode_targets` found, and how many anchors each box has."""
    side = image.shape[0] * scale
    image = cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST)
    for _, label, its_anchors in decoded:
        color = [level // 2 for level in drawing.class_color(label)]
        for corners in np.rint(np.array(its_anchors) * side).astype(int).tolist():
            cv2.rectangle(image, corners[:2], corners[2:], color)
    names = [f"{labels[label]} {len(its_anchors)}" for _, label, its_anchors in decoded]
    boxes_xyxy = np.reshape([box for box, *_ in decoded], [-1, 4]) * side
    return drawing.draw_boxes(image, boxes_xyxy, names, class_ids=[label for _, label, _ in decoded])


def visualize(folder, split, path, *, labels, anchors, image_size, seed=0, count=12):
    """Writes a PNG of `count` records after augmentation: their targets decoded back to boxes, thin their anchors.

    A box is named by its class and the number of its anchors. Returns (objects before augmentation, after it,
    objects with an anchor).
    """
    pictures, before, after, matched = [], 0, 0, 0
    stream = records.dataset(folder, split, seed=seed, epochs=1).take(count)
    most = detection_data.most_objects(folder, split)
    for epoch, index, payload in jobs(parsed(stream), len(labels)):
        result = augment.prepare(payload, np.random.default_rng([seed, epoch, index]), size=image_size, most=most)
        decoded = decode_targets(encode_targets(result["boxes_xyxy"], result["labels"], anchors), anchors)
        pictures.append(draw_targets(result["image"], decoded, labels, scale=max(1, 600 // image_size)))
        before += int(np.sum(augment.unpack(payload)[-1] >= 0))
        after, matched = after + int(np.sum(result["labels"] >= 0)), matched + len(decoded)
    drawing.write_png(path, drawing.grid(pictures))
    return before, after, matched


def ensure_records(name):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once."""
    return detection_data.ensure_records("ssd", name)


def command(name):
    """The command line that builds the record set `name`."""
    return detection_data.command("ssd", name)


def define_flags():
    detection_data.define_flags()
    cli.flags.DEFINE_enum("model", "vgg300", list(models.MODELS), "Network whose anchors are looked at.")
    cli.flags.DEFINE_integer("seed", 0, "Seed of made-up pictures and drawn augmentation.", lower_bound=0)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    folder = detection_data.build_or_find(flags, flags.check or flags.visualize)
    anchors, image_size = models.anchors(flags.model), models.IMAGE_SIZE[flags.model]
    if flags.check:
        findings = detection_doctor.examine(folder, without_objects=doctor.WITHOUT_OBJECTS, progress=True)
        print(detection_doctor.describe(findings))
        print(doctor.describe(findings.contents, anchors, image_size, THRESHOLD))
    if flags.visualize:
        path = folder / "targets.png"
        split, labels = detection_data.split_to_draw(folder)
        before, after, matched = visualize(folder, split, path, labels=labels, anchors=anchors,
                                           image_size=image_size, seed=flags.seed)
        print(f"{path}: of {before} objects {after} are in view after augmentation, {matched} of them have "
              "anchors")
    if flags.check:
        detection_doctor.require_sound(findings)


if __name__ == "__main__":
    cli.run(main, define_flags)
