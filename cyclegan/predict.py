"""Translates pictures, folders, videos and cameras from one domain to the other; JSON lines say what became what.

    python -m cyclegan.predict --run runs/cyclegan/horse2zebra --direction a2b photo.jpg folder/ "more/*.png" 0
    python -m cyclegan.predict --run runs/cyclegan/horse2zebra --direction b2a --side_by_side --size 512 video.mp4

Pictures have any size and keep it: the network gets them with their mirror image below and on the right up to
multiples of 4, which is cut off again. They are turned as their EXIF orientation says, and transparent ones lie on
white, as in training. Large ones go through the network piece by piece with the same result, see `tiling`. Networks
know their subjects in the size that they have in training pictures, which --size helps to keep.

H, W picture.
"""

import functools
import pathlib
import sys
import time

import cv2
import numpy as np
import tensorflow as tf

from common import cli, detection_predict, export, folding, media, runtime, writer
from common.errors import UserError
from cyclegan import preprocess, tiling
from cyclegan.model import generators

DIRECTIONS = ("a2b", "b2a")
KEYS = ("num_blocks", "filters", "upsample", "image_size", "labels")
MULTIPLE, SMALLEST = 4, 8  # of sides that the generators take; less than 8 leaves nothing to mirror in the blocks

MUCH_LARGER = 2  # times the side of the training pictures
WHOLE = 2**20  # pixels of pictures that are not translated piece by piece: the whole takes about 1 GB then
TILE = 256


def build(config):
    """Both generators as one model, with random weights, of a config.json."""
    return generators(config["num_blocks"], config["filters"], config["upsample"])


def load_run(folder, which="best", precision="float32"):
    """({"a2b": generator, "b2a": generator}, config) of a run folder, with the weights of its best or last epoch.

    precision: float32 or mixed_bfloat16, the arithmetic of the networks whatever they were trained in. Raises
    UserError.
    """
    with runtime.dtype_policy(precision):
        model, config = runtime.read_run(folder, which, article="cyclegan", keys=KEYS, build=build)
    return split(model), config


def split(model):
    """{"a2b": generator, "b2a": generator} of `build`."""
    return {way: model.get_layer(f"generator_{way}") for way in DIRECTIONS}


# From a picture to a picture


def mirrored(image):
    """An image [H, W, C] with its mirror image below and on the right, up to sides that the generators take.

    Works in a graph. A side of one pixel is repeated.
    """
    for axis in (0, 1):
        length = tf.shape(image)[axis]
        turn = 2 * (length - 1)  # back at the first pixel
        place = tf.range(tf.maximum(-(-length // MULTIPLE) * MULTIPLE, SMALLEST)) % tf.maximum(turn, 1)
        image = tf.gather(image, tf.minimum(place, turn - place), axis=axis)
    return image


def run_generator(generator, image):
    """What a generator makes of an image float32 [H, W, 3] in 0..1 of any size: the same; in a graph."""
    height, width, _ = tf.unstack(tf.shape(image))
    images = mirrored(image * 2 - 1)[None]
    images = tf.ensure_shape(images, [1, None, None, 3])
    # As in training, where one picture is normalised by the fast kernel: the result is that of inference.
    found = tf.cast(generator(images, training=True), tf.float32)
    return found[0, :height, :width] / 2 + 0.5


def whole_network(generator):
    """The function from an image float32 [H, W, 3] in 0..1 to its translation, on the whole picture."""
    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32)], autograph=False)
    def infer(image):
        return run_generator(generator, image)

    return infer


def tiled_network(generator, tile=TILE):
    """As `whole_network`, with little memory: see `tiling`."""
    def infer(image):
        height, width = image.shape[:2]
        padded = mirrored(tf.constant(image) * 2 - 1).numpy()
        return tiling.translate(generator, padded, tile)[:height, :width] / 2 + 0.5

    return infer


