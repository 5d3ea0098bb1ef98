"""Detections in pictures, folders, videos and cameras: drawn pictures, JSON lines, images per second.

    python -m yolov3.predict --run runs/yolov3/voc2007 photo.jpg folder/ "more/*.png" video.mp4 0
    python -m yolov3.predict --weights yolov3.weights --labels coco.names photo.jpg
"""

import numpy as np

from common import boxes, cli, detection_predict, runtime, transfers
from common.errors import UserError
from yolov3 import convert
from yolov3.convert import build
from yolov3.model import MODELS
from yolov3.postprocess import postprocess

GEOMETRY = boxes.LETTERBOX


def load_run(folder, which="best", precision="float32"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError.

    precision: float32 or mixed_bfloat16, the arithmetic of the network whatever it was trained in.
    """
    with runtime.dtype_policy(precision):
        return convert.read_run(folder, which)


def load_darknet(weights, labels, name=None, *, image_size=None, precision="float32", **options):
    """(model, config) of a Darknet weight file and a text file of class names. Raises UserError.

    options: anchors and cfg, of `convert.from_darknet`.
    """
    if not labels:
        raise UserError("--weights needs --labels, a text file with one class name per line (coco.names).")
    labels = transfers.read_labels(labels)
    with runtime.dtype_policy(precision):
        return convert.from_darknet(weights, labels, name, image_size=image_size, **options)


def finder(config, **options):
    """The function from logits to detections in fractions of the network input; options: of `postprocess`."""
    anchors, size = np.array(config["anchors"], np.float32), config["image_size"]
    return lambda logits: postprocess(logits, anchors, (size, size), **options)


def make_detect(infer, config, **options):
    """The function from a list of uint8 RGB pictures to (detections of each, seconds).

    infer: function from images to logits; options: keywords of `postprocess`.
    """
    return detection_predict.make_detect(infer, config, GEOMETRY, finder(config, **options))


def define_detection_flags():
    """Flags of what is kept as a detection, shared with export."""
    detection_predict.define_detection_flags(score_threshold=0.25, iou_threshold=0.45, max_detections=100)


def define_flags():
    detection_predict.define_flags()
    define_detection_flags()
    flags = cli.flags
    flags.DEFINE_string("weights", None, "Darknet weight file, instead of --run; needs --labels.")
    flags.DEFINE_string("labels", None, "Text file with one class name per line, for --weights.")
    flags.DEFINE_enum("model", None, list(MODELS), "Network of --weights; default: the one its length fits.")
    convert.define_anchor_flags()
    flags.DEFINE_integer("image_size", None, "Side of the network input, a multiple of 32; default: the "
                         "run's, that of --cfg, or 416.", lower_bound=32)


def load_network(flags):
    """(network, config) that --run, --weights or --bundle stands for."""
    detection_predict.require_one(flags, ["run", "weights", "bundle"])
    size = flags.image_size
    if size and size % 32:
        raise UserError(f"--image_size must be a multiple of 32; {size} came.")
    if (flags.anchors or flags.cfg or flags.labels or flags.model) and not flags.weights:
        raise UserError("--anchors, --cfg, --labels and --model are of --weights; a run and a bundle have their own. "
                        "Leave them out.")
    if flags.bundle:
        if size:
            raise UserError("--image_size is fixed in a bundle; leave it out, or give --run.")
        return runtime.bundle_network(flags.bundle, flags.runtime, article="yolov3")
    precision = detection_predict.policy(flags)
    if flags.run:
        model, config = load_run(flags.run, flags.which, precision)
        config = {**config, "image_size": size or config["image_size"]}
    else:
        model, config = load_darknet(flags.weights, flags.labels, flags.model, image_size=size, precision=precision,
                                     anchors=flags.anchors, cfg=flags.cfg)
    return runtime.network(model, config["image_size"], flags.runtime), config


def load_detect(flags):
    """(detect, config) of the command line."""
    infer, config = load_network(flags)
    return make_detect(infer, config, **detection_predict.detection_options(flags)), config


def main(args):
    detection_predict.run(args, load_detect, cli.FLAGS)


if __name__ == "__main__":
    cli.run(main, define_flags)
