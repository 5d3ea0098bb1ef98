"""A trained YOLO v3 as a bundle that TensorFlow Serving takes as it is.

    python -m yolov3.export --run runs/yolov3/voc2007 --out serving/yolov3 --precision bfloat16

Signatures (B batch, S side of the network input, M detections kept, C classes, h, w grid, A anchors):
serving_default  images float32 [B, S, S, 3] RGB in 0..1, letterboxed by the client -> boxes [B, M, 4] (xyxy,
                 fractions of the network input, clipped to it), scores [B, M], classes [B, M] int32 (-1
                 behind the last), num [B]
image_bytes      image_bytes string [B], JPEG or PNG files of any size -> the same, but boxes in pixels of the
                 picture, and labels [B, M], the names of the classes ("" behind the last)
network          images as above -> logits_0, logits_1, ... [B, h, w, A, 5 + C], small stride first
"""

from common import cli, detection_export, detection_predict
from common.errors import UserError
from yolov3 import predict

EXAMPLE = "serving/yolov3"
README = {
    "size_note": "resized into a grey (0.5) square with the ratio kept\n(letterbox).",
    "network_note": "`logits_0`, ... small stride first, [B, h, w, anchors,\n5 + classes], packed "
                    "(x, y, w, h, obj, classes). The anchors are in {number}/assets.extra/config.json.",
}


def detector(config, **options):
    """What is YOLO's own in a bundle; options: keywords of `postprocess`, fixed in the graph."""
    outputs = {f"logits_{scale}": f"logits of scale {scale}" for scale in range(len(config["anchors"]))}
    return detection_export.Detector(predict.GEOMETRY, predict.finder(config, **options), outputs)


def bundle_config(config, precision, options):
    """config.json of a bundle."""
    kept = {key: config[key] for key in ("article", "model", "width", "image_size", "labels", "anchors")}
    return {**kept, "precision": precision, **options}


def write_bundle(folder, model, config, *, precision="float32", **options):
    """Writes the bundle of a Keras model, not checked and not published: see `export_bundle`."""
    detection_export.write_bundle(folder, model, bundle_config(config, precision, options),
                                  detector(config, **options))


def export_bundle(model, config, out, *, precision="float32", reference=None, **options):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    model: built under the policy that `precision` stands for ("mixed_bfloat16" for bfloat16). reference: the same
    in float32, which the bundle must equal; default: model itself. options: keywords of `postprocess`.
    """
    return detection_export.export_bundle(
        model, bundle_config(config, precision, options), detector(config, **options), out,
        reference=reference or model, readme={"title": f"YOLO v3 ({config['model']})", **README})


def define_flags():
    detection_export.define_flags(EXAMPLE)
    predict.define_detection_flags()
    cli.flags.DEFINE_integer("image_size", None, "Side of the network input, a multiple of 32; default: the "
                             "run's.", lower_bound=32)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    detection_export.require_out(flags, EXAMPLE)
    reference, config = predict.load_run(flags.run, flags.which)
    if flags.image_size:
        if flags.image_size % 32:
            raise UserError(f"--image_size must be a multiple of 32; {flags.image_size} came.")
        config = {**config, "image_size": flags.image_size}
    model = detection_export.in_precision(reference, predict.build, config, flags.precision)
    version = export_bundle(model, config, flags.out, precision=flags.precision, reference=reference,
                            **detection_predict.detection_options(flags))
    detection_export.say(version, flags.out)


if __name__ == "__main__":
    cli.run(main, define_flags)
