"""Detections in pictures, folders, videos and cameras: drawn pictures, JSON lines, images per second.

    python -m ssd.predict --run runs/ssd/voc2007 photo.jpg folder/ "more/*.png" video.mp4 0
    python -m ssd.predict --weights VGG_VOC0712_SSD_300x300.caffemodel --labels voc.names photo.jpg

Article: a video of 1,261 frames at over 50 frames per second, with its compression and decompression. The
last line says both rates, that of network and suppression alone and that of all together.
"""

from common import boxes, cli, detection_predict, runtime, transfers
from common.errors import UserError
from ssd import convert
from ssd.convert import build
from ssd.model import IMAGE_SIZE, anchors
from ssd.postprocess import postprocess

GEOMETRY = boxes.WARP
OUTPUTS = ("logits", "offsets")  # of the network, in the order of tf.nest.flatten


def load_run(folder, which="best", precision="float32"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError.

    precision: float32 or mixed_bfloat16, the arithmetic of the network whatever it was trained in.
    """
    with runtime.dtype_policy(precision):
        return convert.read_run(folder, which)


def load_caffe(weights, labels, precision="float32"):
    """(model, config) of a .caffemodel and a text file of class names. Raises UserError."""
    if not labels:
        raise UserError("--weights needs --labels, a text file with one class name per line (voc.names).")
    labels = transfers.read_labels(labels)
    with runtime.dtype_policy(precision):
        model, name = convert.from_caffe(weights, labels)
    return model, {"article": "ssd", "model": name, "variant": "caffe", "width": 1.0, "batch_norm": False,
                   "image_size": IMAGE_SIZE[name], "labels": labels}


def finder(config, **options):
    """The function from the network's outputs, a list, to detections in fractions; options: of `postprocess`."""
    all_anchors = anchors(config["model"])
    return lambda outputs: postprocess(dict(zip(OUTPUTS, outputs, strict=True)), all_anchors, **options)


def make_detect(infer, config, **options):
    """The function from a list of uint8 RGB pictures to (detections of each, seconds).

    infer: function from images to the network's outputs, a list; options: keywords of `postprocess`.
    """
    return detection_predict.make_detect(infer, config, GEOMETRY, finder(config, **options))


def define_detection_flags():
    """Flags of what is kept as a detection, shared with export. Of its two pictures the article prefers 0.5."""
    detection_predict.define_detection_flags(score_threshold=0.5, iou_threshold=0.45, max_detections=200)


def define_flags():
    detection_predict.define_flags()
    define_detection_flags()
    cli.flags.DEFINE_string("weights", None, ".caffemodel, instead of --run; needs --labels.")
    cli.flags.DEFINE_string("labels", None, "Text file with one class name per line, for --weights.")


def load_network(flags):
    """(network, config) that --run, --weights or --bundle stands for."""
    detection_predict.require_one(flags, ["run", "weights", "bundle"])
    if flags.labels and not flags.weights:
        raise UserError("--labels is of --weights; a run and a bundle have their own. Leave it out.")
    if flags.bundle:
        return runtime.bundle_network(flags.bundle, flags.runtime, article="ssd")
    precision = detection_predict.policy(flags)
    if flags.run:
        model, config = load_run(flags.run, flags.which, precision)
    else:
        model, config = load_caffe(flags.weights, flags.labels, precision)
    return runtime.network(model, config["image_size"], flags.runtime), config


def load_detect(flags):
    """(detect, config) of the command line."""
    infer, config = load_network(flags)
    return make_detect(infer, config, **detection_predict.detection_options(flags)), config


def main(args):
    detection_predict.run(args, load_detect, cli.FLAGS)


if __name__ == "__main__":
    cli.run(main, define_flags)
