"""Where the persons of a picture are: all over it, in the boxes of a file, or where an exported detector sees any.

Each is a function from a `media.Frame` to a list of persons, best first: {"box_xyxy": [left, top, right, bottom]
in pixels of the picture as shown (turned as its EXIF orientation says), "score": 0..1, if somebody said it}.
"""

import collections
import csv
import io
import json
import math
import pathlib
import re

import numpy as np
import tensorflow as tf

from common import coco_values, export, files
from common.errors import UserError

PERSON = "person"
ROUNDING = 1e-3  # by which a score may lie beyond 0 and 1
FORMATS = ("detections.jsonl as yolov3.predict writes it, COCO's detection results, a list of {image_id, "
           "category_id, bbox, score}, or CSV with the columns file, left, top, right, bottom (and score, label, "
           "frame)")


def whole_picture(frame):
    """One person, the picture being its box."""
    height, width = frame.image.shape[:2]
    return [{"box_xyxy": [0.0, 0.0, float(width), float(height)]}]


class BoxesFile:
    """The persons that a file of boxes names for a frame.

    Three forms, told apart by their first letter:
    - JSON lines, {"file", "frame", "detections": [{"label", "score", "box_xyxy"}]}, as the detectors' predict.py
      writes them;
    - COCO's detection results, a list of {"image_id", "category_id", "bbox" (x, y, w, h), "score"}; an image_id
      is that of the picture whose name it is, or ends with it: 000000000139.jpg is 139;
    - CSV with a line of column names: file, left, top, right, bottom, and score, label, frame if there are.

    A file is found by the path it had, or else by its name alone where that is no other's. Boxes of other classes
    than `person` (in any case), and with scores that are not above the threshold, are left out; boxes without a class
    or a score are kept. `unused`: names of the file that no frame has asked for; `unknown`: {source: frames} that the
    file says nothing of. Raises UserError.
    """

    def __init__(self, path, person=PERSON, score_threshold=0.0):
        self.path = pathlib.Path(path)
        self.person, self.score_threshold = person, score_threshold
        self._places = collections.defaultdict(list)  # (path or image_id, frame) -> persons
        self._labels = collections.Counter()
        self._used = set()
        self._takers = {}                             # name in the file -> the source that it stands for
        self._largest = []                            # coordinate of every box, by its absolute value
        self._every_frame = False                     # whether frames without persons stand in the file, too
        self.unknown = collections.Counter()
        try:
            text = self.path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--boxes must be a text file of boxes, and {path} cannot be read "
                            f"({files.reason(error)}). It may be {FORMATS}.") from None
        {"[": self._read_coco, "{": self._read_lines}.get(text.lstrip()[:1], self._read_csv)(text)
        coco_values.refuse_fractions(self._largest, path, "boxes")
        self._names = collections.defaultdict(set)
        for name, _ in self._places:
            self._names[pathlib.PurePath(name).name].add(name)

    def __call__(self, frame):
        name = self._name_of(frame.source)
        if name is None or self._every_frame and (name, frame.index) not in self._places:
            self.unknown[frame.source] += 1
        if name is None:
            return []
        self._used.add(name)
        taker = self._takers.setdefault(name, frame.source)
        if taker != frame.source:
            raise UserError(f"{self.path} must name each picture by its path, and {name} could be {taker} or "
                            f"{frame.source}. Write the paths as they are given to predict.")
        found = self._places.get((name, frame.index), [])
        return sorted(found, key=lambda person: -person.get("score", 0.0))

    @property
    def unused(self):
        return sorted({name for name, _ in self._places} - self._used)

    def describe(self):
        """What the file holds, in words."""
        count = sum(len(persons) for persons in self._places.values())
        others = {label: times for label, times in self._labels.items() if not self._is_person(label)}
        names = ", ".join(sorted(others)[:5]) + (", ..." if len(others) > 5 else "")
        more = f", {sum(others.values())} of other classes ({names})" if others else ""
        return f"{self.path}: {count} boxes of {self.person} above {self.score_threshold:g}{more}"

    def _is_person(self, label):
        return label.strip().lower() == self.person.strip().lower()

    def _name_of(self, source):
        """The name in the file that stands for a source; None if none does."""
        path = pathlib.PurePath(source)
        digits = re.search(r"\d+$", path.stem)
        by_name = self._names.get(path.name, ())
        for name in (source, *(by_name if len(by_name) == 1 else ()), path.stem,
                     str(int(digits[0])) if digits else source):
            if name in self._names.get(pathlib.PurePath(name).name, ()):
                return name
        return None

    def _read_lines(self, text):
        self._every_frame = True
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name, frame = str(entry["file"]), int(entry.get("frame", 0))
                found = [(one["box_xyxy"], one.get("score"), one.get("label")) for one in entry["detections"]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._wrong(f"line {number}", error) from None
            if (name, frame) in self._places:
                raise self._wrong(f"line {number}", f"frame {frame} of {name} stands above already")
            self._places[name, frame]  # so that a picture without persons is known, too
            for box, score, label in found:
                self._add(f"line {number}", name, frame, box, score, label)

    def _read_coco(self, text):
        category = {PERSON: "1"}.get(self.person, self.person)  # COCO's number of a person
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise self._wrong("its JSON", error) from None
        for number, entry in enumerate(entries):
            try:
                name, (x, y, w, h) = _text(entry["image_id"]), entry["bbox"]
                box = [x, y, x + w, y + h]
                label = _text(entry.get("category_id"))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._wrong(f"entry {number}", error) from None
            label = self.person if label == category else label
            self._add(f"entry {number}", name, 0, box, entry.get("score"), label)

    def _read_csv(self, text):
        reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
        try:
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise self._wrong(f"line {reader.line_num + 1}", error) from None
        for line, row in rows:
            try:
                name, frame = row["file"], int(row.get("frame") or 0)
                if any(row.get(None) or ()):
                    raise ValueError("more values than columns")
                box = [float(row[side]) for side in ("left", "top", "right", "bottom")]
                score = float(row["score"]) if row.get("score") else None
            except (ValueError, KeyError, TypeError) as error:
                raise self._wrong(f"line {line}", error) from None
            self._add(f"line {line}", name, frame, box, score, row.get("label") or None)

    def _add(self, where, name, frame, box, score, label):
        numbers = [*(box if isinstance(box, list) else ()), 0.0 if score is None else score]
        sound = all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
        if len(numbers) != 5 or not sound:
            raise self._wrong(where, f"box {box} and score {score} must be four finite numbers, and one")
        if box[2] < box[0] or box[3] < box[1]:
            raise self._wrong(where, f"box {box} must have its right edge behind the left one, its bottom below "
                              "its top")
        if score is not None and not -ROUNDING <= score <= 1 + ROUNDING:
            raise self._wrong(where, f"score {score} must lie between 0 and 1")
        self._largest.append(max(box, key=abs))
        persons = self._places[name, frame]
        label = self.person if label is None else str(label)
        self._labels[label] += 1
        if self._is_person(label) and (score is None or score > self.score_threshold):
            person = {"box_xyxy": [float(edge) for edge in box]}
            persons.append(person if score is None else {**person, "score": float(score)})

    def _wrong(self, where, error):
        reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
        return UserError(f"{self.path} must be {FORMATS}; {where} is not ({reason}). Mend or remove it.")


def _text(value):
    """The text of an id, 139 of 139.0; None of None."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else None if value is None else str(value)


class Detector:
    """The persons that an exported detector (yolov3, ssd, yolov1) sees, a bundle or the folder of its versions.

    person: the class, by the bundle's list of labels. Its boxes come from the signature `image_bytes`, so that all
    that happens to a picture is the bundle's own. Raises UserError.
    """

    def __init__(self, folder, person=PERSON, score_threshold=0.0):
        folder = export.resolve_version(folder)
        labels = export.read_config(folder).get("labels", [])
        try:
            self._session = export.Session(folder)
        except (OSError, RuntimeError, tf.errors.OpError) as error:
            raise UserError(f"--detector must be a bundle of a detector, and {folder} cannot be loaded "
                            f"({str(error).splitlines()[0][:200]}). Export it again.") from None
        signature = self._session.signatures.get("image_bytes")
        if signature is None or not {"boxes", "scores", "classes", "num"} <= set(signature.outputs):
            raise UserError(f"--detector must be a bundle with a signature image_bytes that puts out boxes, "
                            f"scores, classes and num; {folder} has none. Export one: python -m yolov3.export")
        if person not in labels:
            known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
            raise UserError(f"The detector must know the class {person!r}; {folder} knows {known or 'none'}. "
                            "Name the one to take: --detector_class")
        self._class_id, self.score_threshold = labels.index(person), score_threshold

    def __call__(self, frame):
        data = tf.io.encode_png(frame.image, compression=0).numpy()  # the pixels as they are, upright
        found = self._session.run("image_bytes", {"image_bytes": np.array([data], object)})
        persons = []
        for rank in range(found["num"][0]):
            score = float(found["scores"][0, rank])
            if found["classes"][0, rank] == self._class_id and score > self.score_threshold:
                box = [round(float(edge), 2) for edge in found["boxes"][0, rank]]
                persons.append({"box_xyxy": box, "score": round(score, 5)})
        return persons
