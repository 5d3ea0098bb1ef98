"""From a data set to pose records, and from records to crops with heatmaps.

    python -m hourglass.preprocess --dataset mpii --source FOLDER        builds tfrecords/mpii
    python -m hourglass.preprocess --dataset mpii --check --visualize

Article, "Prepare the Data": a crop around the joints, and a Gaussian for each joint. records -> parse -> augment,
or the square around the centre (evaluation) -> encode_targets -> batches.

B batch, K joints, h, w heatmap, S side of the network input.
"""

import pathlib
import shlex

import cv2
import numpy as np
import tensorflow as tf

from common import cli, drawing, heatmaps, records
from common.errors import UserError
from hourglass import augment, crops, doctor, poses, sources
from hourglass.postprocess import STRIDE

KIND = poses.KIND  # of records
OF_BUILDING = ("first_pixel", "center_shift", "pairs", "skip_bad", "shards")  # flags that only a new build heeds
PLACE = ("joints", "visible", "center", "scale", "width", "height")  # of a record, for `crops.square_of`


def encode_targets(joints_xy, visible, size, *, sigma=1.0, absent="unknown"):
    """{"heatmaps": float32 [B, h, w, K], "weight": float32 [B, K]} for joints_xy [B, K, 2] in pixels of the crop.

    visible [B, K]: 0 has no Gaussian. Its weight is 0, so that the loss does not look, if `absent` is "unknown";
    "out of view" (MPII, article: "0 -> out of the view") is taught as a heatmap of zeros, and so is every joint
    that is annotated but not in the crop.
    """
    side, known = size // STRIDE, visible > 0
    targets = heatmaps.gaussian_heatmaps(joints_xy / STRIDE, known, (side, side), sigma)
    return {"heatmaps": targets, "weight": tf.cast(known | (absent == "out of view"), tf.float32)}


def training_dataset(folder, *, image_size, batch_size, seed, augmented=True, start_step=0, global_batch_size=None,
                     limit=0, sigma=1.0, crop="article", rotation=augment.ROTATION, num_workers=1, worker=0):
    """Endless batches (images float32 [B, S, S, 3] in 0..1, `encode_targets`) for the loss.

    crop: as in `crops.square_of`; rotation: degrees that augmentation turns it either way, at most. Step k takes the
    examples k * global_batch_size onwards of the endless stream of epochs, so that training can start at any step;
    order and augmentation depend on (seed, epoch, index) alone. batch_size is a replica's.
    """
    global_batch_size = global_batch_size or batch_size
    per_epoch = records.count(folder, "train", limit=limit) // num_workers * num_workers
    start = divmod(start_step * global_batch_size, max(per_epoch, 1))
    body = poses.body_of(folder)
    count = len(body.labels)
    stream = records.dataset(folder, "train", seed=seed, limit=limit, start=start, num_shards=num_workers,
                             shard_index=worker)

    def prepare(batch):
        example = poses.parse(batch["record"], count)
        # One call for the whole batch: OpenCV leaves Python's lock, and several batches are on their way.
        images, joints_xy, visible = tf.numpy_function(
            lambda *arrays: _training_crops(*arrays, seed=seed, size=image_size, pairs=body.pairs, augmented=augmented,
                                            crop=crop, rotation=rotation, flips=body.mirrors),
            [example[key] for key in ("image_bytes", *PLACE)] + [batch["epoch"], batch["index"]],
            (tf.uint8, tf.float32, tf.int32), stateful=False)
        images = tf.ensure_shape(images, [batch_size, image_size, image_size, 3])
        targets = encode_targets(
            tf.ensure_shape(joints_xy, [batch_size, count, 2]), tf.ensure_shape(visible, [batch_size, count]),
            image_size, sigma=sigma, absent=body.absent)
        return tf.image.convert_image_dtype(images, tf.float32), targets

    dataset = stream.batch(batch_size, drop_remainder=True).map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _training_crops(image_bytes, joints, visible, center, scale, width, height, epoch, index, *, seed, size, pairs,
                    augmented, crop, rotation, flips):
    """(crops uint8 [B, S, S, 3], joints float32 [B, K, 2] in pixels of them, visible int32 [B, K])."""
    images = np.empty([len(image_bytes), size, size, 3], np.uint8)
    joints, visible = joints.copy(), visible.copy()
    for i, data in enumerate(image_bytes):
        square = crops.square_of(crop, joints[i], visible[i], center[i], scale[i], width[i], height[i])
        rng = np.random.default_rng([seed, epoch[i], index[i]]) if augmented else None
        images[i], joints[i], visible[i] = training_crop(
            data, square, joints[i], visible[i], rng, size, pairs, rotation=rotation,
            shift=augment.SHIFT if crop == "article" else 0.0, flips=flips)
    return images, joints, visible


