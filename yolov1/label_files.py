"""The article's own label files: a text file beside every picture, a block of lines for each cell of the grid.

    ; cell (0,0)
    0 1 0            class, one of K numbers is 1; the last stands for "none"
    14 22 18 10      box: centre x, centre y, width, height in pixels
    1                confidence: 1 with an object, else 0; the article's listing leaves it out, its code does not
    ...              cells row by row; a cell without an object has the class none and the cell itself as its box
    ---              end; may be missing

Article, "Creating a good dataset". `;` starts a comment. Pictures are in Images/ and label files in Labels/, or
both side by side, either for each split (train/, val/, test/) or once; then a tenth of the pictures is dealt to val by
a hash of their names, as for VOC. Names of classes are in no label file: classes.txt has one on a line, K = 3 is chat
and rat, and --labels says others.
"""

import collections
import itertools
import math
import pathlib
from typing import NamedTuple

import numpy as np

from common import coco_values, detection, detection_data, files, images, media, records, splits
from common.errors import UserError
from yolov1 import words

NAMES = "classes.txt"


class Cell(NamedTuple):
    label: int | None      # 0-based; None for none
    box_cxcywh: tuple      # pixels


def read(path):
    """(cells [h * w], number of classes C) of a label file. Raises UserError that names the file and line."""
    path, rows = pathlib.Path(path), []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
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
    """({split: [(picture, label file)]}, notes, {reason: what else is there}) of a folder with label files; {} without.

    Splits are folders; where none is for training, `folder` itself is. Raises UserError.
    """
    folder, parts, left_out = pathlib.Path(folder), {}, collections.defaultdict(list)
    given, others = splits.folders(folder)
    for split, place in given.items():
        parts[split] = _pairs(place, left_out)
        if not parts[split]:
            left_out["folders of splits without label files"].append(place)
    parts = {split: pairs for split, pairs in parts.items() if pairs}
    if "train" in parts:
        left_out["files or folders beside the folders of splits"] += [path for path in others if path.name != NAMES]
    else:
        pairs = _pairs(folder, left_out, given.values())
        parts |= {None: pairs} if pairs else {}
    parts, notes = detection.divide(parts, key=lambda pair: pair[0].relative_to(folder).as_posix())
    return parts, notes, left_out


def _pairs(folder, left_out, known=()):
    """[(picture, its label file)] by name, numbers in their order; what else there is goes to `left_out`.

    A label file in Labels/ without its picture is in it too, and so is one of a picture of a kind that is not read:
    they are errors. Beside pictures, texts may be anything. known: folders in `folder` that have been read. Raises
    UserError where two pictures have one label file.
    """
    places = folder / "Images", folder / "Labels"
    apart = all(place.is_dir() for place in places)
    entries = list(itertools.chain(*map(splits.entries, places if apart else [folder])))
    entries += [path for path in splits.entries(folder) if path not in places] if apart else []
    kinds = media.PICTURES | splits.UNREAD_PICTURES
    pictures, texts, rest = {}, {}, []
    for path in entries:
        if path.is_dir():
            left_out["folders beside pictures and label files"] += [path] if path not in known else []
        elif path.suffix.lower() in kinds and path.parent == (places[0] if apart else folder):
            pictures.setdefault(path.stem, []).append(path)
        elif path.suffix.lower() == ".txt" and path.parent == (places[1] if apart else folder) and path.name != NAMES:
            texts[path.stem] = path
        elif path.name != NAMES:
            rest.append(path)
    if not apart:
        rest += [texts.pop(stem) for stem in sorted(set(texts) - set(pictures))]
    unlabelled = [path for stem in sorted(set(pictures) - set(texts)) for path in pictures[stem]]
    without, others = splits.of_kinds([*unlabelled, *rest], media.PICTURES)
    left_out["pictures without a label file"] += without
    for reason, paths in others.items():
        left_out[reason] += paths
    for stem in texts:
        if len(pictures.get(stem, [])) > 1:
            raise UserError(f"{texts[stem]} must have one picture, and there are "
                            f"{', '.join(path.name for path in pictures[stem])}. Remove what it does not belong to.")
    stems = sorted(texts, key=lambda stem: (stem.zfill(20), stem))
    return [(pictures.get(stem, [places[0] / f"{stem}.png"])[0], texts[stem]) for stem in stems]