def openvino_network(generator):
    """As `whole_network`, compiled by OpenVINO."""
    frozen = folding.freeze(generator, tf.TensorSpec([None, None, None, 3], tf.float32, "images"))
    compiled = runtime.openvino_network(frozen)

    def infer(image):
        height, width = image.shape[:2]
        return compiled(mirrored(tf.constant(image) * 2 - 1)[None])[0][0, :height, :width] / 2 + 0.5

    return infer


def bundle_network(folder, direction):
    """(network, config) of an exported bundle; the network as `whole_network`. Raises UserError."""
    folder = export.resolve_version(folder)
    config = export.read_config(folder)
    if config.get("article") != "cyclegan":
        raise UserError(f"--bundle must be one that cyclegan.export wrote, and {folder} is of "
                        f"{config.get('article')!r}.")
    session = export.Session(folder)

    def infer(image):
        try:
            return session.run(direction, {"images": image[None]})["pictures"][0]
        except tf.errors.InvalidArgumentError:
            raise UserError(f"A picture of {image.shape[1]} x {image.shape[0]} is more than the bundle {folder} "
                            "takes. Give --size 2048, or --run in place of --bundle.") from None

    return infer, config


def choose_network(generator, tile=None):
    """The network of a generator for pictures of all sizes: whole, or piece by piece.

    tile: side of the pieces; 0 never cuts, None cuts pictures of more than `WHOLE` pixels.
    """
    whole = None if tile else whole_network(generator)
    tiled = None if tile == 0 else tiled_network(generator, tile or TILE)

    def infer(image):
        return (whole if tiled is None or whole is not None and image[..., 0].size <= WHOLE else tiled)(image)

    return infer


def make_translate(infer, size=0):
    """The function from a picture uint8 [H, W, 3] to its translation, the same, and the seconds of the network.

    infer: one of the networks above. size: pictures with a longer side are shrunk to it for the network, as training
    pictures are, and the translation is enlarged again; 0 shrinks nothing.
    """
    def translate(picture):
        height, width = picture.shape[:2]
        share = size / max(height, width)
        if 0 < share < 1:
            image = preprocess.resize(picture, [max(1, round(side * share)) for side in (height, width)]).numpy()
        else:
            image = picture.astype(np.float32)
        start = time.perf_counter()
        found = np.asarray(infer(image / 255))
        seconds = time.perf_counter() - start
        found = preprocess.to_bytes(found * 2 - 1)
        if found.shape != picture.shape:
            found = cv2.resize(found, (width, height), interpolation=cv2.INTER_CUBIC)
        return found, seconds

    return translate


# From sources to files


def predict(arguments, translate, out, *, values=None, side_by_side=False, report=print):
    """Translates all sources and writes to `out`; says what cannot be read, and goes on.

    translate: of `make_translate`. values: what every JSON line has besides the names and the size. side_by_side:
    the pictures that are written have what went in on their left. Returns {"images", "largest" (longer side, pixels),
    "unreadable" (names), "network_seconds", "seconds", "interrupted"}. Ctrl-C, which ends a camera, keeps what was
    translated until then.
    """
    unreadable = []

    def on_unreadable(name, reason):
        unreadable.append(name)
        report(f"unreadable: {name}: {reason}")

    count, largest, network_seconds, interrupted, start = 0, 0, 0.0, False, time.perf_counter()
    with writer.Writer(out, "translations.jsonl", arguments) as written:
        try:
            for frame in media.frames(arguments, on_unreadable, on_white=True):
                translated, seconds = translate(frame.image)
                drawn = np.concatenate([frame.image, translated], axis=1) if side_by_side else translated
                written.write(frame, drawn, values or {})
                count, network_seconds = count + 1, network_seconds + seconds
                largest = max(largest, *frame.image.shape[:2])
        except KeyboardInterrupt:
            interrupted = True
    return {"images": count, "largest": largest, "unreadable": unreadable, "network_seconds": network_seconds,
            "seconds": time.perf_counter() - start, "interrupted": interrupted}


