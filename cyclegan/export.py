"""Trained generators as a bundle that TensorFlow Serving takes as it is, or as LiteRT files for small devices.

    python -m cyclegan.export --run runs/cyclegan/horse2zebra --out serving/horse2zebra
    python -m cyclegan.export --run runs/cyclegan/horse2zebra --format litert --out litert/horse2zebra

Signatures of the bundle (B batch, H, W picture, of any size):
a2b, b2a              images float32 [B, H, W, 3] RGB in 0..1 -> pictures, the same
serving_default       as a2b
a2b_bytes, b2a_bytes  image_bytes string [B], JPEG or PNG files of any sizes -> png_bytes string [B], PNG files
                      of the same sizes

Pictures go through a network one after the other, because they may differ in size and are normalised by
themselves; so the memory that a request takes is that of its largest one. More than `MAX_PIXELS` are refused. The
LiteRT files are described in `litert`.
"""

import json
import pathlib

import cv2
import numpy as np
import tensorflow as tf

from common import cli, detection_export, export, folding, runtime
from common.errors import UserError
from cyclegan import litert, predict

EXAMPLE = "serving/horse2zebra"
MAX_PIXELS = 2**22  # 2048 x 2048, for which a network takes several gigabytes

# Of pictures in 0..1: float32 sums in another order; in bfloat16, which rounds to 8 bits in each of some 50
# layers, the root of the mean square.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}


def network(generator):
    """A generator as a ConcreteFunction without variables, for any number of pictures of any sizes.

    Its one input and its one output are strings [B]: serialized tensors float32 [H, W, 3] in 0..1, which are as
    they are wherever pictures of different sizes have to go through one tensor.
    """
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "pictures")], autograph=False)
    def infer(pictures):
        def one(picture):
            return tf.io.serialize_tensor(predict.run_generator(generator, parse(picture)))

        return [tf.map_fn(one, pictures, fn_output_signature=tf.string, parallel_iterations=1)]

    return folding.inlined(infer.get_concrete_function())


def parse(picture):
    """The image float32 [H, W, 3] of a serialized tensor, in the graph."""
    return tf.ensure_shape(tf.io.parse_tensor(picture, tf.float32), [None, None, 3])


def signatures():
    """{signature name: export.Signature} as above."""
    images = tf.TensorSpec([None, None, None, 3], tf.float32, "images")
    files = tf.TensorSpec([None], tf.string, "image_bytes")

    def each(function, values, spec):
        return tf.map_fn(function, values, fn_output_signature=spec, parallel_iterations=1)

    def from_images(images):
        pixels = tf.reduce_prod(tf.cast(tf.shape(images)[1:3], tf.int64))
        fits = tf.debugging.Assert((pixels > 0) & (pixels <= MAX_PIXELS),
                                   [f"images must have 1 to {MAX_PIXELS} pixels each, and have", pixels])
        with tf.control_dependencies([fits]):
            return (each(tf.io.serialize_tensor, tf.identity(images), tf.string),)

    def to_images(outputs):
        spec = tf.TensorSpec([None, None, 3], tf.float32)
        return {"pictures": each(parse, outputs[0], spec)}

    def from_files(image_bytes):
        def read(data):
            image = export.decode_picture(data, MAX_PIXELS, on_white=True)
            return tf.io.serialize_tensor(tf.cast(image, tf.float32) / 255)

        return (each(read, image_bytes, tf.string),)

    def to_files(outputs):
        def write(picture):
            colors = tf.round(tf.clip_by_value(parse(picture), 0.0, 1.0) * 255)
            return tf.io.encode_png(tf.cast(colors, tf.uint8))

        return {"png_bytes": each(write, outputs[0], tf.string)}

    floats = export.Signature(images, from_images, to_images)
    found = {"serving_default": floats}
    for way in predict.DIRECTIONS:
        found |= {way: floats, f"{way}_bytes": export.Signature(files, from_files, to_files)}
    return found


