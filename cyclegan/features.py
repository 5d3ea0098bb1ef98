"""Numbers that describe pictures, for the distances of evaluate.py: a judge, Inception, or the user's own network.

The judge is a small classifier of A against B, trained in seconds on the real training pictures and kept in the
run folder. It needs no download; what it says is worth what its accuracy on real test pictures is, which stands
beside every number. Its distances are called frechet_judge, never FID: they cannot be held against anybody else's.

N, B pictures, S side of them, D numbers of a feature. Pictures are uint8 RGB.
"""

import os
import pathlib
import sys
import zipfile
from typing import Callable, NamedTuple

import cv2
import keras
import numpy as np
import tensorflow as tf

from common import files, runtime
from common.detection_sources import reachable
from common.errors import UserError
from common.metrics import frechet
from cyclegan import preprocess

JUDGE_SIDE = 64
JUDGE_PICTURES = 1000  # of each side, at most, to train it
_JUDGE_STEPS, _JUDGE_BATCH = 400, 32
_CHUNK = 32
_BATCH = tf.TensorSpec([None, None, None, 3], tf.uint8)
_STORED = ("a", "b", "a2b", "b2a")
_WEIGHTS = ("https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
            "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5")


class Features(NamedTuple):
    """What `load` found. `kind` is "judge" (no further features), "inception", "custom" or "stored"."""

    judge: Callable  # uint8 [N, S, S, 3] -> (features float32 [N, D], logits float32 [N]: above 0 is B)
    kind: str
    extract: Callable | None  # uint8 [N, S, S, 3] -> float32 [N, D]
    stored: dict | None  # {"a", "b", "a2b", "b2a": float64 [N, D]}
    note: str  # what the numbers may be compared with


def load(name, folder, run_folder=None, *, seed=0, in_training=False, keep=True):
    """The `Features` by name: "judge", "inception", folder of a SavedModel, folder or file of stored features.

    folder: the record set whose training pictures the judge learns from, unless run_folder has one already, where
    it is kept if `keep`. Raises UserError, before anything is trained, where the features cannot be had. Stored
    features are of pictures that were translated already, so not for use in_training.
    """
    found = {"kind": "judge", "extract": None, "stored": None,
             "note": "features of the judge: compare with other runs on the same judge alone"}
    if name == "inception":
        found |= {"kind": "inception", "extract": make_inception(), "note":
                  "InceptionV3 with Keras's ImageNet weights: compare with numbers of this program alone"}
    elif name != "judge":
        path = pathlib.Path(name)
        if (path / "saved_model.pb").is_file():
            found |= {"kind": "custom", "extract": make_custom(path), "note": f"features of {path}, not FID"}
        elif in_training:
            raise UserError(f"--features must be judge, inception or the folder of a SavedModel, and {name} is "
                            "none of them.")
        else:
            found |= {"kind": "stored", "stored": read_stored(path), "note": f"features stored in {path}, not FID"}
    path = pathlib.Path(run_folder) / "features" / "judge.weights.h5" if run_folder else None
    return Features(judge=make_judge(load_judge(path, folder, seed, keep)), **found)


def judge_model(seed=0):
    """Pictures float32 [B, 64, 64, 3] in -1..1 -> {"features": [B, 176], "logit": [B]}, above 0 for B.

    The features are the means of all layers, not of the last alone: the first ones see patterns that no picture
    has, such as checkerboards, which the last have learnt to see through. float32 whatever the precision of the
    run, and seeded by itself: it draws nothing from the program's own random numbers.
    """
    with runtime.dtype_policy("float32"):
        images = x = keras.Input([JUDGE_SIDE, JUDGE_SIDE, 3], name="images")
        means = []
        for number, filters in enumerate((16, 32, 64, 64)):
            x = keras.layers.Conv2D(filters, 3, 2, "same", activation="relu", name=f"conv{number}",
                                    kernel_initializer=keras.initializers.HeNormal(seed + number))(x)
            means.append(keras.layers.GlobalAveragePooling2D(name=f"mean{number}")(x))
        logit = keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(seed + 9),
                                   name="logit")(means[-1])
        outputs = {"features": keras.ops.concatenate(means, axis=-1), "logit": logit[:, 0]}
        return keras.Model(images, outputs, name="judge")


