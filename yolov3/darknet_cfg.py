"""Darknet's cfg files, and which anchors a weight file was trained with.

A weight file says neither: whoever decodes it with other anchors gets boxes of the wrong size, without an error. The
published yolov3-tiny.weights is such a case. Its cfg file had `mask = 1,2,3` at stride 16 when it was trained, was
"corrected" to 0,1,2 later, and the weights stayed (pjreddie/darknet#764, AlexeyAB/darknet#1341).

A cfg file lists its scales from the large stride to the small one, all anchors in one row, and for each scale the
places of its own in that row (mask). Here anchors are [scales, A, 2] (w, h) in pixels of the network input, the scale
of the smallest stride first.
"""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from common import files
from common.errors import UserError
from yolov3 import model as models

# By sha256 of the file: what its authors trained it with, and how many bytes it has.
PUBLISHED = {"dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c": (
    35_434_956, "yolov3-tiny.weights", [[[23, 27], [37, 58], [81, 82]], [[81, 82], [135, 169], [344, 319]]])}


class Cfg(NamedTuple):
    """What a cfg file says of a network."""

    model: str  # a key of `model.MODELS`
    width: float
    image_size: int
    num_classes: int
    anchors: np.ndarray


def find_anchors(weights, name, *, asked=None, cfg=None):
    """(anchors of a Darknet weight file, where they come from in words).

    name: a key of `model.MODELS`. asked: anchors of the command line, which come first; then those of a file that is
    known by its sha256, whatever its cfg says; then those of `cfg`, a `Cfg`; then the defaults of the network.
    """
    published = _published(weights)
    if asked is not None:
        others = published is not None and not np.array_equal(asked, published[0])
        return asked, "--anchors" + (f", though {text_of(published[0])} are those of {published[1]}" if others else "")
    if published is not None:
        return published
    if cfg is not None:
        return cfg.anchors, "--cfg"
    source = f"the defaults of {name}; if it was trained with others, give --cfg or --anchors"
    return models.DEFAULT_ANCHORS[name], source


def say(weights, anchors, source):
    """The line that says which anchors a weight file was given."""
    return f"anchors of {weights}: {text_of(anchors)} ({source})"


def text_of(anchors):
    """Anchors as train.py's --anchors takes them: "10,13 16,30 ..."."""
    return " ".join(f"{width:g},{height:g}" for width, height in np.reshape(anchors, [-1, 2]))


def read(path):
    """The `Cfg` of a file. Raises UserError where it is none of a network of ours."""
    path = pathlib.Path(path)
    try:
        sections = _sections(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cfg must be a Darknet cfg file, and {path} cannot be read ({files.reason(error)})."
                        ) from None
    scales = [values for section, values in sections if section == "yolo"]
    name = {2: "tiny", 3: "yolov3"}.get(len(scales))
    if name is None or sections[0][0] not in ("net", "network"):
        raise UserError(f"{path} must be the cfg of YOLO v3 or its tiny or spp variant, with [net] and two or three "
                        f"[yolo] sections, and has {len(scales)}.")
    if name == "yolov3" and any(section == "maxpool" for section, _ in sections):
        name = "spp"
    net = sections[0][1]
    try:
        anchors = np.stack([_of_scale(values) for values in scales[::-1]])
        classes, side = {int(values["classes"]) for values in scales}, {int(net["width"]), int(net["height"])}
        widest = max(int(values["filters"]) for _, values in sections if "batch_normalize" in values)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} must have mask, anchors and classes in each [yolo] section, the same number of "
                        f"anchors in each mask, and width and height in [net] ({type(error).__name__}: {error})."
                        ) from None
    if len(classes) > 1 or len(side) > 1 or min(side) % 32:
        raise UserError(f"{path} must have one number of classes and a square input with a side that is a multiple of "
                        f"32, and has {sorted(classes)} and {net['width']} x {net['height']}.")
    require_rising_scales(anchors, str(path))
    return Cfg(name, widest / 1024, side.pop(), classes.pop(), anchors)


def require_rising(anchors, where="--anchors"):
    """Raises UserError unless the anchors of a command line rise in area, within each scale and from scale to scale.

    Small anchors on a coarse grid, or a row in Darknet's order of scales, are a mistake that no error would show.
    """
    areas = np.prod(np.reshape(anchors, [-1, 2]), axis=1)
    falls = np.flatnonzero(np.diff(areas) < 0)
    if len(falls):
        first, second = (text_of(np.reshape(anchors, [-1, 2])[i]) for i in (falls[0], falls[0] + 1))
        raise UserError(f"{where} must rise in area, from the smallest stride to the largest, and {second} comes "
                        f"behind {first}. Sort them for a new training; if a file was trained in this order, give its "
                        "--cfg.")


