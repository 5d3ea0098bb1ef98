"""A trained detector as a serving bundle: what every article's export.py has around its own network.

Signatures (B batch, S side of the network input, M detections kept):
serving_default  images float32 [B, S, S, 3] RGB in 0..1, brought to that size by the client -> boxes [B, M, 4]
                 (xyxy, fractions of the network input, clipped to it), scores [B, M], classes [B, M] int32 (-1
                 behind the last), num [B]
image_bytes      image_bytes string [B], JPEG or PNG files of any size -> the same, but boxes in pixels of the
                 picture, and labels [B, M], the names of the classes ("" behind the last)
network          images as above -> the network's outputs
"""

import json
import pathlib
from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf

from common import boxes, cli, drawing, export, folding, runtime
from common.errors import UserError

# Of the outputs from those of the Keras model in float32. float32: the largest difference, as a share of the
# largest output. bfloat16, 8 bits of mantissa through all layers: the root of the mean square of the
# differences, as a share of the standard deviation.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


class Detector(NamedTuple):
    """What is an article's own in a bundle."""

    geometry: boxes.Geometry
    find: Callable  # (outputs of the network, a list) -> detections of `nms`, boxes in fractions of its input
    outputs: dict   # names of the network's outputs, in the order of tf.nest.flatten, -> what a message calls them


def signatures(detector, config):
    """{signature name: export.Signature} as above."""
    size, geometry = config["image_size"], detector.geometry
    labels = tf.constant([*config["labels"], ""]).numpy()
    images = runtime.images_spec(size)
    files, side = tf.TensorSpec([None], tf.string, "image_bytes"), tf.TensorSpec([], tf.int32)

    def read(encoded):
        image = export.decode_picture(encoded)
        height, width, _ = tf.unstack(tf.shape(image))
        return geometry.to_input(image, size), height, width

    def read_all(image_bytes):
        read_spec = (tf.TensorSpec([size, size, 3], tf.float32), side, side)
        return tf.map_fn(read, image_bytes, fn_output_signature=read_spec)

    def in_fractions(outputs):
        found = detector.find(outputs)
        return {**found, "boxes": boxes.clip(found["boxes"])}

    def in_pixels(outputs, height, width):
        found = detector.find(outputs)
        names = tf.gather(labels, tf.where(found["classes"] < 0, len(labels) - 1, found["classes"]))
        return {**found, "boxes": geometry.to_pixels(found["boxes"], height, width, size), "labels": names}

    def raw(outputs):
        return {name: tf.identity(value) for name, value in zip(detector.outputs, outputs, strict=True)}

    def as_is(images):
        return (tf.identity(images),)

    return {"serving_default": export.Signature(images, as_is, in_fractions),
            "image_bytes": export.Signature(files, read_all, in_pixels),
            "network": export.Signature(images, as_is, raw)}


def write_bundle(folder, model, config, detector, *, extra=None):
    """Writes the bundle of a Keras model, not checked and not published: see `export_bundle`.

    config: kept as config.json. extra: {file name: text or bytes}, further files of assets.extra.
    """
    size = config["image_size"]
    network = folding.freeze(model, runtime.images_spec(size))
    example = example_picture(size)
    gray = tf.make_tensor_proto(0.5, tf.float32, [1, size, size, 3])  # one value stands for all
    requests = [("serving_default", {"images": gray}), ("network", {"images": gray}),
                ("image_bytes", {"image_bytes": np.array([example], object)})]
    kept = {"labels.txt": "\n".join(config["labels"]) + "\n", "config.json": json.dumps(config, indent=2) + "\n",
            "example.jpg": example}
    export.save(folder, network, signatures(detector, config), requests=requests, extra={**kept, **(extra or {})})


