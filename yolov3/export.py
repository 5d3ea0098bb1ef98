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

import json
import pathlib

import numpy as np
import tensorflow as tf

from common import boxes, cli, drawing, export
from common.errors import UserError
from yolov3 import predict
from yolov3.postprocess import postprocess

PRECISIONS = ("float32", "bfloat16")
# Of the logits from those of the Keras model in float32. float32: the largest difference, as a share of the
# largest logit. bfloat16, 8 bits of mantissa through 75 layers: the root of the mean square of the
# differences, as a share of the standard deviation.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}

check_bundle = export.check_bundle


def signatures(config, **options):
    """{signature name: export.Signature} as above; options: keywords of `postprocess`, fixed in the graph."""
    size = config["image_size"]
    anchors = np.array(config["anchors"], np.float32)
    labels = tf.constant([*config["labels"], ""]).numpy()
    images = tf.TensorSpec([None, size, size, 3], tf.float32, "images")
    files, side = tf.TensorSpec([None], tf.string, "image_bytes"), tf.TensorSpec([], tf.int32)

    def read(encoded):
        image = export.decode_picture(encoded)
        height, width, _ = tf.unstack(tf.shape(image))
        return boxes.letterbox(image, size), height, width

    def read_all(image_bytes):
        read_spec = (tf.TensorSpec([size, size, 3], tf.float32), side, side)
        return tf.map_fn(read, image_bytes, fn_output_signature=read_spec)

    def in_fractions(logits):
        found = postprocess(logits, anchors, (size, size), **options)
        return {**found, "boxes": boxes.clip(found["boxes"])}

    def in_pixels(logits, height, width):
        found = postprocess(logits, anchors, (size, size), **options)
        names = tf.gather(labels, tf.where(found["classes"] < 0, len(labels) - 1, found["classes"]))
        pixels = boxes.unletterbox_boxes(found["boxes"], height, width, size)
        return {**found, "boxes": pixels, "labels": names}

    def raw(logits):
        return {f"logits_{scale}": tf.identity(value) for scale, value in enumerate(logits)}

    def as_is(images):
        return (tf.identity(images),)

    return {"serving_default": export.Signature(images, as_is, in_fractions),
            "image_bytes": export.Signature(files, read_all, in_pixels),
            "network": export.Signature(images, as_is, raw)}


def write_bundle(folder, model, config, *, precision="float32", **options):
    """Writes the bundle of a Keras model, not checked and not published: see `export_bundle`.

    model: built under the policy that `precision` stands for ("mixed_bfloat16" for bfloat16).
    """
    size = config["image_size"]
    network = export.freeze(model, tf.TensorSpec([None, size, size, 3], tf.float32, "images"))
    example = example_picture(size)
    gray = tf.make_tensor_proto(0.5, tf.float32, [1, size, size, 3])  # one value stands for all
    requests = [("serving_default", {"images": gray}), ("network", {"images": gray}),
                ("image_bytes", {"image_bytes": np.array([example], object)})]
    kept = {key: config[key] for key in ("article", "model", "width", "image_size", "labels", "anchors")}
    extra = {"labels.txt": "\n".join(config["labels"]) + "\n",
             "config.json": json.dumps({**kept, "precision": precision, **options}, indent=2) + "\n",
             "example.jpg": example}
    export.save(folder, network, signatures(config, **options), requests=requests, extra=extra)