def training_crop(image_bytes, square, joints_xy, visible, rng, size, pairs, **limits):
    """(crop uint8 [S, S, 3], joints float32 [K, 2] in pixels of it, visible [K]) of a square of the picture.

    rng None does not augment; limits: of `augment.draw_view`.
    """
    if rng is None:
        matrix, flip = crops.to_picture(square, size), False
    else:
        matrix, flip = augment.draw_view(square, rng, size, **limits)
    image = crops.view(image_bytes, matrix, size)
    if rng is not None:
        image = augment.recolor(image, rng)
    joints_xy = crops.move(crops.invert(matrix), joints_xy).astype(np.float32)
    if flip:
        joints_xy, visible = augment.mirrored(joints_xy, pairs), augment.mirrored(visible, pairs)
    return image, joints_xy, visible


def evaluation_dataset(folder, split, *, image_size, batch_size, global_batch_size=None, limit=0, crop="center"):
    """Batches for evaluation: the square around the centre (or another `crop`, as in `crops.square_of`), in the order
    of the records, each example once.

    Dicts of "images" [B, S, S, 3] in 0..1, "index" [B] (-1 fills the last global batch up), "to_picture" float32
    [B, 2, 3] (pixel of the picture at a pixel of the crop, see hourglass/crops.py), and of the record: "joints"
    [B, K, 2] (pixels of the picture), "visible" [B, K], "head_size", "scale", "area" [B], "box" [B, 4] (x, y, w,
    h), "image_id", "person_id" [B] and "filename" [B].
    """
    count = len(poses.body_of(folder).labels)
    dataset = records.dataset(folder, split, epochs=1, limit=limit).map(
        lambda item: {"record": item["record"], "index": item["index"]})
    filler = dataset.take(1).map(lambda item: {**item, "index": tf.constant(-1, tf.int64)})
    missing = -records.count(folder, split, limit=limit) % (global_batch_size or batch_size)

    def prepare(batch):
        example = poses.parse(batch["record"], count)
        images, to_picture = tf.numpy_function(
            lambda image_bytes, *places: _evaluation_crops(image_bytes, places, image_size, crop),
            [example[key] for key in ("image_bytes", *PLACE)], (tf.uint8, tf.float32), stateful=False)
        kept = ("joints", "visible", "head_size", "scale", "area", "box", "image_id", "person_id", "filename")
        images = tf.ensure_shape(images, [batch_size, image_size, image_size, 3])
        found = {"images": tf.image.convert_image_dtype(images, tf.float32),
                 "to_picture": tf.ensure_shape(to_picture, [batch_size, 2, 3]), "index": batch["index"]}
        return found | {key: tf.ensure_shape(example[key], [batch_size, *example[key].shape[1:]]) for key in kept}

    dataset = dataset.concatenate(filler.repeat(missing)).batch(batch_size, drop_remainder=True)
    return dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _evaluation_crops(image_bytes, places, size, crop):
    """(crops uint8 [B, S, S, 3], their to_picture float32 [B, 2, 3]); places: arrays [B, ...] as PLACE."""
    matrices = [crops.to_picture(crops.square_of(crop, *place), size) for place in zip(*places)]
    images = [crops.view(data, matrix, size) for data, matrix in zip(image_bytes, matrices)]
    return np.stack(images), np.stack(matrices).astype(np.float32)


def overlay(image, targets, joints_xy, visible, body):
    """A crop uint8 [S, S, 3] with its heatmaps [h, w, K] shining through and the skeleton of joints_xy [K, 2]."""
    image = drawing.draw_skeletons(image, [joints_xy], [np.asarray(visible) > 0], body.skeleton,
                                   colors=doctor.side_colors(body))
    shine = cv2.resize(np.max(targets, axis=-1), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)[..., None]
    return np.rint(image + 0.7 * shine * (255.0 - image)).astype(np.uint8)


def visualize(folder, split, path, *, image_size, sigma=1.0, seed=0, count=12):
    """Writes a PNG of `count` records, each as evaluation and as training sees it, with joints and heatmaps.

    The joints drawn are those that `heatmaps.peaks` finds in the targets. Returns (annotated joints, those in view
    of the augmented crops).
    """
    body, pictures, before, after = poses.body_of(folder), [], 0, 0
    for item in records.dataset(folder, split, seed=seed, epochs=1).take(count):
        example = {key: value.numpy() for key, value in poses.parse(item["record"], len(body.labels)).items()}
        views = []
        for crop, rng in (("center", None), ("article", np.random.default_rng([seed, 0, item["index"].numpy()]))):
            square = crops.square_of(crop, *(example[key] for key in PLACE))
            views.append(training_crop(example["image_bytes"], square, example["joints"], example["visible"], rng,
                                       image_size, body.pairs, flips=body.mirrors))
        for image, joints_xy, visible in views:
            targets = encode_targets(joints_xy[None], visible[None], image_size, sigma=sigma)["heatmaps"]
            found, scores = (array[0].numpy() for array in heatmaps.peaks(targets))
            pictures.append(overlay(image, targets[0].numpy(), found * STRIDE, scores, body))
        before, after = before + int((example["visible"] > 0).sum()), after + int((scores > 0).sum())
    drawing.write_png(path, drawing.grid(pictures, columns=6))
    return before, after


