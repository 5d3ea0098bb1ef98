"""A trained autoencoder as a bundle that TensorFlow Serving takes as it is.

    python -m autoencoders.export --run runs/autoencoders/mnist --out serving/autoencoder

Signatures (B batch, H, W, C picture; a code is [B, D] or, of `conv`, [B, h, w, F]):

serving_default  images float32 [B, H, W, C] in 0..1 -> pictures [B, H, W, C] in 0..1 and code
reconstruct      the same
encoder          images as above -> code (the mean of a variational one), and its log_var [B, D]
decoder          code -> pictures
image_bytes      image_bytes string [B], JPEG or PNG files of any size, resized -> pictures, code
"""

import json
import math
import pathlib

import cv2
import numpy as np
import tensorflow as tf

from autoencoders import predict
from autoencoders.model import code_of, probs
from common import cli, export, folding
from common.errors import UserError

# Of pictures in 0..1, and of codes as a share of the largest number: float32 sums in another order.
TOLERANCE = 1e-4

check_bundle = export.check_bundle


def networks(model):
    """{name: ConcreteFunction without variables} of the encoder, the decoder and the whole."""
    whole = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, "images")
    decoder = model.get_layer("decoder")
    code = tf.TensorSpec([None, *decoder.input_shape[1:]], tf.float32, "code")
    return {"encoder": folding.freeze(model.get_layer("encoder"), whole), "decoder": folding.freeze(decoder, code),
            "reconstruct": folding.freeze(model, whole)}


def signatures(model):
    """{signature name: export.Signature} as above."""
    images = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, "images")
    code = tf.TensorSpec([None, *model.get_layer("decoder").input_shape[1:]], tf.float32, "code")
    files = tf.TensorSpec([None], tf.string, "image_bytes")
    whole, half = output_names(model), output_names(model.get_layer("encoder"))

    def as_is(value):
        return (tf.identity(value),)

    def read_all(image_bytes):
        spec = tf.TensorSpec(model.input_shape[1:], tf.float32)
        return (tf.map_fn(lambda data: read(data, model.input_shape[1:]), image_bytes, fn_output_signature=spec),)

    def reconstructed(outputs):
        found = dict(zip(whole, outputs))
        return {"pictures": probs(found["logits"]), "code": tf.identity(code_of(found))}

    def encoded(outputs):
        found = dict(zip(half, outputs))
        rest = {"log_var": tf.identity(found["log_var"])} if "log_var" in found else {}
        return {"code": tf.identity(code_of(found)), **rest}

    def decoded(outputs):
        return {"pictures": probs(outputs[0])}

    return {"serving_default": export.Signature(images, as_is, reconstructed),
            "reconstruct": export.Signature(images, as_is, reconstructed),
            "encoder": export.Signature(images, as_is, encoded), "decoder": export.Signature(code, as_is, decoded),
            "image_bytes": export.Signature(files, read_all, reconstructed)}


def output_names(model):
    """The names of a model's outputs in the order of tf.nest.flatten, in which a frozen network puts them out."""
    return sorted(model.output)


def read(data, image_shape):
    """float32 [H, W, C] in 0..1 of an encoded picture, in the graph: on white, resized and gray as `sources.fit`."""
    image = tf.cast(export.decode_picture(data, on_white=True), tf.float32)
    smaller = tf.minimum(tf.shape(image)[:2], image_shape[:2])
    image = tf.round(tf.image.resize(image[tf.newaxis], smaller, method="area")[0])
    image = tf.round(tf.image.resize(image, image_shape[:2], method="bilinear"))
    if image_shape[2] == 1:
        image = tf.round(tf.reduce_sum(image * [0.299, 0.587, 0.114], axis=-1, keepdims=True))
    return tf.ensure_shape(image, image_shape) / 255


def write_bundle(folder, model, config):
    """Writes the bundle of a Keras model in float32, not checked and not published: see `export_bundle`."""
    nets = networks(model)
    chosen = {"serving_default": nets["reconstruct"], "image_bytes": nets["reconstruct"], **nets}
    example = example_picture(config["image_shape"])
    gray = tf.make_tensor_proto(0.5, tf.float32, [1, *config["image_shape"]])  # one value stands for all
    zero = tf.make_tensor_proto(0.0, tf.float32, [1, *model.get_layer("decoder").input_shape[1:]])
    requests = [*((name, {"images": gray}) for name in ("serving_default", "reconstruct", "encoder")),
                ("decoder", {"code": zero}), ("image_bytes", {"image_bytes": np.array([example], object)})]
    kept = {key: config[key] for key in ("article", "model", "image_shape", "latent_dim", "labels", "noise")}
    export.save(folder, chosen, signatures(model), requests=requests,
                extra={"config.json": json.dumps(kept, indent=2) + "\n", "example.png": example})


