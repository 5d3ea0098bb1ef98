"""Generators as LiteRT (TensorFlow Lite) files for phones and small devices, and what each of them costs.

    python -m cyclegan.export --run runs/cyclegan/horse2zebra --format litert --out litert/horse2zebra

Article: "The CycleGAN model turns out to be 44mb, with quantization it could become 12mb". A file takes and gives
pictures float32 [1, S, S, 3] in 0..1 of one size (`int8_full`: int8, with scale and zero point in the file):

float32       as trained
float16       weights in 16 bits, half the size
int8_weights  weights in 8 bits for each channel, arithmetic in float: the quality of the weights alone
int8_dynamic  besides, convolutions in 8 bits, whose inputs are measured at run time: the fastest on processors
int8          besides, these measured beforehand on representative pictures; what lies between is float
int8_full     8 bits throughout, for chips that have nothing else: instance normalisation suffers, because sums of
              squares of all channels then have 256 steps between them

S side of the pictures.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
import time
import warnings

import numpy as np
import tensorflow as tf

from common import cli, files, folding, media, records
from common.errors import UserError
from cyclegan import predict, preprocess, sources
from cyclegan.evaluate import SIDES

KINDS = ("float32", "float16", "int8_weights", "int8_dynamic", "int8", "int8_full")
CALIBRATED = ("int8", "int8_full")
SIGNATURE = "serving_default"
TOLERANCE = 1e-4  # of the float32 file's pictures in 0..1: sums in another order


# Files


def saved_model(generator, image_size, folder):
    """Writes a generator of pictures [1, S, S, 3] in 0..1 as a SavedModel without variables, for the converter."""
    spec = tf.TensorSpec([1, image_size, image_size, 3], tf.float32, "images")

    @tf.function(input_signature=[spec], autograph=False)
    def infer(images):
        return generator(images * 2 - 1, training=False) / 2 + 0.5

    frozen = folding.inlined(infer.get_concrete_function())
    module = tf.Module()
    module.translate = tf.function(lambda images: {"pictures": tf.identity(frozen(images)[0])},
                                   input_signature=[spec], autograph=False)
    tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.translate.get_concrete_function()})


def convert(generator, image_size, kinds, pictures):
    """Yields (kind, bytes of its file) of a float32 generator.

    pictures: representative ones, float32 [1, S, S, 3] in 0..1, for the kinds in `CALIBRATED`. Raises UserError
    where a package is missing.
    """
    quantized = [kind for kind in kinds if kind.startswith("int8")]
    if quantized:
        require("ai_edge_quantizer")
    with tempfile.TemporaryDirectory() as folder:
        saved_model(generator, image_size, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        plain = converter.convert()
        if "float32" in kinds:
            yield "float32", plain
        if "float16" in kinds:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
            yield "float16", converter.convert()
    for kind in quantized:
        yield kind, quantize(plain, kind, pictures)


def quantize(plain, kind, pictures):
    """The bytes of a float32 file in one of the kinds in 8 bits; pictures as in `convert`."""
    from ai_edge_quantizer import qtyping, quantizer

    with (open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere),
          contextlib.redirect_stderr(nowhere), warnings.catch_warnings()):
        warnings.simplefilter("ignore")  # that looking at all tensors takes memory
        tool, names = quantizer.Quantizer(bytearray(plain)), qtyping.TFLOperationName
        if kind == "int8_weights":
            tool.add_weight_only_config(".*", names.ALL_SUPPORTED, num_bits=8)
        elif kind == "int8_dynamic":
            tool.add_dynamic_config(".*", names.ALL_SUPPORTED, num_bits=8)
        else:
            integer = (names.ALL_SUPPORTED,) if kind == "int8_full" else (names.CONV_2D, names.CONV_2D_TRANSPOSE)
            for name in integer:
                tool.add_static_config(".*", name, activation_num_bits=8, weight_num_bits=8)
        found = None
        if tool.need_calibration:
            found = tool.calibrate({SIGNATURE: [{"images": picture} for picture in pictures]})
        return bytes(tool.quantize(found, enable_progress_report=False).quantized_model)


def require(package):
    """Raises UserError unless the package of the extra `litert` is installed."""
    try:
        __import__(package)
    except ImportError:
        raise UserError(f"--format litert needs the package {package.replace('_', '-')}. Install it: "
                        'pip install -e ".[litert]"') from None


class Interpreter:
    """A LiteRT file, ready to run: called with a picture float32 [1, S, S, 3] in 0..1 it returns the same."""

    def __init__(self, data, threads=None):
        require("ai_edge_litert")
        from ai_edge_litert import interpreter

        self._interpreter = interpreter.Interpreter(model_content=data, num_threads=threads or os.cpu_count())
        self._interpreter.allocate_tensors()
        (self._input,), (self._output,) = (self._interpreter.get_input_details(),
                                           self._interpreter.get_output_details())

    def __call__(self, picture):
        self._interpreter.set_tensor(self._input["index"], self._stored(picture))
        self._interpreter.invoke()
        found = self._interpreter.get_tensor(self._output["index"])
        if self._output["dtype"] == np.float32:
            return found
        scale, zero = self._output["quantization"]
        return (found.astype(np.float32) - zero) * np.float32(scale)

    def _stored(self, picture):
        if self._input["dtype"] == np.float32:
            return picture
        (scale, zero), limits = self._input["quantization"], np.iinfo(self._input["dtype"])
        return np.clip(np.rint(picture / scale + zero), limits.min, limits.max).astype(self._input["dtype"])


def measure(data, generator, pictures, threads=None):
    """What a file is worth, as a dict: "bytes"; "psnr" (dB) and "ssim" against the Keras model, means over the
    pictures, and the "lowest_psnr"; "difference", the largest of all numbers in 0..1; "seconds" for a picture."""
    run, values, seconds = Interpreter(data, threads), [], []
    run(pictures[0])  # the first run makes ready what the others use
    for picture in pictures:
        start = time.perf_counter()
        found = run(picture)
        seconds.append(time.perf_counter() - start)
        expected = generator(picture * 2 - 1, training=False).numpy() / 2 + 0.5
        values.append((tf.image.psnr(found, expected, 1.0)[0].numpy(),
                       tf.image.ssim(tf.constant(found), tf.constant(expected), 1.0)[0].numpy(),
                       np.abs(found - expected).max()))
    psnr, ssim, difference = np.array(values, np.float64).T
    return {"bytes": len(data), "psnr": float(psnr.mean()), "lowest_psnr": float(psnr.min()),
            "ssim": float(ssim.mean()), "difference": float(difference.max()),
            "seconds": float(np.median(seconds))}


# Pictures


def read_folder(folder, image_size, limit):
    """The first pictures of a folder, as many as `limit` says, float32 [1, S, S, 3] in 0..1. Raises UserError."""
    def refuse(name, reason):
        if reason.startswith("left out: "):  # of the folder, which may hold other things
            print(f"note: {name}: {reason}", file=sys.stderr)
            return
        raise UserError(f"--representative must be a folder of pictures, and {name} cannot be used: {reason}.")

    found = []
    for frame in media.frames([str(folder)], refuse, on_white=True):
        found.append(preprocess.resize(frame.image, image_size).numpy()[None] / 255)
        if len(found) == limit:
            break
    return found


def gather(config, direction, image_size, *, folder=None, samples=100, measured=10):
    """(representative pictures, others to measure on) of the side that a direction starts from.

    folder: of pictures, for both sides, or one that holds trainA and trainB or A and B; those behind the first
    `samples` of them are measured, or the same where there are no others. Without it, the record set that the run was
    trained on: pictures drawn from those for training, and the first for testing. Raises UserError.
    """
    side = SIDES[direction]
    if folder:
        folder = pathlib.Path(folder)
        given = sources.side_folders(folder)[0] if folder.is_dir() else {}
        places = [place for place in (given.get(f"train{side}"), folder / side) if place and place.is_dir()]
        found = read_folder((places or [folder])[0], image_size, samples + measured)
        return found[:samples], found[samples:] or found[:measured]
    name = config.get("tfrecords")
    if not name or not pathlib.Path(name).is_dir():
        raise UserError(f"The records {name} that the run was trained on are not there, and pictures are needed "
                        "to measure on. Say with --representative where some are.")
    for split in (f"train{side}", f"test{side}"):
        records.resolve(name, kind=preprocess.KIND, split=split, command=preprocess.command(name))
    drawn = preprocess.drawn_dataset(name, f"train{side}", image_size=image_size, count=samples)
    first = preprocess.evaluation_dataset(name, f"test{side}", image_size=image_size, batch_size=1, limit=measured)
    return tuple([(batch["images"].numpy() + 1) / 2 for batch in batches] for batches in (drawn.batch(1), first))


# The folder


def export_files(generators, config, out, *, image_size=None, kinds=KINDS, pictures=None, report=print,
                 **options):
    """Writes <direction>_<kind>.tflite, results.json and README.md to a folder; returns the results.

    generators: {"a2b", "b2a"} in float32. pictures: {direction: (representative, to measure on)}; default: those
    of `gather`, with `options`. Results: {direction: {kind: dict of `measure`}}. Raises UserError, also where the
    float32 file differs from the Keras model.
    """
    size, out, results, measured_on = image_size or config["image_size"], pathlib.Path(out), {}, []
    require("ai_edge_litert")
    for way in predict.DIRECTIONS:
        representative, measured = pictures[way] if pictures else gather(config, way, size, **options)
        results[way] = {}
        again = ", which chose the 8 bits" if measured[0] is representative[0] else ""
        measured_on.append(f"{len(measured)} pictures for {way}{again}")
        for kind, data in convert(generators[way], size, kinds, representative):
            found = results[way][kind] = measure(data, generators[way], measured)
            if kind == "float32" and not found["difference"] <= TOLERANCE:
                raise UserError(f"The float32 file of {way} must give what the Keras model gives to {TOLERANCE}, "
                                f"and differs by {found['difference']:.2g}. This build of the converter computes "
                                "wrongly; install another version of TensorFlow.")
            path = out / f"{way}_{kind}.tflite"
            try:
                out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"--out {out} cannot be written ({files.reason(error)}). Choose another folder."
                                ) from None
            files.write_bytes(path, data)
            report(f"{path}: {row(found)}")
    plain = {way: {kind: {key: value if np.isfinite(value) else None for key, value in found.items()}
                   for kind, found in of_way.items()} for way, of_way in results.items()}
    files.write_json(out / "results.json", {"image_size": size, "labels": config["labels"], **plain})
    files.write_text(out / "README.md", readme(results, config, size, " and ".join(measured_on)))
    return results


def row(found):
    """The figures of `measure` in words."""
    return (f"{found['bytes'] / 1e6:.2f} MB, PSNR {found['psnr']:.1f} dB (lowest {found['lowest_psnr']:.1f}), "
            f"SSIM {found['ssim']:.4f}, {1000 * found['seconds']:.0f} ms")


def readme(results, config, image_size, measured_on):
    """The text of README.md: the table and how to run a file. measured_on: which pictures, in words."""
    lines = [f"| {way} | {kind} | {found['bytes'] / 1e6:.2f} | {found['psnr']:.1f} | {found['lowest_psnr']:.1f} | "
             f"{found['ssim']:.4f} | {1000 * found['seconds']:.0f} |"
             for way, of_way in results.items() for kind, found in of_way.items()]
    (first, *_), (a, b) = results["a2b"], config["labels"]
    return README.format(a=a, b=b, size=image_size, measured_on=measured_on, threads=os.cpu_count(),
                         table="\n".join(lines), first=first)


README = """\
# CycleGAN for LiteRT: a2b makes {b} of {a}, b2a makes {a} of {b}