def example_picture(size):
    """JPEG bytes of a made-up picture, wider than high, for warm-up and for the README's request."""
    rows, columns = np.mgrid[0:size * 3 // 4, 0:size]
    image = np.stack([columns * 255 // size, rows * 255 // size, (rows + columns) // 8 % 2 * 160], axis=-1)
    box = [size // 4, size // 4, size // 2, size // 2]
    return tf.io.encode_jpeg(drawing.draw_boxes(image, [box], ["example"], class_ids=[1])).numpy()


def check_equal(session, model, config, detector):
    """Raises UserError unless a bundle in an `export.Session` gives what the float32 Keras model gives.

    Outputs of the network are compared with the Keras model's; detections of both signatures with decoding and
    suppression, run by Keras's side on the same outputs: suppression is a choice, which the last bit of a score
    may turn. config: that of the bundle, with its precision.
    """
    size, (to_input, to_pixels) = config["image_size"], detector.geometry
    example = example_picture(size)
    picture = tf.io.decode_image(example, channels=3)
    height, width = picture.shape[:2]
    noise = np.random.default_rng(0).uniform(size=[1, size, size, 3]).astype(np.float32)
    placed = to_input(picture, size)[None].numpy()
    for images in (noise, placed):
        found = session.run("network", {"images": images})
        outputs = [found[name] for name in detector.outputs]
        _check_outputs(outputs, tf.nest.flatten(model(images, training=False)), config, detector)
    # The last outputs are those of the picture.
    expected = detector.find(outputs)
    served = session.run("serving_default", {"images": placed})
    _check_detections("serving_default", served, {**expected, "boxes": boxes.clip(expected["boxes"])}, 1.0, config)
    served = session.run("image_bytes", {"image_bytes": np.array([example], object)})
    pixels = to_pixels(expected["boxes"], [height], [width], size)
    _check_detections("image_bytes", served, {**expected, "boxes": pixels}, max(height, width), config)


def _check_outputs(outputs, expected, config, detector):
    precision = config["precision"]
    for what, served, keras_output in zip(detector.outputs.values(), outputs, expected, strict=True):
        keras_output = np.asarray(keras_output, np.float32)
        difference = np.asarray(served) - keras_output
        if precision == "float32":
            error = np.abs(difference).max() / max(np.abs(keras_output).max(), 1e-6)
        else:
            error = np.sqrt(np.mean(difference**2) / max(np.var(keras_output), 1e-6))
        if not error <= TOLERANCE[precision]:
            raise UserError(
                f"Exported {what} must be those of the Keras model to a share of {TOLERANCE[precision]}, and "
                f"differ by {error:.2g}. Export with --precision float32, and check the run with "
                f"{config['article']}.evaluate."
            )


def _check_detections(signature, served, expected, unit, config):
    for name, value in expected.items():
        tolerance = {"boxes": 1e-3 * unit, "scores": 1e-3}.get(name, 0)
        if not np.allclose(served[name], value, rtol=0, atol=tolerance):
            raise UserError(
                f"Exported {name} of {signature} must be those of {config['article']}.postprocess on the same "
                "logits, and differ. Export again; if it stays, this build of TensorFlow computes wrongly."
            )


def export_bundle(model, config, detector, out, *, reference, readme, extra=None):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    model: built under the policy of config["precision"]. reference: the same in float32, which the bundle must
    equal. readme: keywords of `readme`. extra: as in `write_bundle`.
    """
    def check(folder):
        export.check_bundle(folder, lambda session: check_equal(session, reference, config, detector))

    return export.publish(
        out, lambda folder: write_bundle(folder, model, config, detector, extra=extra), check,
        lambda version: readme_text(pathlib.Path(out), version, config, **readme))


def readme_text(out, version, config, *, title, size_note, network_note):
    """The README.md beside the versions: how to serve and the exact requests.

    title: of the network; size_note: how a client brings its pictures to the network's size; network_note: what
    the signature `network` puts out. The notes may name {number}, the version.
    """
    name, size = out.resolve().name, config["image_size"]
    return README.format(
        name=name, out=out, number=version.name, size=size, title=title, precision=config["precision"],
        serve=export.serve_command(name, out), api=export.SERVING_API, classes=len(config["labels"]),
        max_pixels=export.images.MAX_PIXELS, labels=", ".join(config["labels"][:20]) +
        (", ..." if len(config["labels"]) > 20 else ""), article=config["article"], size_note=size_note,
        network_note=network_note.format(number=version.name))


README = """\
# {name}: {title} for TensorFlow Serving

Version {number}, {precision}, network input {size} x {size}, {classes} classes: {labels}.

    {serve}

A new version in this folder is loaded as soon as it has its number.

## `image_bytes`: files in, pixels out

JPEG or PNG files of any size up to {max_pixels} pixels, EXIF orientation not applied: boxes are in the pixels
as stored. (`{article}.predict` turns pictures as viewers do; turn them upright before sending, if they carry a
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

`images` float32 [B, {size}, {size}, 3], RGB in 0..1, {size_note} \
Answers `boxes` in fractions of that square, `scores`, `classes`, `num`.

## `network`: images in, the outputs of the network out

For those who decode and suppress by themselves: {network_note}
"""


def define_flags(example):
    """The flags of every detector's export.py, besides those of what is kept; example: of --out."""
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_string("out", None, f"Folder of the bundle's versions, e.g. {example}.")
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_enum("precision", "float32", runtime.PRECISIONS, "bfloat16 is several times as fast on "
                      "processors with amx_bf16, slow without it and avx512_bf16, and half the size.")


def require_out(flags, example):
    """Raises UserError without --out."""
    if not flags.out:
        raise UserError(f"--out must name the folder of the bundle, e.g. --out {example}")


def in_precision(model, build, config, precision):
    """The model itself for float32; for bfloat16 the same network, made by `build(config)`, with its weights."""
    if precision == "float32":
        return model
    with runtime.dtype_policy("mixed_bfloat16"):
        half = build(config)
    half.set_weights(model.get_weights())
    return half


def say(version, out):
    """Prints what was exported and where to read on."""
    print(f"{version}: loaded and checked as a server loads it.")
    print(f"{pathlib.Path(out) / 'README.md'} says how to serve and ask it.")
