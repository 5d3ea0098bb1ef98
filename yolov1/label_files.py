"""The article's own label files: a text file beside every picture, a block of lines for each cell of the grid.

    ; cell (0,0)
    0 1 0            class, one of K numbers is 1; the last stands for "none"
    14 22 18 10      box: centre x, centre y, width, height in pixels
    1                confidence: 1 with an object, else 0; the article's listing leaves it out, its code does not
    ...              cells row by row; a cell without an object has the class none and the cell itself as its box
    ---              end; may be missing

Article, "Creating a good dataset". `;` starts a comment. Pictures are in Images/ and label files in Labels/, or
both side by side, either for each split (train/, val/, test/) or once; then the tenth of the pictures whose names
have the smallest md5 is val and the rest train, as for VOC. Names of classes are in no label file: classes.txt has
one on a line, K = 3 is chat and rat, and --labels says others.
"""

import hashlib
import math
import pathlib
from typing import NamedTuple

import numpy as np

from common import detection, files, images, records
from common.errors import UserError
from yolov1 import words

SPLITS = ("train", "val", "test")
NAMES = "classes.txt"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


class Cell(NamedTuple):
    label: int | None      # 0-based; None for none
    box_cxcywh: tuple      # pixels


def read(path):
    """(cells [h * w], number of classes C) of a label file. Raises UserError that names the file and line."""
    path, rows = pathlib.Path(path), []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a text file in the article's label format, and cannot be read "
                        f"({files.reason(error)}).") from None
    for number, line in enumerate(lines, 1):
        content = line.split(";")[0].split()
        if content and content != ["---"]:
            try:
                values = [float(word) for word in content]
            except ValueError:
                values = [math.nan]
            if not np.isfinite(values).all():
                raise UserError(f"{path}:{number} must hold numbers, and is {line.strip()[:40]!r}. Correct it.")
            rows.append((number, values))
    cells, position, width = [], 0, len(rows[0][1]) if rows else 0
    while position < len(rows):
        block = rows[position:position + 2]
        position += 2
        confidence = None
        if position < len(rows) and len(rows[position][1]) == 1:
            confidence = rows[position][1][0]
            position += 1
        cells.append(_cell(path, block, width, confidence))
    if not cells or math.isqrt(len(cells)) ** 2 != len(cells):
        raise UserError(f"{path} must have a block for each cell of a square grid, and has {len(cells)}. "
                        "Correct it.")
    return cells, width - 1


def _cell(path, block, width, confidence):
    """The `Cell` of its lines [(number, values)]."""
    number, classes = block[0]
    if len(classes) != width or width < 2 or sorted(classes) != [0] * (width - 1) + [1]:
        raise UserError(f"{path}:{number} must be the class of a cell, {max(width, 2)} numbers, one of them 1 and "
                        f"the others 0; it is {_words(classes)}. Correct it.")
    if len(block) < 2 or len(block[1][1]) != 4:
        number, found = block[1] if len(block) > 1 else (number, [])
        raise UserError(f"{path}:{number} must be a box, centre x, centre y, width and height in pixels; it is "
                        f"{_words(found) or 'missing'}. Correct it.")
    label = classes.index(1)
    label = None if label == width - 1 else label
    if confidence is not None and confidence != (label is not None):
        raise UserError(f"{path}:{number} must be of a cell with confidence {int(label is not None)}, because its "
                        f"class is {'none' if label is None else label}; its confidence is {confidence:g}. "
                        "Correct it.")
    return Cell(label, tuple(block[1][1]))


def write(path, cells, num_classes):
    """Writes a label file; cells as in `read`."""
    lines, side = [], math.isqrt(len(cells))
    for index, cell in enumerate(cells):
        label = num_classes if cell.label is None else cell.label
        lines += [f"; cell ({index % side},{index // side})",
                  _words([int(label == i) for i in range(num_classes + 1)]),
                  _words(cell.box_cxcywh), str(int(cell.label is not None))]
    path.write_text("\n".join([*lines, "---", ""]), "utf-8")


