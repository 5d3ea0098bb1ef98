"""A face drawn with a few blobs, which the face detector takes for one: no photo of a person is needed."""

import functools

import cv2
import numpy as np

EYE_DISTANCE, MIDDLE = 90, (240, 270)  # of the picture as drawn, 640 x 480
HAIR, SKIN, SHADE = (70, 48, 34), (224, 178, 150), (190, 138, 114)
# (x, y, radius x, radius y) in eye distances from the middle between the eyes, colour, share of the radius in
# which it fades, opacity; mirrored: the same on the other side.
BLOBS = [
    (0, 3.6, 2.6, 1.4, (70, 80, 120), 0.03, 1), (0, 2.1, 0.62, 0.9, (196, 148, 122), 0.06, 1),
    (0, -0.35, 1.35, 1.45, HAIR, 0.05, 1), (0, 0.38, 1.15, 1.5, SKIN, 0.04, 1),
    (0, 1.75, 0.6, 0.3, SHADE, 0.9, 0.5), (0, -0.5, 0.8, 0.3, (238, 198, 172), 0.9, 0.6),
    (0, 0.3, 0.1, 0.4, (236, 194, 168), 0.9, 0.8), (0, 0.55, 0.13, 0.1, (236, 192, 168), 0.8, 0.9),
    (0, 1.02, 0.4, 0.07, (180, 90, 85), 0.4, 1), (0, 1.1, 0.33, 0.09, (200, 110, 102), 0.4, 1),
    (0, 1.055, 0.38, 0.016, (110, 45, 45), 0.5, 1), (0, -1.15, 1.1, 0.42, HAIR, 0.25, 1)]
MIRRORED = [
    (1.17, 0.25, 0.16, 0.32, (205, 155, 130), 0.1, 1), (0.95, 0.7, 0.45, 0.9, SHADE, 0.9, 0.55),
    (0.6, 0.75, 0.35, 0.25, (230, 150, 135), 0.9, 0.5), (0.5, 0, 0.36, 0.22, SHADE, 0.8, 0.7),
    (0.5, -0.01, 0.235, 0.11, (245, 243, 240), 0.15, 1), (0.5, -0.01, 0.1, 0.1, (86, 62, 40), 0.15, 1),
    (0.5, -0.01, 0.05, 0.05, (15, 12, 10), 0.2, 1), (0.5, -0.11, 0.25, 0.035, (80, 50, 40), 0.5, 1),
    (0.52, -0.3, 0.33, 0.06, HAIR, 0.5, 1), (0.16, 0.58, 0.1, 0.1, SHADE, 0.8, 0.8),
    (0.09, 0.62, 0.045, 0.03, (95, 55, 45), 0.6, 1)]
KEYPOINTS = {"right_eye": (-0.5, -0.01), "left_eye": (0.5, -0.01), "nose": (0, 0.6), "mouth": (0, 1.055)}


def keypoint(name):
    """(x, y) in pixels of `face()`."""
    return np.array(KEYPOINTS[name]) * EYE_DISTANCE + MIDDLE


def face(angle=0.0):
    """uint8 RGB [640, 480, 3], turned by degrees clockwise about the middle between the eyes."""
    turn = cv2.getRotationMatrix2D(MIDDLE, -angle, 1)
    return cv2.warpAffine(_upright(), turn, (480, 640), borderMode=cv2.BORDER_REPLICATE) if angle else _upright()


@functools.cache
def _upright():
    y, x = np.mgrid[:640, :480].astype(np.float32) + np.float32(0.5)
    image = np.stack([120 + y / 11, 150 + x / 12, 170 - y / 16], -1).astype(np.float32)

    def blob(at_x, at_y, radius_x, radius_y, color, soft, opacity):
        away = np.hypot((x - MIDDLE[0] - at_x * EYE_DISTANCE) / (radius_x * EYE_DISTANCE),
                        (y - MIDDLE[1] - at_y * EYE_DISTANCE) / (radius_y * EYE_DISTANCE))
        share = (np.clip((1 - away) / soft, 0, 1) * opacity)[..., None]
        image[:] = image * (1 - share) + np.float32(color) * share

    for values in BLOBS[:4]:
        blob(*values)
    for at_x, *values in MIRRORED:
        blob(at_x, *values)
        blob(-at_x, *values)
    for values in BLOBS[4:]:
        blob(*values)
    image += np.random.default_rng(0).normal(0, 3, image.shape[:2] + (1,))
    image = np.clip(image, 0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image
