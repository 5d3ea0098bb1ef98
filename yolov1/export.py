"""A trained humble YOLO as a bundle that TensorFlow Serving takes as it is.

    python -m yolov1.export --run runs/yolov1/demo --out serving/yolov1

Signatures (B batch, S side of the network input, M detections kept, C classes, h, w grid, A boxes of a cell):
serving_default  images float32 [B, S, S, 3] RGB in 0..1, resized by the client -> boxes [B, M, 4] (xyxy,
                 fractions of the picture, clipped to it), scores [B, M], classes [B, M] int32 (-1 behind the
                 last), num [B]
image_bytes      image_bytes string [B], JPEG or PNG files of any size -> the same, but boxes in pixels of the
                 picture, and labels [B, M], the names of the classes ("" behind the last)
network          images as above -> predictions [B, h * w, C + 1 + 5 A], see model.py
"""

from common import cli, detection_export, detection_predict
from yolov1 import predict

EXAMPLE = "serving/yolov1"
README = {
    "title": "humble YOLO",
    "size_note": "resized to that size whatever the\nratio of the picture.",
    "network_note": "`predictions` [B, cells, classes + 1 + 5 * boxes],\nall in 0..1, cells row by row, packed "
                    "(class scores, that of none, then x, y, w, h,\nconfidence of each box): x, y in the cell, "
                    "w, h fractions of the picture. grid and num_boxes\nare in "
                    "{number}/assets.extra/config.json.",
}


def detector(config, **options):
    """What is the article's own in a bundle; options: keywords of `postprocess`, fixed in the graph."""
    return detection_export.Detector(predict.GEOMETRY, predict.finder(config, **options),
                                     {"predictions": "predictions"})


def bundle_config(config, precision, options):
    """config.json of a bundle."""
    kept = {key: config[key] for key in ("article", "grid", "num_boxes", "image_size", "hidden", "labels")}
    return {**kept, "precision": precision, **options}


def export_bundle(model, config, out, *, precision="float32", reference=None, **options):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    model: built under the policy that `precision` stands for ("mixed_bfloat16" for bfloat16). reference: the same
    in float32, which the bundle must equal; default: model itself. options: keywords of `postprocess`.
    """
    return detection_export.export_bundle(model, bundle_config(config, precision, options),
                                          detector(config, **options), out, reference=reference or model,
                                          readme=README)


def define_flags():
    detection_export.define_flags(EXAMPLE)
    predict.define_detection_flags()


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    detection_export.require_out(flags, EXAMPLE)
    reference, config = predict.load_run(flags.run, flags.which)
    model = detection_export.in_precision(reference, predict.build, config, flags.precision)
    version = export_bundle(model, config, flags.out, precision=flags.precision, reference=reference,
                            **detection_predict.detection_options(flags))
    detection_export.say(version, flags.out)


if __name__ == "__main__":
    cli.run(main, define_flags)
