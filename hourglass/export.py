"""A trained hourglass as a bundle that TensorFlow Serving takes as it is.

    python -m hourglass.export --run runs/hourglass/mpii --out serving/hourglass --flip_test --precision bfloat16

Signatures (B batch, N boxes of a picture, S side of the network input, K joints, h = w = S / 4 heatmap):
serving_default  images float32 [B, S, S, 3] RGB in 0..1, one person each, cropped by the client -> joints
                 [B, K, 2] (x, y in pixels of the crop) and scores [B, K], the heights of the peaks, about 0..1
image_bytes      image_bytes string [B], JPEG or PNG files of any size, and boxes float32 [B, N, 4] (left, top,
                 right, bottom in pixels of the picture), one for each person -> joints [B, N, K, 2] in pixels of
                 the picture and scores [B, N, K]
network          images as above -> heatmaps [B, h, w, K] of the last stack

Boxes are cut at the picture's border; the network sees the square on the middle of what is left, its side 1.25
times the longer side. A box that holds the picture is all of it. One with nothing inside is nobody: zeros come
back, and the network does not run, so that a detector's boxes can be handed on with the zeros behind its last.
N = 0, no person, gives empty answers.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

from common import cli, detection_export, drawing, export, folding, runtime
from common.errors import UserError
from hourglass import doctor, predict
from hourglass.postprocess import STRIDE

EXAMPLE = "serving/hourglass"
MAX_PERSONS = 256  # in a request: the features of each take tens of megabytes
# Share of the joints that must be where they are expected: of two peaks of the same height, the last bit chooses.
SHARE = 0.9


def signatures(config):
    """{signature name: export.Signature} as above."""
    size, pairs, flip_test = config["image_size"], config["pairs"], config["flip_test"]
    images, count = runtime.images_spec(size), len(config["labels"])
    files = tf.TensorSpec([None], tf.string, "image_bytes")
    places = tf.TensorSpec([None, None, 4], tf.float32, "boxes")
    crop_pixels = np.eye(2, 3, dtype=np.float32)[None]

    def as_is(images):
        return (tf.identity(images),)

    def mirrored(images):
        return (predict.with_mirrored(images, flip_test),)

    def in_crop(outputs):
        joints_xy, scores = predict.joints_of(outputs[0], tf.constant(crop_pixels), pairs, flip_test)
        return {"joints": joints_xy, "scores": scores}

    def read(encoded, boxes_xyxy):
        """Crops [P, S, S, 3] and `to_picture` [P, 2, 3] of the P persons of a picture, bool [N]: who they are."""
        image = export.decode_picture(encoded)
        height, width, _ = tf.unstack(tf.shape(image))
        boxes_xyxy, inside = predict.within(boxes_xyxy, height, width)
        return *predict.crop_all(image, tf.boolean_mask(boxes_xyxy, inside), size), inside

    def read_all(image_bytes, boxes):
        with tf.control_dependencies(_checks(image_bytes, boxes)):
            boxes = tf.identity(boxes)
        spec = (tf.RaggedTensorSpec([None, size, size, 3], tf.float32, 0),
                tf.RaggedTensorSpec([None, 2, 3], tf.float32, 0), tf.TensorSpec([None], tf.bool))
        found, matrices, inside = tf.map_fn(lambda both: read(*both), (image_bytes, boxes),
                                            fn_output_signature=spec)
        found, matrices = found.values, matrices.values
        # oneDNN's convolutions fail on a batch of none: there is always one, a grey one if need be.
        missing = tf.cast(tf.equal(tf.shape(found)[0], 0), tf.int32)
        found = tf.pad(found, [[0, missing], [0, 0], [0, 0], [0, 0]], constant_values=0.5)
        found = tf.ensure_shape(found, [None, size, size, 3])
        return predict.with_mirrored(found, flip_test), tf.pad(matrices, [[0, missing], [0, 0], [0, 0]]), inside

    def in_pictures(outputs, matrices, inside):
        joints_xy, scores = predict.joints_of(outputs[0], matrices, pairs, flip_test)
        where = tf.cast(tf.where(inside), tf.int32)

        def back(values, *shape):
            """[B, N, ...] of values [P, ...], zeros where nobody is."""
            values = tf.scatter_nd(where, values[:tf.shape(where)[0]], tf.concat([tf.shape(inside), shape], 0))
            return tf.ensure_shape(values, [None, None, *shape])

        return {"joints": back(joints_xy, count, 2), "scores": back(scores, count)}

    def raw(outputs):
        return {"heatmaps": tf.identity(outputs[0])}

    return {"serving_default": export.Signature(images, mirrored, in_crop),
            "image_bytes": export.Signature((files, places), read_all, in_pictures),
            "network": export.Signature(images, as_is, raw)}


def _checks(image_bytes, boxes_xyxy):
    """Assertions on a request; they give INVALID_ARGUMENT."""
    sizes = tf.shape(boxes_xyxy)
    persons = tf.reduce_sum(tf.cast(tf.reduce_all(boxes_xyxy[..., 2:] > boxes_xyxy[..., :2], axis=-1), tf.int32))
    return [
        tf.debugging.Assert(tf.equal(sizes[0], tf.size(image_bytes)),
                            ["boxes must be those of as many pictures as image_bytes has; they are", sizes[0],
                             "and", tf.size(image_bytes)]),
        tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(boxes_xyxy)), ["boxes must be finite numbers"]),
        tf.debugging.Assert(persons <= MAX_PERSONS,
                            [f"a request must have {MAX_PERSONS} boxes with an area at most, and has", persons])]


def bundle_config(config, precision, flip_test):
    """config.json of a bundle: with the names of the joints, their pairs and the limbs."""
    return {"article": "hourglass", **{key: config[key] for key in predict.KEYS},
            "unpaired": config.get("unpaired", []), "precision": precision, "flip_test": flip_test}


def example_picture(config):
    """(JPEG bytes of a made-up picture, a box in it), for warm-up and for the README's request."""
    size = config["image_size"]
    rows, columns = np.mgrid[0:size, 0:size * 3 // 2]
    image = np.stack([columns * 170 // size, rows * 255 // size, (rows + columns) // 8 % 2 * 160], axis=-1)
    turn = np.linspace(0, 2 * np.pi, len(config["labels"]), endpoint=False)
    joints_xy = size * (np.stack([0.7 + 0.2 * np.cos(turn), 0.5 + 0.4 * np.sin(turn)], axis=-1))
    image = drawing.draw_skeletons(image, [joints_xy], [np.ones(len(turn))], config["skeleton"],
                                   colors=doctor.side_colors(predict.body_of(config)))
    box = [size // 2, size // 16, size - size // 10, size - size // 16]
    return tf.io.encode_jpeg(image).numpy(), [float(edge) for edge in box]


def write_bundle(folder, model, config):
    """Writes the bundle of a Keras model, not checked and not published: see `export_bundle`.

    config: of `bundle_config`.
    """
    size = config["image_size"]
    network = folding.freeze(predict.last_stack(model), runtime.images_spec(size))
    data, box = example_picture(config)
    gray = tf.make_tensor_proto(0.5, tf.float32, [1, size, size, 3])  # one value stands for all
    requests = [("serving_default", {"images": gray}), ("network", {"images": gray}),
                ("image_bytes", {"image_bytes": np.array([data], object), "boxes": np.array([[box]], np.float32)})]
    extra = {"labels.txt": "\n".join(config["labels"]) + "\n", "config.json": json.dumps(config, indent=2) + "\n",
             "example.jpg": data}
    export.save(folder, network, signatures(config), requests=requests, extra=extra)


def check_equal(session, model, config):
    """Raises UserError unless a bundle in an `export.Session` gives what the float32 Keras model gives.

    Heatmaps are compared with the Keras model's; joints of both signatures with those that `predict.joints_of`
    finds here in the same heatmaps. config: that of the bundle, with its precision.
    """
    size, flip_test = config["image_size"], config["flip_test"]
    noise = np.random.default_rng(0).uniform(size=[1, size, size, 3]).astype(np.float32)
    data, box = example_picture(config)
    picture = tf.io.decode_image(data, channels=3)
    crops, matrices = predict.crop_all(picture, tf.constant([box], tf.float32), size)
    for images in (noise, predict.with_mirrored(crops, flip_test).numpy()):
        heatmaps = session.run("network", {"images": images})["heatmaps"]
        _check_heatmaps(heatmaps, predict.last_stack(model)(images, training=False).numpy(), config)
    # The last heatmaps are those of the picture.
    in_crop = np.eye(2, 3, dtype=np.float32)[None]
    boxes = np.array([[box]], np.float32)
    for signature, inputs, places in (
            ("serving_default", {"images": crops.numpy()}, tf.constant(in_crop)),
            ("image_bytes", {"image_bytes": np.array([data], object), "boxes": boxes}, matrices)):
        served = session.run(signature, inputs)
        joints_xy, scores = predict.joints_of(tf.constant(heatmaps), places, config["pairs"], flip_test)
        _check_joints(signature, served, joints_xy.numpy(), scores.numpy(), places.numpy()[0, 0, 0] * STRIDE)


def _check_heatmaps(served, expected, config):
    tolerance, difference = detection_export.TOLERANCE[config["precision"]], served - expected
    if config["precision"] == "float32":
        error = np.abs(difference).max() / max(np.abs(expected).max(), 1e-6)
    else:
        error = np.sqrt(np.mean(difference**2) / max(np.var(expected), 1e-6))
    if not error <= tolerance:
        raise UserError(f"Exported heatmaps must be those of the Keras model to a share of {tolerance}, and "
                        f"differ by {error:.2g}. Export with --precision float32, and check the run with "
                        "hourglass.evaluate.")


def _check_joints(signature, served, joints_xy, scores, unit):
    """unit: pixels of the joints per pixel of a heatmap, which is how far one may be off."""
    near = np.abs(served["joints"].reshape(joints_xy.shape) - joints_xy).max(axis=-1) <= unit
    near &= np.abs(served["scores"].reshape(scores.shape) - scores) <= 1e-2 * max(np.abs(scores).max(), 1e-6)
    if not near.mean() >= SHARE:
        raise UserError(f"Exported joints of {signature} must be those of hourglass.postprocess on the same "
                        f"heatmaps, and {(~near).sum()} of {near.size} differ. Export again; if it stays, this "
                        "build of TensorFlow computes wrongly.")


def export_bundle(model, config, out, *, precision="float32", flip_test=False, reference=None):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path.

    model: built under the policy that `precision` stands for ("mixed_bfloat16" for bfloat16). reference: the same
    in float32, which the bundle must equal; default: model itself.
    """
    if flip_test:
        predict.require_mirrors(predict.body_of(config))
    kept = bundle_config(config, precision, flip_test)

    def check(folder):
        export.check_bundle(folder, lambda session: check_equal(session, reference or model, kept))

    return export.publish(out, lambda folder: write_bundle(folder, model, kept), check,
                          lambda version: readme(pathlib.Path(out), version, kept))


def readme(out, version, config):
    """The README.md beside the versions: how to serve and the exact requests."""
    name, size, labels = out.resolve().name, config["image_size"], config["labels"]
    flips = "averaged with the mirrored picture" if config["flip_test"] else "without flip test"
    return README.format(
        name=name, number=version.name, size=size, side=size // STRIDE, precision=config["precision"], flips=flips,
        serve=export.serve_command(name, out), api=export.SERVING_API, count=len(labels), labels=", ".join(labels),
        max_pixels=export.images.MAX_PIXELS, max_persons=MAX_PERSONS, box=example_picture(config)[1])


README = """\
# {name}: stacked hourglass for TensorFlow Serving

Version {number}, {precision}, network input {size} x {size}, {flips}, {count} joints: {labels}.
{number}/assets.extra/config.json has them, too, with the pairs of left and right and the limbs (`skeleton`).

    {serve}

A new version in this folder is loaded as soon as it has its number.

## `image_bytes`: files and boxes in, pixels out

JPEG or PNG files of any size up to {max_pixels} pixels, EXIF orientation not applied: boxes and joints are in the
pixels as stored. (`hourglass.predict` turns pictures as viewers do; turn them upright before sending, if they
carry a rotation.) `boxes` float32 [B, N, 4], (left, top, right, bottom) of each person, N the same for all
pictures of a request. They are cut at the border: for a picture of one person, send a box that is larger than the
picture. A box without area in the picture, such as [0, 0, 0, 0], is nobody and gets zeros; fill up with it, or
hand on a detector's `boxes` as they come. What is no picture, or too large, boxes that are not finite, and more
than {max_persons} persons fail the whole request with INVALID_ARGUMENT (HTTP 400).

    (printf '{{"signature_name": "image_bytes", "instances": [{{"boxes": [{box}], "image_bytes": {{"b64": "'; \\
     base64 < {number}/assets.extra/example.jpg | tr -d '\\n'; printf '"}}}}]}}') | \\
      curl -s -d @- http://localhost:8501/v1/models/{name}:predict

Answer, an entry of `predictions` per picture: `joints` [N, {count}, 2], (x, y) in pixels of the picture, pixel i
from i to i + 1, and `scores` [N, {count}], about 0 (not seen) to 1.

    # pip install "{api}"
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel("localhost:8500"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "{name}"
    request.model_spec.signature_name = "image_bytes"
    data = open("{number}/assets.extra/example.jpg", "rb").read()
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data]))
    request.inputs["boxes"].CopyFrom(tf.make_tensor_proto([[{box}]], tf.float32))
    outputs = stub.Predict(request, timeout=60).outputs
    print(tf.make_ndarray(outputs["joints"])[0, 0], tf.make_ndarray(outputs["scores"])[0, 0])

## `serving_default`: crops in, pixels of the crops out

`images` float32 [B, {size}, {size}, 3], RGB in 0..1, one person each: the square on the middle of the person's
box, its side 1.25 times the longer side of the box, grey (0.5) beyond the picture. Answers `joints`
[B, {count}, 2] in pixels of the crop, and `scores` [B, {count}].

## `network`: crops in, heatmaps out

For those who look for peaks by themselves: `heatmaps` [B, {side}, {side}, {count}] of the last stack.
"""


def define_flags():
    detection_export.define_flags(EXAMPLE)
    cli.flags.DEFINE_bool("flip_test", False, "Average with the mirrored picture in the bundle: twice the work, a "
                          "little better.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    detection_export.require_out(flags, EXAMPLE)
    reference, config = predict.load_run(flags.run, flags.which)
    model = detection_export.in_precision(reference, predict.build, config, flags.precision)
    version = export_bundle(model, config, flags.out, precision=flags.precision, flip_test=flags.flip_test,
                            reference=reference)
    detection_export.say(version, flags.out)


if __name__ == "__main__":
    cli.run(main, define_flags)