def example_picture(image_shape):
    """PNG bytes of a made-up digit, larger than the network's input, for warm-up and for the README's request."""
    side = 2 * max(image_shape[:2])
    canvas = np.zeros([side, side], np.uint8)
    cv2.putText(canvas, "3", (side // 4, side * 3 // 4), cv2.FONT_HERSHEY_SIMPLEX, side / 40, 255,
                max(1, side // 14),
                cv2.LINE_AA)
    return cv2.imencode(".png", canvas)[1].tobytes()


def check_equal(session, model):
    """Raises UserError unless a bundle in an `export.Session` gives what the Keras model gives."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=[3, *model.input_shape[1:]]).astype(np.float32)
    found = model(images, training=False)
    code = code_of(found).numpy()
    expected = {"reconstruct": {"pictures": probs(found["logits"]).numpy(), "code": code},
                "encoder": {"code": code, **({"log_var": found["log_var"].numpy()} if "log_var" in found else {})}}
    expected["serving_default"] = expected["reconstruct"]
    expected["decoder"] = {"pictures": probs(model.get_layer("decoder")(code, training=False)).numpy()}
    for name, values in expected.items():
        given = session.run(name, {"code": code} if name == "decoder" else {"images": images})
        for output, value in values.items():
            error = np.abs(given[output] - value).max() / max(1.0, np.abs(value).max())
            if not error <= TOLERANCE:
                raise UserError(f"{name} must give the {output} of the Keras model, and differs by {error:.2g}. "
                                "Export again; if it stays, this build of TensorFlow computes wrongly.")


def export_bundle(model, config, out):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path."""
    def check(folder):
        export.check_bundle(folder, lambda session: check_equal(session, model))

    return export.publish(out, lambda folder: write_bundle(folder, model, config), check,
                          lambda version: readme(pathlib.Path(out), version, model, config))


def readme(out, version, model, config):
    """The README.md beside the versions: how to serve and the exact requests."""
    name = out.resolve().name
    code = list(model.get_layer("decoder").input_shape[1:])
    example = np.zeros(code).tolist() if math.prod(code) < 9 else "..."
    return README.format(name=name, out=out, number=version.name, model=config["model"],
                         shape=config["image_shape"],
                         code=code, example=example, serve=export.serve_command(name, out), api=export.SERVING_API,
                         max_pixels=export.images.MAX_PIXELS)


README = """\
# {name}: autoencoder ({model}) for TensorFlow Serving

Version {number}, pictures of {shape} (height, width, channels), codes of {code}.

    {serve}

A new version in this folder is loaded as soon as it has its number.

| signature | in | out |
|---|---|---|
| `serving_default`, `reconstruct` | `images` float32, 0..1 | `pictures` 0..1, `code` |
| `encoder` | `images` | `code`; `log_var` of a variational one, whose `code` is the mean |
| `decoder` | `code` | `pictures` |
| `image_bytes` | JPEG or PNG files of any size up to {max_pixels} pixels | `pictures`, `code` |

Files are laid on white where they are transparent and resized to the network's size; they are not turned as EXIF may
say. What is no picture, or too large, fails its whole request with
INVALID_ARGUMENT (HTTP 400). MNIST's digits are white on black; so must be what is sent to a network that learnt
them.

    curl -s -d '{{"signature_name": "decoder", "instances": [{{"code": {example}}}]}}' \\
      http://localhost:8501/v1/models/{name}:predict

    (printf '{{"signature_name": "image_bytes", "instances": [{{"image_bytes": {{"b64": "'; \\
     base64 < {number}/assets.extra/example.png | tr -d '\\n'; printf '"}}}}]}}') | \\
      curl -s -d @- http://localhost:8501/v1/models/{name}:predict

    # pip install "{api}"
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel("localhost:8500"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "{name}"
    request.model_spec.signature_name = "image_bytes"
    data = tf.io.read_file("{number}/assets.extra/example.png")
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data.numpy()]))
    outputs = stub.Predict(request, timeout=60).outputs
    print(tf.make_ndarray(outputs["code"]), tf.make_ndarray(outputs["pictures"]).shape)
"""


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_string("out", None, "Folder of the bundle's versions, e.g. serving/autoencoder.")
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.out:
        raise UserError("--out must name the folder of the bundle, e.g. --out serving/autoencoder")
    model, config = predict.load_run(flags.run, flags.which)
    version = export_bundle(model, config, flags.out)
    print(f"{version}: loaded and checked as a server loads it.")
    print(f"{pathlib.Path(flags.out) / 'README.md'} says how to serve and ask it.")


if __name__ == "__main__":
    cli.run(main, define_flags)
