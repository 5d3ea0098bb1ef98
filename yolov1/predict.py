"""Detections in pictures, folders, videos and cameras: drawn pictures, JSON lines, images per second.

    python -m yolov1.predict --run runs/yolov1/demo photo.jpg folder/ "more/*.png" video.mp4 0
"""

from common import boxes, cli, detection_predict, runtime
from yolov1.model import humble_yolo
from yolov1.postprocess import postprocess

GEOMETRY = boxes.WARP


def build(config):
    """The network of a run's or a bundle's config.json, with random weights."""
    return humble_yolo(len(config["labels"]), config["grid"], config["num_boxes"], config["image_size"],
                       config["hidden"])


def load_run(folder, which="best", precision="float32"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError.

    precision: float32 or mixed_bfloat16, the arithmetic of the network whatever it was trained in.
    """
    keys = ("grid", "num_boxes", "image_size", "hidden", "labels")
    with runtime.dtype_policy(precision):
        return runtime.read_run(folder, which, article="yolov1", keys=keys, build=build)


def finder(config, **options):
    """The function from the network's outputs to detections in fractions of its input.

    options: keywords of `postprocess`.
    """
    num_classes, num_boxes = len(config["labels"]), config["num_boxes"]
    return lambda outputs: postprocess(outputs[0], num_classes, num_boxes, **options)


def make_detect(infer, config, **options):
    """The function from a list of uint8 RGB pictures to (detections of each, seconds).

    infer: function from images to [predictions]; options: keywords of `postprocess`.
    """
    return detection_predict.make_detect(infer, config, GEOMETRY, finder(config, **options))


def define_detection_flags():
    """Flags of what is kept as a detection, shared with export."""
    detection_predict.define_detection_flags(score_threshold=0.25, iou_threshold=0.45, max_detections=100)


def define_flags():
    detection_predict.define_flags()
    define_detection_flags()


def load_detect(flags):
    """(detect, config) of the command line, of --run or --bundle."""
    detection_predict.require_one(flags, ["run", "bundle"])
    if flags.bundle:
        infer, config = runtime.bundle_network(flags.bundle, flags.runtime, article="yolov1")
    else:
        model, config = load_run(flags.run, flags.which, detection_predict.policy(flags))
        infer = runtime.network(model, config["image_size"], flags.runtime)
    return make_detect(infer, config, **detection_predict.detection_options(flags)), config


def main(args):
    detection_predict.run(args, load_detect, cli.FLAGS)


if __name__ == "__main__":
    cli.run(main, define_flags)