def example_picture():
    """JPEG bytes of a made-up picture of a size that is no multiple of 4, for warm-up and the README's request."""
    rows, columns = np.mgrid[0:94, 0:126]
    image = np.stack([columns * 2, rows * 2, 60 + (rows + columns) // 8 % 2 * 120], axis=-1).astype(np.uint8)
    cv2.circle(image, (63, 47), 26, (30, 90, 220), cv2.FILLED, cv2.LINE_AA)
    return tf.io.encode_jpeg(image).numpy()


def bundle_config(config, precision):
    """config.json of a bundle."""
    return {"article": "cyclegan", **{key: config[key] for key in predict.KEYS}, "precision": precision}


def write_bundle(folder, generators, config):
    """Writes the bundle of {"a2b": generator, "b2a": generator}, not checked and not published.

    config: of `bundle_config`.
    """
    networks = {way: network(generators[way]) for way in predict.DIRECTIONS}
    data = example_picture()
    gray = tf.make_tensor_proto(0.5, tf.float32, [1, 62, 46, 3])  # one value stands for all
    offered = signatures()
    requests = [(name, {"image_bytes": np.array([data], object)} if name.endswith("_bytes") else {"images": gray})
                for name in offered]
    chosen = {name: networks["b2a" if name.startswith("b2a") else "a2b"] for name in offered}
    export.save(folder, chosen, offered, requests=requests,
                extra={"config.json": json.dumps(config, indent=2) + "\n", "example.jpg": data})


def check_equal(session, generators, config):
    """Raises UserError unless a bundle in an `export.Session` gives what the Keras models give, in all signatures.

    generators: in float32. config: that of the bundle, with its precision.
    """
    data = example_picture()
    picture = tf.io.decode_image(data, channels=3).numpy()
    images = np.stack([picture, picture[::-1, ::-1]]).astype(np.float32) / 255
    for way in predict.DIRECTIONS:
        expected = np.stack([predict.run_generator(generators[way], tf.constant(image)) for image in images])
        for name in (way, "serving_default") if way == "a2b" else (way,):
            _check_near(name, session.run(name, {"images": images})["pictures"], expected, config)
        (served,) = session.run(f"{way}_bytes", {"image_bytes": np.array([data], object)})["png_bytes"]
        served = tf.io.decode_png(served).numpy().astype(np.float32) / 255
        _check_near(f"{way}_bytes", served, np.round(expected[0] * 255) / 255, config, rounding=1 / 255)


def _check_near(name, served, expected, config, rounding=0.0):
    """rounding: a step of the colours, which float32 may fall on either side of."""
    precision = config["precision"]
    difference = served - expected
    error = np.abs(difference).max() if precision == "float32" else np.sqrt(np.mean(np.square(difference)))
    if not error <= TOLERANCE[precision] + rounding:
        raise UserError(f"Exported pictures of {name} must be those of the Keras model to {TOLERANCE[precision]} "
                        f"of 0..1, and differ by {error:.2g}. Export with --precision float32, and check the run "
                        "with cyclegan.evaluate.")


def export_bundle(generators, config, out, *, precision="float32", reference=None):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    generators: built under the policy that `precision` stands for ("mixed_bfloat16" for bfloat16). reference: the
    same in float32, which the bundle must equal; default: generators themselves.
    """
    kept = bundle_config(config, precision)

    def check(folder):
        export.check_bundle(folder, lambda session: check_equal(session, reference or generators, kept))

    return export.publish(out, lambda folder: write_bundle(folder, generators, kept), check,
                          lambda version: readme(pathlib.Path(out), version, kept))


def readme(out, version, config):
    """The README.md beside the versions: how to serve and the exact requests."""
    name, (a, b) = out.resolve().name, config["labels"]
    return README.format(name=name, number=version.name, a=a, b=b, precision=config["precision"],
                         serve=export.serve_command(name, out), api=export.SERVING_API, max_pixels=MAX_PIXELS,
                         size=config["image_size"])


README = """\
# {name}: CycleGAN for TensorFlow Serving

Version {number}, {precision}: a2b makes {b} of {a}, b2a makes {a} of {b}. Trained on pictures of {size} x {size}.

    {serve}

A new version in this folder is loaded as soon as it has its number.

## `a2b_bytes`, `b2a_bytes`: files in, files out

`image_bytes`: JPEG or PNG files of any sizes up to {max_pixels} pixels each, transparency on white, EXIF
orientation not applied. (`cyclegan.predict` turns pictures as viewers do; turn them upright before sending, if they
carry a rotation.) The networks know their subjects in the size that they have in training pictures of
{size} x {size}: shrink photos of many times that size. What is no picture, or too large, fails its whole request with
INVALID_ARGUMENT (HTTP 400).

    (printf '{{"signature_name": "a2b_bytes", "instances": [{{"image_bytes": {{"b64": "'; \\
     base64 < {number}/assets.extra/example.jpg | tr -d '\\n'; printf '"}}}}]}}') | \\
      curl -s -d @- http://localhost:8501/v1/models/{name}:predict

Answer, an entry of `predictions` per picture: {{"b64": ...}}, a PNG file of the picture's size.

    # pip install "{api}"
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel("localhost:8500"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "{name}"
    request.model_spec.signature_name = "a2b_bytes"
    data = open("{number}/assets.extra/example.jpg", "rb").read()
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data]))
    outputs = stub.Predict(request, timeout=60).outputs
    open("translated.png", "wb").write(tf.make_ndarray(outputs["png_bytes"])[0])

A client takes answers of up to 4 MB, unless its channel has the option `grpc.max_receive_message_length`.

## `a2b`, `b2a`, `serving_default` (which is a2b): pixels in, pixels out

`images` float32 [B, H, W, 3], RGB in 0..1, of any size; answers `pictures`, the same.
"""


def define_flags():
    detection_export.define_flags(EXAMPLE)
    litert.define_flags()


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    detection_export.require_out(flags, EXAMPLE)
    reference, config = predict.load_run(flags.run, flags.which)
    if flags.format == "litert":
        litert.run(reference, config, flags)
        return
    generators = reference
    if flags.precision == "bfloat16":
        with runtime.dtype_policy("mixed_bfloat16"):
            both = predict.build(config)
        generators = predict.split(both)
        for way in predict.DIRECTIONS:
            generators[way].set_weights(reference[way].get_weights())
    version = export_bundle(generators, config, flags.out, precision=flags.precision, reference=reference)
    detection_export.say(version, flags.out)


if __name__ == "__main__":
    cli.run(main, define_flags)