Pictures float32 [1, {size}, {size}, 3], RGB in 0..1, in and out (int8_full: int8, see `get_input_details`).
Against the float model, on {measured_on}; times on the machine that exported, {threads} threads:

| direction | file | MB | PSNR, dB | lowest | SSIM | ms |
|---|---|---|---|---|---|---|
{table}

int8_weights and int8_dynamic need no representative pictures; int8 leaves normalisation in float, which int8_full
does not.

    # pip install ai-edge-litert pillow
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from PIL import Image, ImageOps

    translate = Interpreter("a2b_{first}.tflite").get_signature_runner()
    picture = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
    picture = np.float32(picture.resize(({size}, {size}), Image.Resampling.BICUBIC)) / 255  # as in training
    found = translate(images=picture[None])["pictures"][0]
    Image.fromarray(np.uint8(np.rint(np.clip(found, 0, 1) * 255))).save("translated.png")
"""


def define_flags():
    """The flags of `export` that are of LiteRT alone."""
    flags = cli.flags
    flags.DEFINE_enum("format", "saved_model", ["saved_model", "litert"], "A bundle for TensorFlow Serving, or "
                      "files for small devices.")
    flags.DEFINE_list("kinds", list(KINDS), f"Of LiteRT files: {', '.join(KINDS)}.")
    flags.DEFINE_integer("image_size", None, "Side of the pictures of LiteRT files, a multiple of 4; default: "
                         "that of the training pictures. (Bundles take any.)", lower_bound=12)
    flags.DEFINE_string("representative", None, "Folder of pictures to choose the 8 bits by, or one that holds "
                        "trainA and trainB, or A and B; default: the records of the run.")
    flags.DEFINE_integer("samples", 100, "Representative pictures of a direction.", lower_bound=1)
    flags.DEFINE_integer("measured", 10, "Pictures of a direction to measure quality and time on.",
                         lower_bound=1)


def run(generators, config, flags):
    """What export.py does with --format litert."""
    unknown = sorted(set(flags.kinds) - set(KINDS))
    if unknown or not flags.kinds:
        raise UserError(f"--kinds must be some of {', '.join(KINDS)}; {', '.join(unknown) or 'none'} came.")
    if flags.image_size and flags.image_size % 4:
        raise UserError(f"--image_size must be a multiple of 4; {flags.image_size} came.")
    if flags.precision != "float32":
        raise UserError("--precision goes with bundles; LiteRT files have --kinds.")
    kinds = [kind for kind in KINDS if kind in flags.kinds]
    export_files(generators, config, flags.out, image_size=flags.image_size, kinds=kinds,
                 folder=flags.representative, samples=flags.samples, measured=flags.measured)
    print(f"{pathlib.Path(flags.out) / 'README.md'} has the table, and says how to run a file.")