def ensure_records(name):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once."""
    try:
        return records.resolve(name, kind=KIND, command=command(name))
    except UserError:
        if name != records.DEMO:
            raise
        return build(name)


def command(name):
    """The command line that builds the record set `name`."""
    name = records.name_of(name, KIND)
    source = "" if name == records.DEMO else " --source FOLDER"
    return f"python -m hourglass.preprocess --dataset {shlex.quote(name)}{source}"


def build(name, source=None, folder=None, *, shards=None, num_workers=None, skip_bad=False, **options):
    """Writes the records of a data set, says what was repaired, skipped and left out, and returns their folder.

    source, options: of `sources.find`. Raises UserError.
    """
    folder = pathlib.Path(folder or records.default_folder(name, KIND))
    found = sources.find(name, source, **options)
    poses.build_records(found._replace(name=folder.name), folder.parent, shards=shards, num_workers=num_workers,
                        on_bad="skip" if skip_bad else "error")
    return folder


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("dataset", None, "mpii, lsp, coco_keypoints, demo, or a name for your own folder.")
    flags.DEFINE_string("source", None, "Folder with MPII (JSON or .mat), LSP or COCO keypoints, or MPII's or LSP's "
                        "file itself.")
    flags.DEFINE_enum("first_pixel", None, ["0", "1"],
                      "Where the source's pixels start; default 1 for mpii and lsp, 0 for others.")
    flags.DEFINE_float("center_shift", None, "Times a person's scale: pixels by which centres in MPII's layout are "
                       "moved down; default 15 for mpii, whose centres are too high, 0 for others.")
    flags.DEFINE_string("pairs", None, "Joints that change places in a mirror, left:right,left:right; none: no joints "
                        "do. Default: as their names say.")
    flags.DEFINE_string("out", None, "Folder of the records; default tfrecords/<dataset>.")
    flags.DEFINE_integer("shards", None, "Files per split; default one for 1,000 persons.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Pictures read at a time; default one per CPU.", lower_bound=1)
    flags.DEFINE_bool("skip_bad", False, "Leave out, and list, pictures and annotations that cannot be used.")
    flags.DEFINE_bool("check", False, "Examine records that are already built.")
    flags.DEFINE_bool("visualize", False, "Draw records as evaluation and training see them, with their heatmaps.")
    flags.DEFINE_integer("image_size", 256, "Side of the network input, a multiple of 4.", lower_bound=64)
    flags.DEFINE_float("sigma", 1.0, "Of the Gaussians that --visualize draws, in pixels of the heatmap.")
    flags.DEFINE_integer("seed", 0, "Seed of made-up pictures, dealt splits and drawn augmentation.", lower_bound=0)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if flags.image_size % STRIDE or not flags.sigma > 0:
        raise UserError(f"--image_size must be a multiple of {STRIDE} and --sigma positive; {flags.image_size} and "
                        f"{flags.sigma:g} came.")
    if not flags.dataset:
        raise UserError("Give --dataset NAME: mpii, lsp, coco_keypoints, demo, or a name for a folder of your own, "
                        "which --source then names.")
    folder = pathlib.Path(flags.out or records.default_folder(flags.dataset, KIND))
    check, built = flags.check, False
    if flags.source or not (check or flags.visualize) or not (folder / records.MANIFEST).is_file():
        build(flags.dataset, flags.source, folder, shards=flags.shards, num_workers=flags.workers,
              skip_bad=flags.skip_bad, seed=flags.seed, center_shift=flags.center_shift, pairs=flags.pairs,
              first_pixel=None if flags.first_pixel is None else int(flags.first_pixel))
        check = built = True
    else:
        given = [f"--{name}" for name in OF_BUILDING if flags[name].present]
        if given:
            raise UserError(f"{', '.join(given)} must stand beside --source: {folder} is already built, and is "
                            "examined or drawn as it is.")
    if check:
        findings = doctor.examine(folder, progress=True)
        print(doctor.describe(findings, built=built))
    if flags.visualize:
        path, splits = folder / "targets.png", records.read_manifest(folder)["splits"]
        split = next(name for name, entry in splits.items() if entry["examples"])
        before, after = visualize(folder, split, path, image_size=flags.image_size, sigma=flags.sigma,
                                  seed=flags.seed)
        print(f"{path}: of {before} annotated joints {after} are in view after augmentation")
    if check:
        doctor.require_sound(findings)


if __name__ == "__main__":
    cli.run(main, define_flags)