def find_layout(folder):
    """{split: [(picture, label file)]} of a folder with the article's label files; {} where it is none."""
    folder = pathlib.Path(folder)
    splits = {split: _pairs(folder / split) for split in SPLITS if (folder / split).is_dir()}
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    if splits:
        return splits
    pairs = _pairs(folder)
    ordered = sorted(pairs, key=lambda pair: hashlib.md5(pair[0].stem.encode()).digest())
    held_out = set(ordered[:max(1, len(ordered) // 10)]) if len(ordered) > 1 else set()
    parts = {"train": [pair for pair in pairs if pair not in held_out],
             "val": [pair for pair in pairs if pair in held_out]}
    return {split: items for split, items in parts.items() if items}


def _pairs(folder):
    """[(picture, its label file)] by name, numbers in their order; every label file must have its picture."""
    pictures, labels = folder / "Images", folder / "Labels"
    if not (pictures.is_dir() and labels.is_dir()):
        pictures = labels = folder
    found = {path.stem: path for path in sorted(pictures.glob("*")) if path.suffix.lower() in _SUFFIXES}
    texts = {path.stem: path for path in labels.glob("*.txt") if path.name != NAMES}
    stems = sorted(texts, key=lambda stem: (stem.zfill(20), stem))
    if pictures == labels:  # any folder may hold pictures and texts
        stems = [stem for stem in stems if stem in found]
    return [(found.get(stem, pictures / f"{stem}.png"), texts[stem]) for stem in stems]


def source(folder, name, labels=None):
    """The `detection.Source` of a folder with the article's label files. Raises UserError."""
    splits = find_layout(folder)
    _, num_classes = read(next(iter(splits.values()))[0][1])
    labels = labels or _class_names(pathlib.Path(folder), num_classes)
    if len(labels) != num_classes:
        raise UserError(f"{folder} has label files of {num_classes} classes besides none; --labels named "
                        f"{len(labels)}: {', '.join(labels)}.")

    def load(item):
        picture, path = item
        cells, found = read(path)
        if found != num_classes:
            raise UserError(f"{path} must have {num_classes + 1} numbers for a class, as the first label file "
                            f"has; it has {found + 1}. Correct it.")
        objects = [cell for cell in cells if cell.label is not None]
        boxes_cxcywh = np.array([cell.box_cxcywh for cell in objects], np.float64).reshape(-1, 4)
        centers, halves = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
        boxes_xyxy = np.concatenate([centers - halves, centers + halves], axis=1)
        return detection.Annotation(picture, picture.name, boxes_xyxy, [cell.label for cell in objects])

    origin = f"the article's label files, {pathlib.Path(folder).name}"
    return detection.Source(name, list(labels), splits, load, origin)


def _class_names(folder, num_classes):
    if (folder / NAMES).is_file():
        return [line.strip() for line in (folder / NAMES).read_text("utf-8").splitlines() if line.strip()]
    if num_classes == len(words.LABELS):
        return words.LABELS
    raise UserError(f"{folder} has label files of {num_classes} classes besides none, and no {NAMES}. Name them "
                    "with --labels a,b,c.")


def export(folder, out, grid):
    """Writes a record set as pictures and label files, <out>/<split>/{Images,Labels}; returns (pictures, objects).

    classes.txt is written last: a folder with it is complete. Raises UserError where two objects have their centre
    in one cell, since the format has one object for a cell, and where nothing can be written.
    """
    manifest, out, count, objects = records.read_manifest(folder), pathlib.Path(out), 0, 0
    try:
        for split in manifest["splits"]:
            for place in ("Images", "Labels"):
                (out / split / place).mkdir(parents=True, exist_ok=True)
            for item in records.dataset(folder, split, epochs=1):
                example = {key: value.numpy() for key, value in detection.parse(item["record"]).items()}
                stem = f"{int(item['index']):06d}"
                cells = cells_of(example, grid, f"Picture {example['filename'].decode()} of {folder}")
                suffix = "." + images.read_header(example["image_bytes"]).format
                (out / split / "Images" / f"{stem}{suffix}").write_bytes(example["image_bytes"])
                write(out / split / "Labels" / f"{stem}.txt", cells, len(manifest["labels"]))
                count, objects = count + 1, objects + len(example["labels"])
        files.write_text(out / NAMES, "\n".join([*manifest["labels"], ""]))
    except OSError as error:
        raise UserError(f"--export_labels {out} must be a folder that can be written to ({files.reason(error)}). "
                        "Choose another folder.") from None
    return count, objects


def cells_of(example, grid, what):
    """The `Cell`s of a parsed record, row by row; `what` names it in a message."""
    pixels = np.array([example["width"], example["height"]], np.float64)
    corners = example["boxes_xyxy"].astype(np.float64).reshape(-1, 2, 2) * pixels
    cells = [Cell(None, ((index % grid + .5) * pixels[0] / grid, (index // grid + .5) * pixels[1] / grid,
                         *(pixels / grid))) for index in range(grid * grid)]
    for (low, high), label in zip(corners, example["labels"]):
        center = (low + high) / 2
        column, row = np.clip((center / pixels * grid).astype(int), 0, grid - 1)
        index = row * grid + column
        if cells[index].label is not None:
            raise UserError(f"{what} must have one object in a cell for the article's label files, and has two in "
                            f"cell ({column},{row}). Give a larger --grid.")
        cells[index] = Cell(int(label), (*center, *(high - low)))
    return cells


def _words(values):
    return " ".join(f"{round(float(value), 3):g}" for value in values)
