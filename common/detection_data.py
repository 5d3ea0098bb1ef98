"""What the preprocess.py of every detector does alike: record sets from the command line, batches for evaluation.

    folder = detection_data.ensure_records("yolov3", "voc2007")

B batch, H, W picture, N boxes, S side of the network input. `article` is the folder whose preprocess.py is meant.
"""

import pathlib
import shlex

import numpy as np
import tensorflow as tf

from common import cli, detection, detection_demo, detection_sources, files, records
from common.errors import UserError


def evaluation_dataset(folder, split, fit, *, image_size, batch_size, global_batch_size=None, limit=0):
    """Batches for evaluation: in the order of the records, not augmented, each example once.

    fit: (image uint8 [H, W, 3], S) -> float32 [S, S, 3] in 0..1, the network input. Dicts of "images"
    [B, S, S, 3], "index" [B] (-1 fills the last global batch up), "height", "width" [B] and the truths
    "boxes_xyxy" [B, N, 4] (fractions of the picture), "labels" (-1 fills up), "difficult", "is_crowd" and "area"
    (all [B, N]).
    """
    num_classes = len(records.read_manifest(folder)["labels"])

    def prepare(item):
        example = detection.parse(item["record"])
        example["labels"] = known_labels(example, num_classes, crowds=True)
        image = detection.decode_image(example["image_bytes"])
        shape = tf.shape(image)
        return {"images": fit(image, image_size), "index": item["index"],
                "height": shape[0], "width": shape[1],
                **{key: example[key] for key in ("boxes_xyxy", "labels", "difficult", "is_crowd", "area")}}

    dataset = records.dataset(folder, split, epochs=1, limit=limit)
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    count = records.count(folder, split, limit=limit)
    filler = dataset.take(1).map(lambda example: {**example, "index": tf.constant(-1, tf.int64)})
    dataset = dataset.concatenate(filler.repeat(-count % (global_batch_size or batch_size)))
    shapes = {key: [None] for key in ("labels", "difficult", "is_crowd", "area")}
    shapes |= {"images": [image_size, image_size, 3], "boxes_xyxy": [None, 4]}
    shapes |= {key: [] for key in ("index", "height", "width")}
    padding = {key: tf.zeros([], spec.dtype) for key, spec in dataset.element_spec.items()}
    padding["labels"] = tf.constant(-1, dataset.element_spec["labels"].dtype)
    return dataset.padded_batch(batch_size, shapes, padding, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def ensure_records(article, name, find=None):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once.

    find: as in `build`.
    """
    try:
        return records.resolve(name, kind=detection.KIND, command=command(article, name))
    except UserError as missing:
        if name == records.DEMO or (find and find(name, None, None)):
            return build(name, find=find)
        if name not in detection_sources.DOWNLOADS:
            raise
        try:
            return build(name)
        except UserError as error:
            raise UserError(f"{missing} (not done on the spot: {error})") from None


def command(article, name):
    """The command line that builds the record set `name`."""
    folders = {"voc2007": "VOCdevkit", "voc2012": "VOCdevkit", "coco2017": "coco"}
    name = records.name_of(name, detection.KIND)
    source = "" if name == records.DEMO else f" --source {folders.get(name, 'FOLDER')}"
    return f"python -m {article}.preprocess --dataset {shlex.quote(name)}{source}"


def build(name, source=None, folder=None, *, labels=None, shards=None, num_workers=None, skip_bad=False,
          seed=0, find=None):
    """Writes the records of a data set, says what was repaired or skipped, and returns their folder.

    source: folder in VOC or COCO layout; None makes the demo, or takes the set from tensorflow-datasets.
    labels: class names, None as found. find: function (name, source, labels) to the `detection.Source` of a set or
    a layout that only this article knows, or None. The rest as in `detection.build_records`. Raises UserError.
    """
    folder = pathlib.Path(folder or records.default_folder(name, detection.KIND))
    if name == records.DEMO and (source or labels):
        raise UserError(f"--dataset {name} is made up, of {', '.join(detection_demo.LABELS)}, and takes neither "
                        "--source nor --labels. Give your own set another name.")
    found = find and find(name, source, labels)
    if not found and name == records.DEMO:
        found = detection_demo.source(seed=seed)
    elif not found:
        found = detection_sources.find(name, source, labels)
    detection.build_records(found._replace(name=folder.name), folder.parent, shards=shards,
                            num_workers=num_workers, on_bad="skip" if skip_bad else "error")
    return folder


def read_labels(text):
    """Class names from "a,b,c" or from a text file with one per line. Raises UserError."""
    path = pathlib.Path(text)
    names = read_names(path) if path.is_file() else [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names) or (len(names) == 1 and path.suffix):
        raise UserError(f"--labels must be different class names, a,b,c, or a text file with one per line; "
                        f"{text!r} {'names one twice' if len(set(names)) < len(names) else 'is neither'}.")
    return names


def read_names(path):
    """The lines of a text file that are not empty, without blanks around them. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a text file with one name per line, and cannot be read "
                        f"({files.reason(error)}).") from None
    return [line.strip() for line in lines if line.strip()]