def require_rising_scales(anchors, where):
    """Raises UserError unless anchors are larger at a larger stride, by the mean of their areas.

    Within a scale weights know their anchors by their places: whatever the order was, it must stay.
    """
    means = np.prod(anchors, axis=-1).mean(axis=-1)
    falls = np.flatnonzero(np.diff(means) < 0)
    if len(falls):
        first, second = (text_of(np.asarray(anchors)[i]) for i in (falls[0], falls[0] + 1))
        raise UserError(f"{where} must have larger anchors at a larger stride, and has {first} before {second}: the "
                        "scales are in another order, or the masks are wrong.")


def text(model, anchors, image_size, num_classes):
    """The cfg file of `model`, a network of model.py, as Darknet and OpenCV read it."""
    anchors = np.asarray(anchors)
    places = np.arange(anchors.shape[0] * anchors.shape[1]).reshape(anchors.shape[:2])
    row = text_of(anchors).replace(" ", ",  ")
    filters = iter([layer.filters for layer in sorted(
        (layer for layer in model.layers if layer.name.startswith("conv_")), key=lambda layer: layer.name)])

    def conv(size, stride=1):
        return [("convolutional", {"batch_normalize": 1, "filters": next(filters), "size": size, "stride": stride,
                                   "pad": 1, "activation": "leaky"})]

    def yolo(scale):
        return [("convolutional", {"filters": next(filters), "size": 1, "stride": 1, "pad": 1, "activation": "linear"}),
                ("yolo", {"mask": ",".join(map(str, places[scale])), "anchors": row, "classes": num_classes,
                          "num": places.size, "jitter": ".3", "ignore_thresh": ".7", "truth_thresh": 1, "random": 1})]

    def route(*layers):
        return [("route", {"layers": ",".join(map(str, layers))})]

    def pool(size, stride):
        return [("maxpool", {"size": size, "stride": stride})]

    def up(skip):
        return [*route(-4), *conv(1), ("upsample", {"stride": 2}), *route(-1, skip)]

    def blocks(count):
        block = [("shortcut", {"from": -3, "activation": "linear"})]
        return [section for _ in range(count) for section in (*conv(1), *conv(3), *block)]

    sections = [("net", {"batch": 1, "subdivisions": 1, "width": image_size, "height": image_size, "channels": 3,
                         "momentum": 0.9, "decay": 0.0005, "learning_rate": 0.001, "burn_in": 1000,
                         "max_batches": 500200, "policy": "steps", "steps": "400000,450000", "scales": ".1,.1"})]
    if "tiny" in model.name:
        for _ in range(5):
            sections += [*conv(3), *pool(2, 2)]
        sections += [*conv(3), *pool(2, 1), *conv(3), *conv(1), *conv(3), *yolo(1)]
        sections += [*up(8), *conv(3), *yolo(0)]
    else:
        sections += conv(3)
        for count in (1, 2, 8, 8, 4):
            sections += [*conv(3, 2), *blocks(count)]
        for scale, skip in ((2, None), (1, 61), (0, 36)):
            sections += [*(up(skip) if skip else []), *conv(1), *conv(3), *conv(1)]
            if "spp" in model.name and not skip:
                sections += [*pool(5, 1), *route(-2), *pool(9, 1), *route(-4), *pool(13, 1), *route(-1, -3, -5, -6),
                             *conv(1)]
            sections += [*conv(3), *conv(1), *conv(3), *yolo(scale)]
    return "\n".join(f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
                     for name, values in sections)


def _published(weights):
    """(anchors, words) of a weight file that is known; None of any other."""
    path = pathlib.Path(weights)
    for digest, (size, name, anchors) in PUBLISHED.items():
        if path.is_file() and path.stat().st_size == size and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return (np.array(anchors, np.float32),
                    f"the published {name}, by its sha256; it was trained with mask 1,2,3, whatever its cfg says")
    return None


def _sections(text):
    """[(section, {key: value})] of a cfg file; blanks and comments do not count."""
    sections = []
    for line in text.splitlines():
        line = "".join(line.split("#")[0].split(";")[0].split())
        if line.startswith("["):
            sections.append((line.strip("[]").lower(), {}))
        elif "=" in line and sections:
            key, value = line.split("=", 1)
            sections[-1][1][key] = value
    return sections or [("", {})]


def _of_scale(values):
    """Anchors [A, 2] of one [yolo] section."""
    row = np.array(values["anchors"].split(","), np.float32).reshape(-1, 2)
    return row[[int(place) for place in values["mask"].split(",")]]
