"""Folders in VOC and COCO layout, small and with whatever fault a test puts in."""

import json

import numpy as np
import tensorflow as tf

from common import detection

JPEG = tf.io.encode_jpeg(np.zeros((40, 60, 3), np.uint8)).numpy()
BOX = "<xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>10</ymax>"
SIZE = "<size><width>60</width><height>40</height></size>"


def thing(name="cat", box=BOX, more=""):
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def write_voc(root, xmls, lists=None):
    """`xmls`: {stem: what stands in <annotation>, or a whole document}."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for stem, text in xmls.items():
        whole = text if text.startswith(("<?", "<!")) else f"<annotation>{text}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(whole)
        (root / "JPEGImages" / f"{stem}.jpg").write_bytes(JPEG)
    for name, stems in (lists or {}).items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def write_coco(root, *, split="val", **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
                   {"id": 9, "file_name": "b.jpg", "width": 60, "height": 40}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": changed(1, iscrowd=1),
        **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir(exist_ok=True)
    for name in "ab":
        (root / f"{split}2017" / f"{name}.jpg").write_bytes(JPEG)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def changed(index=0, **fields):
    """The annotations of `write_coco` with one changed; None takes a key away."""
    entries = [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 10, 5], "area": 30},
               {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 9}]
    entries[index] = {key: value for key, value in {**entries[index], **fields}.items() if value is not None}
    return entries


def loaded(source, split=None):
    """{file name: Annotation, its boxes mended for a picture of 60 x 40}, Counter of repairs."""
    found, total = {}, {}
    for item in source.splits[split or next(iter(source.splits))]:
        entry, repairs = detection.repair_boxes(source.load(item), 60, 40)
        found[entry.filename] = entry
        total.update(repairs)
    return found, total
