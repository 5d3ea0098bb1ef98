"""The article's data set, made by a program: the words `chat` and `rat`, or none, in each cell of a picture.

Article, "Creating a good dataset". Everything in a picture follows from (seed, index). As there, words are white
on black, about 25 x 9 and 15 x 9 pixels in a picture of 64 x 64 with 2 x 2 cells, and their centres lie anywhere
in the cell. Here no word is cut by the border or lies on another, and a box is what the word really covers.

S side of the picture, N words in it.
"""

import functools
import math

import cv2
import numpy as np
import tensorflow as tf

from common import detection
from common.errors import UserError

NAME = "chat_rat"
LABELS = ["chat", "rat"]
SPLITS = {"train": 5000, "val": 500, "test": 500}
SMALLEST_CELL = 20  # pixels; letters of smaller cells cannot be read
_SUBPIXELS = 8      # words are drawn this much larger and averaged, for smooth edges
_TRIES = 50         # for a place beside the words that are there already


def draw(seed, index, size=64, grid=2, words=tuple(LABELS)):
    """Picture `index` of a series: image uint8 [S, S, 3] RGB, boxes_xyxy int32 [N, 4] pixels, labels int32 [N].

    In every cell each word, and none, has the same chance. A cell of a crowded picture may stay empty.
    """
    rng = np.random.default_rng([seed, index])
    canvas, boxes_xyxy, labels, cell = np.zeros([size, size], np.uint8), [], [], size // grid
    for row in range(grid):
        for column in range(grid):
            label = int(rng.integers(len(words) + 1))
            if label == len(words):
                continue
            ink = word_picture(words[label], cell)
            for _ in range(_TRIES):
                left = _place(rng, column, cell, ink.shape[1], size)
                top = _place(rng, row, cell, ink.shape[0], size)
                box = left, top, left + ink.shape[1], top + ink.shape[0]
                if all(_apart(box, other) for other in boxes_xyxy):
                    canvas[top:box[3], left:box[2]] = ink
                    boxes_xyxy.append(box)
                    labels.append(label)
                    break
    image = np.repeat(canvas[..., None], 3, axis=-1)
    return image, np.array(boxes_xyxy, np.int32).reshape(-1, 4), np.array(labels, np.int32)


@functools.cache
def word_picture(word, cell):
    """The word in white on black, cut out tightly: uint8 [height, width]; letters grow with the cell."""
    scale, thickness = _SUBPIXELS * cell / 32 * 0.36, round(_SUBPIXELS * cell / 32 * 1.1)
    (width, height), baseline = cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    shape = [math.ceil((side + 4 * thickness) / _SUBPIXELS) for side in (height + baseline, width)]
    large = np.zeros([side * _SUBPIXELS for side in shape], np.uint8)
    origin = 2 * thickness, height + 2 * thickness
    cv2.putText(large, word, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thickness, cv2.LINE_AA)
    ink = cv2.resize(large, shape[::-1], interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero((ink >= 64).any(axis=1)), np.flatnonzero((ink >= 64).any(axis=0))
    return ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def source(*, name=NAME, seed=0, size=64, grid=2, words=tuple(LABELS), splits=None):
    """The pictures as a `detection.Source`; `splits` maps a split to its number of pictures. Raises UserError."""
    words = tuple(words)
    if size % grid or size // grid < SMALLEST_CELL:
        raise UserError(f"--image_size of made-up words must be a multiple of --grid, with cells of at least "
                        f"{SMALLEST_CELL} pixels; {size} and {grid} came.")
    for word in words:
        if not (word.isascii() and word.isprintable() and word.strip()):
            raise UserError(f"Words must be of letters from a to z, digits and ASCII signs, for others cannot be "
                            f"drawn, and {word!r} is not. Give other --labels.")
        if word_picture(word, size // grid).shape[1] > size:
            raise UserError(f"Words must fit into the picture of {size} pixels, and {word!r} does not. Give "
                            "shorter --labels, or a larger --image_size and --grid.")
    items, first = {}, 0
    for split, count in (splits or SPLITS).items():
        items[split] = range(first, first + count)
        first += count

    def load(index):
        image, boxes_xyxy, labels = draw(seed, index, size, grid, words)
        data = tf.io.encode_png(image).numpy()
        return detection.Annotation(data, f"{index:06d}.png", boxes_xyxy, labels, (size, size))

    return detection.Source(name, list(words), items, load, f"made up, seed {seed}")


def build(out_root="tfrecords", *, name=NAME, num_workers=None, progress=True, **options):
    """Writes the records to `out_root`/`name` and returns the `building.Report`; options: of `source`."""
    made_up = source(name=name, **options)
    return detection.build_records(made_up, out_root, num_workers=num_workers, progress=progress)


def _place(rng, index, cell, side, size):
    """Where something of `side` pixels starts whose centre lies in cell `index`, inside the picture."""
    low, high = math.ceil(index * cell - side / 2), math.ceil((index + 1) * cell - side / 2)
    return int(rng.integers(max(low, 0), max(min(high, size - side + 1), max(low, 0) + 1)))


def _apart(a, b):
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