def size_note(largest, size, trained):
    """A sentence where a network got much larger pictures than it has learnt from, else None.

    largest: longer side of the largest picture. size: as in `make_translate`. trained: side of the training pictures.
    """
    shown = min(largest, size or largest)
    if shown <= MUCH_LARGER * trained:
        return None
    return (f"note: the network got up to {shown} pixels on the longer side, and has learnt from pictures of "
            f"{trained} x {trained}: it knows its subjects in the size that they have there. --size {trained} shrinks "
            "pictures for it.")


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_string("bundle", None, "Exported bundle, instead of --run.")
    flags.DEFINE_string("out", "predictions", "Folder of the translated pictures and of translations.jsonl.")
    flags.DEFINE_enum("direction", "a2b", list(DIRECTIONS), "From the first domain to the second, or back.")
    flags.DEFINE_bool("side_by_side", False, "Write each picture with what it was translated from on its left.")
    flags.DEFINE_integer("size", 0, "Shrink pictures for the network to this longer side, and enlarge what it "
                         "makes of them; 0 does not.", lower_bound=0)
    flags.DEFINE_integer("tile", None, f"Side of the pieces, from {tiling.MIN_TILE}, that pictures are worked on "
                         "in, with the result of the whole in less memory. 0 never does it; default: "
                         f"{TILE}, for pictures of more than {WHOLE:,} pixels.", lower_bound=0)
    flags.DEFINE_enum("runtime", "keras", runtime.RUNTIMES,
                      "openvino is faster on Intel processors, and an extra.")
    flags.DEFINE_enum("precision", "float32", runtime.PRECISIONS, "Arithmetic under --runtime keras; bfloat16 is "
                      "faster on processors with amx_bf16 or avx512_bf16 only.")


def load_network(flags):
    """(network, config) that --run or --bundle stands for."""
    detection_predict.require_one(flags, ["run", "bundle"])
    if flags.tile and flags.tile < tiling.MIN_TILE:
        raise UserError(f"--tile must be 0 or {tiling.MIN_TILE} pixels at least; {flags.tile} came.")
    if flags.tile and (flags.bundle or flags.runtime == "openvino"):
        raise UserError("--tile goes with --run under --runtime keras; a bundle or OpenVINO takes pictures whole.")
    if flags.bundle:
        if flags.runtime == "openvino":
            raise UserError("--runtime openvino goes with --run; a bundle of cyclegan has the server's own "
                            "operations around the network.")
        return bundle_network(flags.bundle, flags.direction)
    models, config = load_run(flags.run, flags.which, detection_predict.policy(flags))
    generator = models[flags.direction]
    if flags.runtime == "openvino":
        return openvino_network(generator), config
    return choose_network(generator, flags.tile), config


def main(args):
    flags = cli.FLAGS
    if not args:
        raise UserError(
            "Say what to look at: files, folders, globs, videos or a camera's number, e.g. photo.jpg"
        )
    infer, config = load_network(flags)
    source, target = config["labels"] if flags.direction == "a2b" else config["labels"][::-1]
    result = predict(args, make_translate(infer, flags.size), flags.out, side_by_side=flags.side_by_side,
                     values={"direction": flags.direction, "source": source, "target": target},
                     report=functools.partial(print, file=sys.stderr))
    count, unreadable = result["images"], result["unreadable"]
    if not count and not result["interrupted"]:
        raise UserError(f"None of the {len(unreadable)} sources could be read; their names stand above.")
    if count:
        print(f"{count} images from {source} to {target}, {count / result['network_seconds']:.2f} per second in "
              f"the network, {count / result['seconds']:.2f} all in; {len(unreadable)} unreadable")
        print(pathlib.Path(flags.out) / "translations.jsonl")
        note = size_note(result["largest"], flags.size, config["image_size"])
        if note:
            print(note)
    if result["interrupted"]:
        raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(main, define_flags)