def source(folder, name, labels=None):
    """The `detection.Source` of a folder with the article's label files. Raises UserError."""
    parts, notes, left_out = find_layout(folder)
    items = list(itertools.chain(*parts.values()))
    _, num_classes = read(items[0][1])
    who, labels = "--labels" if labels else NAMES, labels or _class_names(pathlib.Path(folder), num_classes)
    if len(labels) != num_classes:
        raise UserError(f"{folder} has label files of {num_classes} classes besides none; {who} named "
                        f"{len(labels)}: {', '.join(labels)}.")
    coco_values.refuse_fractions(itertools.chain.from_iterable(_corners(items)), folder, "boxes")

    def load(item):
        picture, path = item
        cells, found = read(path)
        if found != num_classes:
            raise UserError(f"{path} must have {num_classes + 1} numbers for a class, as the first label file "
                            f"has; it has {found + 1}. Correct it.")
        objects = [cell for cell in cells if cell.label is not None]
        return detection.Annotation(picture, picture.name, _boxes_xyxy(objects), [cell.label for cell in objects])

    origin = f"the article's label files, {pathlib.Path(folder).name}"
    return detection.Source(name, list(labels), parts, load, origin, left_out, notes)


def _boxes_xyxy(objects):
    """[N, 4] pixels of `Cell`s."""
    boxes_cxcywh = np.array([cell.box_cxcywh for cell in objects], np.float64).reshape(-1, 4)
    centers, halves = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _corners(items):
    """The boxes of all objects, one after the other, but for label files that cannot be read."""
    for _, path in items:
        try:
            yield from _boxes_xyxy([cell for cell in read(path)[0] if cell.label is not None]).tolist()
        except UserError:
            continue


def _class_names(folder, num_classes):
    if (folder / NAMES).is_file():
        return detection_data.read_names(folder / NAMES)
    if num_classes == len(words.LABELS):
        return words.LABELS
    raise UserError(f"{folder} has label files of {num_classes} classes besides none, and no {NAMES}. Name them "
                    "with --labels a,b,c.")


def export(folder, out, grid):
    """Writes a record set as pictures and label files, <out>/<split>/{Images,Labels}; returns what there was.

    {"pictures", "objects", "difficult", "crowds": how many}. The format has neither difficult objects nor crowds: the
    former are objects like all others there, the latter are left out. classes.txt is written last: a folder with it
    is complete. Raises UserError where two objects have their centre in one cell, since the format has one object for
    a cell, where nothing can be written, and where `out` has files: another set's would be taken for this one's.
    """
    manifest, out = records.read_manifest(folder), pathlib.Path(out)
    counts = dict.fromkeys(("pictures", "objects", "difficult", "crowds"), 0)
    try:
        if out.is_dir() and splits.entries(out):
            raise UserError(f"--export_labels {out} must be a new or empty folder, and has files. Remove them, or "
                            "choose another folder.")
        for split, entry in manifest["splits"].items():
            for place in ("Images", "Labels"):
                (out / split / place).mkdir(parents=True, exist_ok=True)
            for item in records.dataset(folder, split, epochs=1) if entry["examples"] else ():
                example = {key: value.numpy() for key, value in detection.parse(item["record"]).items()}
                stem = f"{int(item['index']):06d}"
                single = ~example["is_crowd"]
                counts["crowds"] += int(np.sum(~single))
                example |= {key: example[key][single] for key in ("boxes_xyxy", "labels", "difficult")}
                cells = cells_of(example, grid, f"Picture {example['filename'].decode()} of {folder}")
                suffix = "." + images.read_header(example["image_bytes"]).format
                (out / split / "Images" / f"{stem}{suffix}").write_bytes(example["image_bytes"])
                write(out / split / "Labels" / f"{stem}.txt", cells, len(manifest["labels"]))
                counts["pictures"] += 1
                counts["objects"] += len(example["labels"])
                counts["difficult"] += int(np.sum(example["difficult"]))
        files.write_text(out / NAMES, "\n".join([*manifest["labels"], ""]))
    except OSError as error:
        raise UserError(f"--export_labels {out} must be a folder that can be written to ({files.reason(error)}). "
                        "Choose another folder.") from None
    return counts


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