def define_flags():
    """The flags that every detector's preprocess.py has."""
    flags = cli.flags
    flags.DEFINE_string("dataset", None, "voc2007, voc2012, coco2017, demo, or a name for your own folder.")
    flags.DEFINE_string("source", None, "Folder in VOC or COCO layout; default: tensorflow-datasets.")
    flags.DEFINE_string("labels", None, "Class names, a,b,c or a file with one per line; default: as found.")
    flags.DEFINE_string("out", None, "Folder of the records; default tfrecords/<dataset>.")
    flags.DEFINE_integer("shards", None, "Files per split; default one for 1,000 pictures.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Pictures read at a time; default one per CPU.", lower_bound=1)
    flags.DEFINE_bool("skip_bad", False, "Leave out, and list, pictures and annotations that cannot be used.")
    flags.DEFINE_bool("check", False, "Examine records that are already built.")
    flags.DEFINE_bool("visualize", False, "Draw augmented records with their targets.")


def build_or_find(flags, only_look, find=None):
    """The folder of the records that the flags ask for, built unless it is there and they `only_look`.

    What has just been built is to be examined: sets flags.check. find: as in `build`. Raises UserError without
    --dataset.
    """
    if not flags.dataset:
        raise UserError("Give --dataset NAME: voc2007, voc2012, coco2017, demo, or a name for a folder of "
                        "your own, which --source then names.")
    folder = pathlib.Path(flags.out or records.default_folder(flags.dataset, detection.KIND))
    if flags.source or not only_look or not (folder / records.MANIFEST).is_file():
        build(flags.dataset, flags.source, folder, labels=flags.labels and read_labels(flags.labels),
              shards=flags.shards, num_workers=flags.workers, skip_bad=flags.skip_bad, seed=flags.seed,
              find=find)
        flags.check = True
    else:
        idle = [f"--{name}" for name in ("labels", "shards", "workers", "skip_bad") if flags[name].value]
        if idle:
            print(f"note: {folder} is there already and is only looked at; without effect: {', '.join(idle)}. To build "
                  "it again, give --source, or leave out what looks at it.")
    return folder


def split_to_draw(folder):
    """(first split of the record set that holds examples, class names)."""
    manifest = records.read_manifest(folder)
    return next(name for name, entry in manifest["splits"].items() if entry["examples"]), manifest["labels"]


def most_objects(folder, split):
    """The number of objects of the picture that has most; counted where the manifest does not say it."""
    entry = records.read_manifest(folder)["splits"][split]
    if "most_objects" in entry:
        return entry["most_objects"]
    counts = records.dataset(folder, split, epochs=1).map(
        lambda item: tf.size(detection.parse(item["record"])["labels"]), num_parallel_calls=tf.data.AUTOTUNE)
    return int(counts.reduce(0, tf.maximum))


def known_labels(example, num_classes, crowds=False):
    """Labels int32 [..., N] of what `detection.parse` or `parse_batch` gives, -1 for crowds and behind the last box.

    crowds: theirs stay what they are. For a dataset, which ends with the UserError of `require_known`.
    """
    def check(labels, boxes_xyxy, filenames):
        require_known(labels, boxes_xyxy, filenames, num_classes)
        return labels

    labels = example["labels"]
    checked = tf.numpy_function(check, [labels, example["boxes_xyxy"], example["filename"]], tf.int32, stateful=False)
    checked = tf.ensure_shape(checked, labels.shape)
    return checked if crowds else tf.where(example["is_crowd"], -1, checked)


def require_known(labels, boxes_xyxy, filenames, num_classes):
    """Raises UserError that names a picture with an object of a class that is none of num_classes.

    labels int [..., N], boxes_xyxy [..., N, 4], zero behind the last box; filenames bytes [...]. Such an object would
    have no class in its target. In records they count from 1, so that one of 0, the background, is -1 here.
    """
    bad = np.argwhere(((labels < 0) | (labels >= num_classes)) & np.any(boxes_xyxy != 0, axis=-1))
    if len(bad):
        *picture, place = bad[0]
        name = np.asarray(filenames)[tuple(picture)]
        name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        label = labels[(*picture, place)]
        raise UserError(f"{name} must have classes 0 to {num_classes - 1}, and has {label} (records count them from 1). "
                        "Examine the records: preprocess.py --check.")
