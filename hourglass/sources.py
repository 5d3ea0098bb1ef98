"""Readers of the data sets that people have: MPII as JSON and as its own .mat, Leeds Sports Poses, COCO keypoints.

All of them give joints in continuous pixels, pixel i from i to i + 1, and say what the first pixel of the source
is: where counting starts at 1 (MPII, LSP: Matlab), x becomes x - 0.5, and where it starts at 0 (COCO, LSP's
extended set, JSON of your own), x + 0.5, so that a joint on a whole number lies in the middle of its pixel.

K joints.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from common import detection_coco
from common.errors import UserError
from hourglass import annotations, coco, demo, mpii, poses, sides
from hourglass.poses import LSP, Person, Source


class Options(NamedTuple):
    """What a user says of a source, against the rule of its reader where it is not None."""

    first_pixel: int | None = None  # number of the first pixel, 0 or 1
    center_shift: float | None = None  # times the scale: pixels by which a centre is moved down
    seed: int = 0  # of the splits that are dealt


def find(name, source=None, first_pixel=None, seed=0, center_shift=None, pairs=None):
    """The `Source` of data set `name` in `source`, a folder or its annotation file; the demo needs none.

    Looked for in this order, and the first alone if `name` is mpii, lsp or coco_keypoints and asks for it:
    train.json and valid.json in annot/ or in the folder itself (MPII's 16 joints as the article has them), MPII's
    .mat file, joints.mat of LSP, *keypoints*.json of COCO. first_pixel: the number of the first pixel, 0 or 1,
    None as the module's docstring says. center_shift: by how much times their scale MPII's centres are moved down, None
    is 15 for `mpii` and MPII's .mat and 0 else. pairs: as of `sides.parse_pairs`, instead of what the names of the
    joints say. Raises UserError.
    """
    found = _find(name, source, Options(first_pixel, center_shift, seed))
    if center_shift is not None and "center_shift" not in found.facts:
        raise UserError(f"--center_shift moves centres of MPII's annotations, and {name} has none: leave it out.")
    if pairs is None:
        return found
    labels = found.body.labels
    body = poses.with_pairs(found.body, sides.parse_pairs(pairs, labels))
    alone = sides.unpaired(labels, body.pairs) if body.pairs else []
    notes = [f"{', '.join(alone)}: no partner in --pairs, so they stay what they are in a mirror."] * bool(alone)
    return found._replace(body=body, notes=[*found.notes, *notes])


def _find(name, source, options):
    if source is None:
        if name == "demo":
            return demo.source(seed=options.seed)
        raise UserError(f"--source must name the folder of {name} (MPII, LSP or COCO keypoints); only demo is made up "
                        "on the spot.")
    place = pathlib.Path(source)
    if not place.exists():
        raise UserError(f"--source must be a folder with MPII, LSP or COCO keypoints, and {place} does not exist.")
    for reader in (mpii.find_json, mpii.find_mat, _find_lsp, _find_coco):
        if reader is not _WANTED.get(name, reader) and not (name == mpii.NAME and reader is mpii.find_mat):
            continue
        found = reader(place, name, options)
        if found:
            return found
    raise UserError(
        f"--source must hold annot/train.json and annot/valid.json with images/ (MPII as JSON), MPII's .mat file, "
        f"joints.mat (LSP) or annotations/person_keypoints_train2017.json (COCO), and {place} holds nothing that "
        f"{name} could be. Unpack the data there; --dataset names what it is.")


# Leeds Sports Poses.

def _find_lsp(place, name, options):
    files = [file for file in annotations.files_in(place, "joints.mat", "*/joints.mat") if file.suffix == ".mat"]
    if len(files) > 1:
        raise UserError(f"--source must hold one joints.mat, and {place} has {', '.join(map(str, files))}. "
                        "Give one of them.")
    return _lsp(files[0], name, options) if files else None


def _lsp(file, name, options):
    """LSP: joints [3, 14, N], of which the second thousand is for testing, here val; the third row is 1 where a
    joint is occluded. Its extended training set: [14, 3, N]; the third column is 0 where a joint could not be
    annotated, and a tenth, by a hash of the names, is val."""
    joints = np.asarray(annotations.load_mat(file).get("joints", np.zeros(0)))
    extended = joints.ndim == 3 and joints.shape[:2] == (14, 3)
    if not extended and (joints.ndim != 3 or joints.shape[:2] != (3, 14)):
        raise UserError(f"{file} must have joints of 3 x 14 x N or 14 x 3 x N numbers, and has "
                        f"{' x '.join(map(str, joints.shape))}.")
    joints = joints if extended else joints.swapaxes(0, 1)                         # [14, 3, N]
    annotations.refuse_fractions(joints[:, :2], file)
    first = (0 if extended else 1) if options.first_pixel is None else options.first_pixel
    folder, digits = annotations.pictures_of(file), 5 if extended else 4

    def load(item):
        number = int(item[2:-4]) - 1
        third = joints[:, 2, number]
        visible = np.where(third > 0, 2, 0) if extended else np.where(third > 0, 1, 2)
        return Person(folder / item, item, joints[:, :2, number] - first + 0.5, visible, image_id=number,
                      person_id=number)

    names = [f"im{i + 1:0{digits}d}.jpg" for i in range(joints.shape[2])]
    divided = {None: names} if extended or len(names) < 2000 else {"train": names[:1000], "val": names[1000:]}
    divided, notes = annotations.divide(divided, str, options.seed)
    return Source(name, LSP, divided, load, f"Leeds Sports Poses, {file.parent.name}/{file.name}",
                  annotations.without_persons([(folder, names)]), {"first_pixel": first}, notes)


# COCO keypoints.

def _find_coco(place, name, options):
    if not place.is_dir():
        return None
    parts, left_out = detection_coco.find_parts(place, "person_keypoints_")
    first = 0 if options.first_pixel is None else options.first_pixel
    return coco.source(parts, name, first, seed=options.seed, left_out=left_out) if parts else None


_WANTED = {mpii.NAME: mpii.find_json, "lsp": _find_lsp, "coco_keypoints": _find_coco}
