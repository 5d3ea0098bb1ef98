"""A trained SSD as a bundle that TensorFlow Serving takes as it is.

    python -m ssd.export --run runs/ssd/voc2007 --out serving/ssd --precision bfloat16

Signatures (B batch, S side of the network input, M detections kept, A anchors, C classes):
serving_default  images float32 [B, S, S, 3] RGB in 0..1, resized by the client -> boxes [B, M, 4] (xyxy, fractions
                 of the picture, clipped to it), scores [B, M], classes [B, M] int32 (without the background; -1
                 behind the last), num [B]
image_bytes      image_bytes string [B], JPEG or PNG files of any size -> the same, but boxes in pixels of the
                 picture, and labels [B, M], the names of the classes ("" behind the last)
network          images as above -> logits [B, A, 1 + C], offsets [B, A, 4]
The anchors, boxes_cxcywh [A, 4] in fractions, are in assets.extra/anchors.npy.
"""

import io

import numpy as np

from common import cli, detection_export, detection_predict
from ssd import predict
from ssd.model import VARIANCES, anchors

EXAMPLE = "serving/ssd"
README = {
    "size_note": "resized to that size whatever the\nratio of the picture.",
    "network_note": "`logits` [B, anchors, 1 + classes],\nbefore the softmax, class 0 is the background, and "
                    "`offsets` [B, anchors, 4]: with the anchors (cx, cy, w, h) of\n"
                    "{number}/assets.extra/anchors.npy, in fractions, and variances " + f"{VARIANCES}, a box has\n"
                    "the centre anchor_xy + variance * offset_xy * anchor_wh and the size\n"
                    "anchor_wh * exp(variance * offset_wh).",
}


def detector(config, **options):
    """What is SSD's own in a bundle; options: keywords of `postprocess`, fixed in the graph."""
    return detection_export.Detector(predict.GEOMETRY, predict.finder(config, **options),
                                     dict(zip(predict.OUTPUTS, predict.OUTPUTS)))


def bundle_config(config, precision, options):
    """config.json of a bundle."""
    keys = ("article", "model", "variant", "width", "batch_norm", "image_size", "labels")
    return {**{key: config[key] for key in keys}, "precision": precision, **options}


def anchor_file(config):
    """{"anchors.npy": its bytes}, for those who decode by themselves."""
    file = io.BytesIO()
    np.save(file, anchors(config["model"]))
    return {"anchors.npy": file.getvalue()}


def write_bundle(folder, model, config, *, precision="float32", **options):
    """Writes the bundle of a Keras model, not checked and not published: see `export_bundle`."""
    detection_export.write_bundle(folder, model, bundle_config(config, precision, options),
                                  detector(config, **options), extra=anchor_file(config))


def export_bundle(model, config, out, *, precision="float32", reference=None, **options):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    model: built under the policy that `precision` stands for ("mixed_bfloat16" for bfloat16). reference: the same
    in float32, which the bundle must equal; default: model itself. options: keywords of `postprocess`.
    """
    return detection_export.export_bundle(
        model, bundle_config(config, precision, options), detector(config, **options), out,
        reference=reference or model, readme={"title": f"SSD ({config['model']})", **README},
        extra=anchor_file(config))


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