def example_picture(size):
    """JPEG bytes of a made-up picture, wider than high, for warm-up and for the README's request."""
    rows, columns = np.mgrid[0:size * 3 // 4, 0:size]
    image = np.stack([columns * 255 // size, rows * 255 // size, (rows + columns) // 8 % 2 * 160], axis=-1)
    box = [size // 4, size // 4, size // 2, size // 2]
    return tf.io.encode_jpeg(drawing.draw_boxes(image, [box], ["example"], class_ids=[1])).numpy()


def check_equal(session, model, config, *, precision="float32", **options):
    """Raises UserError unless a bundle in an `export.Session` gives what the float32 Keras model gives.

    Logits are compared with the Keras model's; detections of both signatures with decoding and suppression,
    run by Keras's side on the same logits: suppression is a choice, which the last bit of a score may turn.
    """
    size, anchors = config["image_size"], np.array(config["anchors"], np.float32)
    example = example_picture(size)
    picture = tf.io.decode_image(example, channels=3)
    height, width = picture.shape[:2]
    noise = np.random.default_rng(0).uniform(size=[1, size, size, 3]).astype(np.float32)
    letterboxed = boxes.letterbox(picture, size)[None].numpy()
    for images in (noise, letterboxed):
        found = session.run("network", {"images": images})
        logits = [found[name] for name in sorted(found)]
        _check_logits(logits, model(images, training=False), precision)
    # The last logits are those of the letterboxed picture.
    expected = postprocess(logits, anchors, (size, size), **options)
    served = session.run("serving_default", {"images": letterboxed})
    _check_detections("serving_default", served, {**expected, "boxes": boxes.clip(expected["boxes"])}, 1.0)
    pixels = boxes.unletterbox_boxes(expected["boxes"], [height], [width], size)
    served = session.run("image_bytes", {"image_bytes": np.array([example], object)})
    _check_detections("image_bytes", served, {**expected, "boxes": pixels}, max(height, width))


def _check_logits(logits, expected, precision):
    for scale, (served, keras_logits) in enumerate(zip(logits, expected, strict=True)):
        keras_logits = np.asarray(keras_logits, np.float32)
        difference = np.asarray(served) - keras_logits
        if precision == "float32":
            error = np.abs(difference).max() / max(np.abs(keras_logits).max(), 1e-6)
        else:
            error = np.sqrt(np.mean(difference**2) / max(np.var(keras_logits), 1e-6))
        if not error <= TOLERANCE[precision]:
            raise UserError(
                f"Exported logits of scale {scale} must be those of the Keras model to a share of "
                f"{TOLERANCE[precision]}, and differ by {error:.2g}. Export with --precision float32, and "
                "check the run with yolov3.evaluate."
            )


def _check_detections(signature, served, expected, unit):
    for name, value in expected.items():
        tolerance = {"boxes": 1e-3 * unit, "scores": 1e-3}.get(name, 0)
        if not np.allclose(served[name], value, rtol=0, atol=tolerance):
            raise UserError(
                f"Exported {name} of {signature} must be those of yolov3.postprocess on the same logits, "
                "and differ. Export again; if it stays, this build of TensorFlow computes wrongly."
            )


def export_bundle(model, config, out, *, precision="float32", reference=None, **options):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    model: built under the policy of `precision`. reference: the same in float32, which the bundle must equal;
    default: model itself. options: keywords of `postprocess`.
    """
    def check(folder):
        export.check_bundle(folder, lambda session: check_equal(
            session, reference or model, config, precision=precision, **options))

    return export.publish(
        out, lambda folder: write_bundle(folder, model, config, precision=precision, **options), check,
        lambda version: readme(pathlib.Path(out), version, config, precision))


def readme(out, version, config, precision):
    """The README.md beside the versions: how to serve and the exact requests."""
    name, size = out.resolve().name, config["image_size"]
    return README.format(
        name=name, out=out, number=version.name, size=size, model=config["model"], precision=precision,
        serve=export.serve_command(name, out), api=export.SERVING_API, classes=len(config["labels"]),
        max_pixels=export.images.MAX_PIXELS, labels=", ".join(config["labels"][:20]) +
        (", ..." if len(config["labels"]) > 20 else ""))


README = """\
# {name}: YOLO v3 ({model}) for TensorFlow Serving

Version {number}, {precision}, network input {size} x {size}, {classes} classes: {labels}.

    {serve}

A new version in this folder is loaded as soon as it has its number.

## `image_bytes`: files in, pixels out

JPEG or PNG files of any size up to {max_pixels} pixels, EXIF orientation not applied: boxes are in the pixels
as stored. (`yolov3.predict` turns pictures as viewers do; turn them upright before sending, if they carry a
rotation.) What is no picture, or too large, fails its whole request with INVALID_ARGUMENT (HTTP 400).

    (printf '{{"signature_name": "image_bytes", "instances": [{{"image_bytes": {{"b64": "'; \\
     base64 < photo.jpg | tr -d '\\n'; printf '"}}}}]}}') | \\
      curl -s -d @- http://localhost:8501/v1/models/{name}:predict

Answer, an entry of `predictions` per picture: `boxes` (left, top, right, bottom), `scores`, `classes`,
`labels`, best first, and `num`, how many of them count; the rest is 0, -1 and "".

    # pip install "{api}"
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel("localhost:8500"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "{name}"
    request.model_spec.signature_name = "image_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([open("photo.jpg", "rb").read()]))
    outputs = stub.Predict(request, timeout=60).outputs
    num = tf.make_ndarray(outputs["num"])[0]
    print(tf.make_ndarray(outputs["labels"])[0, :num], tf.make_ndarray(outputs["boxes"])[0, :num])

## `serving_default`: images in, fractions out

`images` float32 [B, {size}, {size}, 3], RGB in 0..1, resized into a grey (0.5) square with the ratio kept
(letterbox). Answers `boxes` in fractions of that square, `scores`, `classes`, `num`.

## `network`: images in, logits out

For those who decode and suppress by themselves: `logits_0`, ... small stride first, [B, h, w, anchors,
5 + classes], packed (x, y, w, h, obj, classes). The anchors are in {number}/assets.extra/config.json.
"""


def define_flags():
    cli.define_run_flag()
    predict.define_detection_flags()
    flags = cli.flags
    flags.DEFINE_string("out", None, "Folder of the bundle's versions, e.g. serving/yolov3.")
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_enum("precision", "float32", PRECISIONS, "bfloat16 is several times as fast on "
                      "processors with amx_bf16, slow without it and avx512_bf16, and half the size.")
    flags.DEFINE_integer("image_size", None, "Side of the network input, a multiple of 32; default: the "
                         "run's.", lower_bound=32)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.out:
        raise UserError("--out must name the folder of the bundle, e.g. --out serving/yolov3")
    model, config = predict.load_run(flags.run, flags.which)
    reference = model
    if flags.image_size:
        if flags.image_size % 32:
            raise UserError(f"--image_size must be a multiple of 32; {flags.image_size} came.")
        config = {**config, "image_size": flags.image_size}
    if flags.precision == "bfloat16":
        with predict.dtype_policy("mixed_bfloat16"):
            model = predict.build(config)
        model.set_weights(reference.get_weights())
    version = export_bundle(model, config, flags.out, precision=flags.precision, reference=reference,
                            **predict.detection_options(flags))
    print(f"{version}: loaded and checked as a server loads it.")
    print(f"{pathlib.Path(flags.out) / 'README.md'} says how to serve and ask it.")


if __name__ == "__main__":
    cli.run(main, define_flags)
