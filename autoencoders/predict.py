"""Reconstructs or denoises pictures: pairs of pictures, in and out, and their codes as JSON lines.

    python -m autoencoders.predict --run runs/autoencoders/mnist digit.png folder/ "more/*.png"

Pictures are turned as their EXIF orientation says, laid on white where they are transparent, made gray where the
network is, and resized to its size, as those of the records. B batch, H, W, C picture.
"""

import functools
import pathlib
import sys

import numpy as np
import tensorflow as tf

from autoencoders import figures, preprocess, sources
from autoencoders.loss import reconstruction_loss
from autoencoders.model import build, code_of, probs
from common import cli, media, runtime, writer
from common.errors import UserError


def load_run(folder, which="best"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError."""
    return runtime.read_run(folder, which, article="autoencoders",
                            keys=("model", "image_shape", "latent_dim", "noise"),
                            build=lambda config: build(config["model"], config["image_shape"],
                                                       config["latent_dim"]))


def require_shape(folder, config):
    """Raises UserError unless the pictures of a record set have the shape that the run was trained on."""
    shape = preprocess.image_shape(folder)
    if list(shape) != list(config["image_shape"]):
        raise UserError(f"The pictures of {folder} must have the shape that the run was trained on, "
                        f"{config['image_shape']}; they have {list(shape)}.")


def make_reconstruct(model, noise=0.0, seed=0):
    """The function from pictures uint8 [B, H, W, C] to a dict of arrays.

    "inputs" and "pictures" float32 [B, H, W, C] in 0..1: what the network got (with normal noise, if asked for)
    and what it gave; "code" [B, ...], "log_var" [B, D] of a variational one; "reconstruction" [B], nats, and
    "psnr" [B], both of the picture against the one without noise.
    """
    rng = np.random.default_rng(seed)

    @tf.function(reduce_retracing=True)
    def run(images, inputs):
        found = model(inputs, training=False)
        pictures = probs(found["logits"])
        values = {"inputs": inputs, "pictures": pictures, "code": code_of(found),
                  "reconstruction": reconstruction_loss(images, found["logits"]),
                  "psnr": tf.image.psnr(pictures, images, 1.0)}
        return {**values, **({"log_var": found["log_var"]} if "log_var" in found else {})}

    def reconstruct(pictures):
        images = pictures.astype(np.float32) / 255
        inputs = images
        if noise:
            inputs = preprocess.add_noise(images, rng.normal(size=images.shape).astype(np.float32), noise)
        return {name: value.numpy() for name, value in run(images, inputs).items()}

    return reconstruct


def line_of(found):
    """What codes.jsonl says of one picture; found: its values."""
    line = {"code": rounded(found["code"])}
    if "log_var" in found:
        line["log_var"] = rounded(found["log_var"])
    line["reconstruction"] = round(float(found["reconstruction"]), 3)
    line["psnr"] = round(float(found["psnr"]), 3) if np.isfinite(found["psnr"]) else None
    return line


def rounded(values):
    """Nested lists of an array, to six digits."""
    return np.vectorize(lambda value: float(f"{value:.6g}"))(values).tolist()


def predict(arguments, reconstruct, config, out, *, batch_size=64, invert=False, report=print):
    """Reconstructs all sources and writes to `out`; says what cannot be read, and goes on.

    Returns {"pictures", "unreadable" (names), "psnr": mean of those that are finite, None without, "exact": how many
    are not, "reconstruction": mean}.
    """
    unreadable, psnr, losses = [], [], []

    def on_unreadable(name, reason):
        unreadable.append(name)
        report(f"unreadable: {name}: {reason}")

    with writer.Writer(out, "codes.jsonl", arguments) as written:
        for batch in _batches(media.frames(arguments, on_unreadable, on_white=True), batch_size):
            pictures = np.stack([sources.fit(frame.image, config["image_shape"]) for frame in batch])
            found = reconstruct(255 - pictures if invert else pictures)
            for index, frame in enumerate(batch):
                one = {name: value[index] for name, value in found.items()}
                # What went in above what came out.
                drawn = figures.reconstructions(one["inputs"][None], one["pictures"][None])
                written.write(frame, drawn, line_of(one))
            psnr.extend(found["psnr"][np.isfinite(found["psnr"])])
            losses.extend(found["reconstruction"])
    return {"pictures": len(losses), "unreadable": unreadable, "psnr": float(np.mean(psnr)) if psnr else None,
            "exact": len(losses) - len(psnr), "reconstruction": float(np.mean(losses)) if losses else None}


def _batches(stream, batch_size):
    batch = []
    for frame in stream:
        batch.append(frame)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_string("out", "predictions", "Folder of the pairs of pictures and of codes.jsonl.")
    flags.DEFINE_integer("batch_size", 64, "Pictures per run of the network.", lower_bound=1)
    flags.DEFINE_bool("invert", False, "Swap black and white first: MNIST's digits are white on black.")
    flags.DEFINE_float("noise", 0.0, "Standard deviation of noise that is added first, to see it removed.",
                       lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Seed of that noise.", lower_bound=0)


def main(args):
    flags = cli.FLAGS
    if not args:
        raise UserError("Say what to look at: files, folders or globs, e.g. digit.png")
    model, config = load_run(flags.run, flags.which)
    reconstruct = make_reconstruct(model, flags.noise, flags.seed)
    result = predict(args, reconstruct, config, flags.out, batch_size=flags.batch_size, invert=flags.invert,
                     report=functools.partial(print, file=sys.stderr))
    if not result["pictures"]:
        raise UserError(f"None of the {len(result['unreadable'])} sources could be read; their names stand above.")
    psnr = f", PSNR {result['psnr']:.2f} dB" if result["psnr"] is not None else ""
    psnr += f" ({result['exact']} come back to the last bit, and are not in it)" if result["exact"] else ""
    print(f"{result['pictures']} pictures, reconstruction loss {result['reconstruction']:.2f} nats{psnr}; "
          f"{len(result['unreadable'])} unreadable")
    print(pathlib.Path(flags.out) / "codes.jsonl")


if __name__ == "__main__":
    cli.run(main, define_flags)