def train_judge(folder, seed=0, steps=_JUDGE_STEPS):
    """A `judge_model` trained on at most 1,000 training pictures of either side; always the same for a seed."""
    large = round(JUDGE_SIDE * preprocess.RESIZED)
    pictures = [_training_pictures(folder, split, large, seed) for split in ("trainA", "trainB")]
    model, rng = judge_model(seed), np.random.default_rng(seed)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps))
    optimizer.build(model.trainable_variables)
    labels = tf.repeat([0.0, 1.0], _JUDGE_BATCH // 2)

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)["logit"]
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    for _ in range(steps):
        images = np.concatenate([side[rng.integers(len(side), size=_JUDGE_BATCH // 2)] for side in pictures])
        step(_augment(images, rng))
    return model


def load_judge(path, folder, seed=0, keep=True):
    """The judge kept at `path`; trained on `folder`, and kept there if `keep`, where there is none. path: or None."""
    if path and path.is_file():
        model = judge_model(seed)
        try:
            model.load_weights(path)
            return model
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            print(f"warning: {path} is damaged ({files.reason(error)}); the judge is trained anew.",
                  file=sys.stderr)
    model = train_judge(folder, seed)
    if path and keep and files.is_chief():
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            model.save_weights(temporary)
    return model


def make_judge(model):
    """The function from uint8 [N, S, S, 3] to (features float32 [N, D], logits float32 [N]) of a judge."""
    @tf.function(input_signature=[_BATCH])
    def run(images):
        found = model(preprocess.to_floats(preprocess.resize(images, JUDGE_SIDE)), training=False)
        return found["features"], found["logit"]

    return lambda images: tuple(_in_chunks(run, images))


def make_inception():
    """The function from uint8 [N, S, S, 3] to the 2,048 numbers [N, D] of Keras's InceptionV3 on ImageNet.

    As implementations of FID do it: resized to 299 x 299, bilinear, -1..1, the average pooling before the classes.
    The weights are Keras's own and not those of the TensorFlow graph of 2015 that published values of FID come
    from, so the values differ from those, and are to be compared with one another alone. Raises UserError where
    the weights are not at hand and cannot be downloaded.
    """
    kept = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / _WEIGHTS.split("/")[-1]
    advice = (f"Put {_WEIGHTS} at {kept}, or take --features judge (needs no download), or the folder of a "
              "SavedModel from pictures to features.")
    if not kept.is_file() and not reachable(_WEIGHTS):
        raise UserError(f"InceptionV3's weights are not at {kept}, and {_WEIGHTS} cannot be reached. {advice}")
    try:
        with runtime.dtype_policy("float32"):
            model = keras.applications.InceptionV3(include_top=False, weights="imagenet", pooling="avg",
                                                   input_shape=(299, 299, 3))
    except Exception as error:  # whatever the network or the disk did
        raise UserError(f"InceptionV3's weights could not be had ({files.reason(error)}). {advice}") from error

    @tf.function(input_signature=[_BATCH])
    def run(images):
        images = tf.image.resize(images, [299, 299])
        return [model(preprocess.to_floats(images), training=False)]

    return lambda images: _in_chunks(run, images)[0]


def make_custom(folder):
    """The function from uint8 [N, S, S, 3] to features [N, D] of a SavedModel's default signature.

    It must take pictures [B, h, w, 3], float32 in 0..1 or uint8, to which ours are resized where h and w are
    fixed, and give [B, D]: its only output, or the one named features. Raises UserError.
    """
    try:
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures["serving_default"]
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"{folder} must be a SavedModel with the signature serving_default, and is not "
                        f"({files.reason(error)}).") from None
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    name = "features" if "features" in outputs else next(iter(outputs))
    spec = next(iter(inputs.values()), None)
    if (len(inputs) != 1 or spec.dtype not in (tf.float32, tf.uint8) or spec.shape.rank != 4
            or spec.shape[3] not in (3, None)
            or (len(outputs) > 1 and name != "features") or outputs[name].shape.rank != 2):
        raise UserError(f"The SavedModel {folder} must take pictures [B, h, w, 3] (float32 in 0..1, or uint8) and "
                        f"give features [B, D], and takes {list(inputs.values())} and gives "
                        f"{list(outputs.values())}.")
    size = None if None in spec.shape[1:3] else list(spec.shape[1:3])

    @tf.function(input_signature=[_BATCH])
    def run(images):
        images = tf.cast(images, tf.float32) if size is None else tf.image.resize(images, size, antialias=True)
        images = images / 255 if spec.dtype == tf.float32 else tf.cast(tf.round(images), tf.uint8)
        return [signature(**{next(iter(inputs)): images})[name]]

    def extract(images, kept_alive=loaded):  # a signature does not hold on to its model
        return _in_chunks(run, images)[0]

    return extract


def _read_archive(path):
    with open(path, "rb") as file:  # NumPy leaves a damaged one open
        return dict(np.load(file))


def read_stored(path):
    """{"a", "b", "a2b", "b2a": float64 [N, D]} from a .npz with these names or a folder with a.npy, b.npy, ...

    a and b are of the real test pictures, a2b and b2a of the translated ones, as `evaluate --pictures` writes
    them. Raises UserError.
    """
    path = pathlib.Path(path)
    layout = "a.npy, b.npy, a2b.npy and b2a.npy (or a .npz with these names), each [pictures, numbers]"
    try:
        if path.is_dir():
            archives = sorted(path.glob("*.npz"))
            found = _read_archive(archives[0]) if archives else {
                name: np.load(path / f"{name}.npy") for name in _STORED if (path / f"{name}.npy").is_file()}
        else:
            found = _read_archive(path)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"--features must be judge, inception, the folder of a SavedModel, or hold {layout}; "
                        f"{path} cannot be read ({files.reason(error)}).") from None
    missing = [name for name in _STORED if name not in found]
    if missing:
        raise UserError(f"--features must be judge, inception, the folder of a SavedModel, or hold {layout}; "
                        f"{path} lacks {', '.join(missing)}.")
    found = {name: frechet.checked(found[name]) for name in _STORED}
    widths = {value.shape[1] for value in found.values()}
    if len(widths) > 1:
        raise UserError(f"The features in {path} must all have as many numbers, and have {sorted(widths)}.")
    return found


def _training_pictures(folder, split, side, seed):
    """uint8 [N, side, side, 3] of training pictures of a side, drawn from all of them."""
    dataset = preprocess.drawn_dataset(folder, split, image_size=side, count=JUDGE_PICTURES, seed=seed)
    return np.concatenate([preprocess.to_bytes(batch["images"]) for batch in dataset.batch(_CHUNK)])


def _augment(images, rng):
    """float32 [B, 64, 64, 3] in -1..1 of larger pictures uint8 [B, h, w, 3]: a square of each, perhaps mirrored.

    In other colours, half of them blurred, half with noise, so that the judge goes by more than a tint or a grain,
    which generators learn first.
    """
    spare, cut = images.shape[1] - JUDGE_SIDE, []
    for image, (top, left) in zip(images, rng.integers(spare + 1, size=(len(images), 2))):
        image = image[top:top + JUDGE_SIDE, left:left + JUDGE_SIDE].astype(np.float32) / 127.5 - 1
        image = image[:, ::-1] if rng.random() < 0.5 else image
        if rng.random() < 0.5:
            image = cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), rng.uniform(0.4, 1.2))
        if rng.random() < 0.5:
            grain = cv2.resize(rng.normal(0, 1, [JUDGE_SIDE // rng.integers(1, 4)] * 2 + [3]), image.shape[:2])
            image = image + rng.uniform(0, 0.4) * grain
        cut.append(image * rng.uniform(0.6, 1.3) * rng.uniform(0.8, 1.2, 3) + rng.uniform(-0.2, 0.2, 3))
    return np.clip(cut, -1, 1).astype(np.float32)


def _in_chunks(run, images):
    """The outputs of `run`, a function from a batch to a list of tensors, for any number of pictures."""
    parts = [[value.numpy() for value in run(tf.constant(images[i:i + _CHUNK]))]
             for i in range(0, len(images), _CHUNK)]
    return [np.concatenate(values) for values in zip(*parts)]
