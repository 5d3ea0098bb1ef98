"""How well a run describes pictures: reconstruction loss, KL, ELBO, importance-weighted bound, PSNR; holes.

    python -m autoencoders.evaluate --run runs/autoencoders/mnist --split test
    python -m autoencoders.evaluate --run runs/autoencoders/mnist --beside runs/autoencoders/mnist-dense

Losses are nats per picture, sums over its pixels. B batch, N pictures, D latent_dim, K samples of a code.
"""

import pathlib

import numpy as np
import tensorflow as tf

from autoencoders import figures, holes, predict, preprocess
from autoencoders.loss import (autoencoder_loss, importance_bound, log_weights, reconstruction_loss,
                               vae_loss)
from autoencoders.model import VARIATIONAL, code_of, forward, probs, sample
from common import cli, drawing, files, records, training
from common.errors import UserError

SHOWN = 20            # reconstructions in a picture
RANDOM_CODES = 1000   # decoded to measure holes
HELD_OUT = 2000       # reconstructions that they are compared with
PIXELS = 2**26        # of either in memory at most, of training pictures four times as many
_CHUNK = 50           # samples of a code that are decoded at a time


def make_evaluate(model, strategy):
    """The `@tf.function` from a batch to {"reconstruction", "kl", "psnr", "psnr_inputs", "code", "pictures"}.

    The losses of a variational autoencoder are of a sampled code, as in training; the picture, its PSNR and the
    code are of the mean.
    """
    @tf.function
    def evaluate(batch):
        def replica(batch):
            images, plain = batch["images"], forward(model, batch["inputs"])
            if "epsilon" in batch:
                parts = vae_loss(images, forward(model, batch["inputs"], batch["epsilon"]))
            else:
                parts = autoencoder_loss(images, plain)
            pictures = probs(plain["logits"])
            return {**parts, "psnr": tf.image.psnr(pictures, images, 1.0), "code": code_of(plain),
                    "pictures": pictures,
                    "psnr_inputs": tf.image.psnr(batch["inputs"], images, 1.0)}

        return strategy.run(replica, args=(batch,))

    return evaluate


def make_importance(model, num_samples, seed=0):
    """The `@tf.function` from inputs, images [B, H, W, C] and index to the importance-weighted bound [B]."""
    chunk = next(size for size in range(min(_CHUNK, num_samples), 0, -1) if num_samples % size == 0)

    @tf.function
    def bound(inputs, images, index):
        found = model.get_layer("encoder")(inputs, training=False)
        mean, log_var = found["mean"], found["log_var"]
        batch, tiled = tf.shape(images)[0], tf.repeat(images, chunk, axis=0)

        def weights(number):
            key = tf.stack([tf.cast(seed, tf.int64), index[0] * num_samples + tf.cast(number, tf.int64)])
            epsilon = tf.random.stateless_normal([batch, chunk, mean.shape[-1]], key)
            z = sample(mean[:, None], log_var[:, None], epsilon)                               # [B, chunk, D]
            logits = model.get_layer("decoder")(tf.reshape(z, [-1, mean.shape[-1]]), training=False)
            likelihood = -reconstruction_loss(tiled, logits)
            z, likelihood = tf.transpose(z, [1, 0, 2]), tf.transpose(tf.reshape(likelihood, [batch, chunk]))
            return log_weights(likelihood, z, mean, log_var)                                   # [chunk, B]

        spec = tf.TensorSpec([chunk, None], tf.float32)
        found = tf.map_fn(weights, tf.range(num_samples // chunk), fn_output_signature=spec)
        return importance_bound(tf.ensure_shape(tf.reshape(found, [num_samples, batch]), [num_samples, None]))

    return bound


def batches(folder, split, strategy, config, *, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one."""
    def make_dataset(replica_batch_size, context):
        return preprocess.evaluation_dataset(
            folder, split, image_shape=config["image_shape"], batch_size=replica_batch_size, noise=config["noise"],
            latent_dim=config["latent_dim"] if config["model"] in VARIATIONAL else 0, global_batch_size=batch_size,
            limit=limit)

    return training.distribute(strategy, make_dataset, batch_size)


def few(number, config, pixels=PIXELS):
    """`number`, or as many pictures of a run's size as have `pixels` pixels together."""
    return max(1, min(number, pixels // int(np.prod(config["image_shape"]))))


def collect(evaluate, dataset, strategy, kept=HELD_OUT):
    """Runs `evaluate` over an evaluation dataset; returns its values over all pictures, in their order.

    A dict of arrays [N, ...]: what `evaluate` gives, "label", and "images", "inputs", "pictures" of the first
    `kept` pictures alone.
    """
    found = {}
    for batch in dataset:
        result = {**batch, **evaluate(batch)}
        local = {name: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
                 for name, value in result.items() if name != "epsilon"}
        real = local["index"] >= 0  # the others fill the last batch up
        for name, value in local.items():
            if name not in ("images", "inputs", "pictures") or local["index"][0] < kept:
                found.setdefault(name, []).append(value[real])
    if not found:
        raise UserError("There is nothing to evaluate: the record set has no example in this split.")
    found = {name: np.concatenate(values) for name, values in found.items()}
    order = np.argsort(found["index"], kind="stable")
    pictures = {name: found.pop(name) for name in ("images", "inputs", "pictures")}
    first = np.argsort(found["index"][:len(pictures["images"])], kind="stable")
    return {**{name: value[order] for name, value in found.items()},
            **{name: value[first][:kept] for name, value in pictures.items()}}


def summarize(found, config):
    """The means over all pictures as a dict of plain numbers."""
    pixels = int(np.prod(config["image_shape"]))
    mean = {name: float(np.mean(found[name], dtype=np.float64)) for name in ("reconstruction", "kl")
            if name in found}
    total = sum(mean.values())
    summary = {"pictures": len(found["reconstruction"]), **mean, "loss": total,
               "reconstruction_per_pixel": mean["reconstruction"] / pixels, "psnr": finite_mean(found["psnr"]),
               "exact": int(np.sum(~np.isfinite(found["psnr"])))}
    if "kl" in mean:
        summary["elbo"] = -total
    if config["noise"]:
        summary["psnr_inputs"] = finite_mean(found["psnr_inputs"])
    return summary


def finite_mean(values):
    """The mean of those that are finite, None without: a picture that comes back to the last bit has an infinite
    PSNR, and is counted as "exact"."""
    return float(np.mean(values[np.isfinite(values)], dtype=np.float64)) if np.isfinite(values).any() else None


def measure_trivial(folder, split, limit=0):
    """What needs no network, a dict of plain numbers, nats per picture and dB.

    "least_reconstruction": cross-entropy of the pictures with themselves, which no network can go below.
    "mean_reconstruction", "mean_psnr": of answering each with the mean of all, the best constant answer.
    """
    shape = preprocess.image_shape(folder)

    def batches():
        stream = records.dataset(folder, split, epochs=1, limit=limit).map(lambda item: item["record"]).batch(1024)
        for batch in preprocess.untuned(stream):
            yield preprocess.parse_batch(batch, shape)[0].numpy().astype(np.float64)

    def entropy(images):
        """Of each pixel, in nats."""
        return -sum(part * np.log(np.where(part > 0, part, 1)) for part in (images, 1 - images))

    count, total, least = 0, 0, 0
    for images in batches():
        count, total, least = count + len(images), total + images.sum(axis=0), least + entropy(images).sum()
    mean = total / count
    errors = np.concatenate([np.square(images - mean).mean(axis=(1, 2, 3)) for images in batches()])
    with np.errstate(divide="ignore"):
        psnr = finite_mean(-10 * np.log10(errors))
    # Cross-entropy is linear in the pictures: its mean with a constant answer is that of their mean.
    return {"least_reconstruction": float(least / count), "mean_reconstruction": float(entropy(mean).sum()),
            "mean_psnr": psnr}


def measure_importance(model, folder, split, config, *, num_samples, limit):
    """Dict of plain numbers: bound and ELBO, K samples each, of the first `limit` pictures."""
    many, one = make_importance(model, num_samples), make_importance(model, 1)
    dataset = preprocess.evaluation_dataset(folder, split, image_shape=config["image_shape"], batch_size=20,
                                            noise=config["noise"], limit=limit)
    bounds, elbos = [], []
    for batch in dataset:
        real = batch["index"].numpy() >= 0
        arguments = batch["inputs"], batch["images"], batch["index"]
        bounds.append(many(*arguments).numpy()[real])
        elbos.append(one(*arguments).numpy()[real])
    bounds, elbos = np.concatenate(bounds), np.concatenate(elbos)
    return {"importance_bound": float(bounds.mean(dtype=np.float64)), "importance_samples": num_samples,
            "importance_pictures": len(bounds), "importance_elbo": float(elbos.mean(dtype=np.float64))}


def decode(model, codes, batch_size=500):
    """Pictures float32 [M, H, W, C] in 0..1 of codes [M, ...]."""
    decoder = model.get_layer("decoder")
    parts = [probs(decoder(tf.constant(codes[i:i + batch_size]), training=False)).numpy()
             for i in range(0, len(codes), batch_size)]
    return np.concatenate(parts)


def measure_holes(model, config, folder, found, *, limit=0, seed=0):
    """(dict of `holes.measure`, pictures of the random codes): what random codes of this run decode to.

    found: of `collect`. limit: training pictures that the run has seen, 0 for all. The codes of a plain autoencoder
    are drawn from those of training pictures.
    """
    held = records.count(folder, "train", limit=limit)
    references, ids = preprocess.read_split(folder, "train", limit=few(held, config, 4 * PIXELS))
    references = references.astype(np.float32) / 255
    variational = config["model"] in VARIATIONAL
    encoder, size = model.get_layer("encoder"), 500
    codes = found["code"] if variational else np.concatenate([
        encoder(references[i:i + size], training=False)["code"]
        for i in range(0, min(len(references), 10_000), size)])
    drawn = holes.random_codes(codes, few(RANDOM_CODES, config), variational=variational, seed=seed)
    samples = decode(model, drawn)
    return holes.measure(samples, found["pictures"], references, ids, seed), samples


def draw(model, config, found, samples, labels, title):
    """{kind: picture}: reconstructions, random samples, plane and grid of a code of two numbers."""
    rows = [found["images"][:SHOWN], *([found["inputs"][:SHOWN]] if config["noise"] else []),
            found["pictures"][:SHOWN]]
    pictures = {"reconstructions": figures.reconstructions(*rows)}
    if samples is not None:
        pictures["samples"] = figures.tiles(samples[:100])
    if found["code"].shape[1:] == (2,):
        variational = config["model"] in VARIATIONAL
        pictures["plane"] = figures.plane(found["code"], found["label"], labels, title)
        pictures["grid"] = figures.tiles(decode(model, holes.plane_codes(found["code"], variational=variational)))
    return pictures


def table(summary):
    """The summary as text."""
    lines = [f"{summary['pictures']} pictures; nats per picture",
             f"reconstruction  {summary['reconstruction']:9.3f}   ({summary['reconstruction_per_pixel']:.5f} a pixel; "
             f"of the mean picture {summary['mean_reconstruction']:.3f}, the least there can be "
             f"{summary['least_reconstruction']:.3f})"]
    if "kl" in summary:
        lines += [f"KL              {summary['kl']:9.3f}", f"total           {summary['loss']:9.3f}",
                  f"ELBO            {summary['elbo']:9.3f}"]
    if "importance_bound" in summary:
        lines.append(f"bound           {summary['importance_bound']:9.3f}   ({summary['importance_samples']} "
                     f"weighted samples; ELBO {summary['importance_elbo']:.3f} on the same "
                     f"{summary['importance_pictures']} pictures)")
    if summary["psnr"] is not None:
        others = {"of the noisy pictures": summary.get("psnr_inputs"), "of the mean picture": summary["mean_psnr"]}
        others = "; ".join(f"{what} {value:.2f}" for what, value in others.items() if value is not None)
        lines.append(f"PSNR            {summary['psnr']:9.2f} dB" + (f"   ({others})" if others else ""))
    if summary["exact"]:
        lines.append(f"exact           {summary['exact']:9d}   (pictures that come back to the last bit: their PSNR is "
                     "infinite, and not in the mean)")
    return "\n".join(lines + (hole_lines(summary["holes"], summary["split"]) if "holes" in summary else []))


def hole_lines(found, split):
    """What `holes.measure` found, as lines of text."""
    beside = "would be in one" if found["mean_share"] else "would be in none: few holes may be blur"
    lines = [f"holes           {found['share']:9.3f}   (share of {found['samples']} random codes that decode to no "
             f"picture: farther from each of {found['references']} training pictures than {found['limit']:.4f}, as 5 % "
             f"of {found['reconstructions']} reconstructions; the mean picture, at {found['mean_distance']:.4f}, "
             f"{beside})",
             f"distance        {found['distance']:9.4f}   (of reconstructions {found['usual_distance']:.4f}; medians, "
             "root of the mean squared difference of pixels in 0..1)",
             f"variety         {found['variety']:9.3f}   (different nearest training pictures, a code; of "
             f"reconstructions {found['usual_variety']:.3f})"]
    if found["agreement"] is not None:
        lines.append(f"agreement       {found['agreement']:9.3f}   (labels of the nearest {found['neighbours']}; of "
                     f"reconstructions {found['usual_agreement']:.3f}, by chance {found['chance_agreement']:.3f})")
    if split == "train":
        lines.append("The reconstructions are of training pictures, which lie nearer than others: held-out ones would "
                     "have fewer holes.")
    return lines


def write_beside(path, model_samples, summary, config, other, folder, *, limit, seed):
    """Draws this run's random samples left of those of the run folder `other`, with both shares of holes."""
    model, theirs = predict.load_run(other)
    if theirs["image_shape"] != config["image_shape"]:
        raise UserError(f"--beside must be a run on pictures of {config['image_shape']}, and {other} is of "
                        f"{theirs['image_shape']}.")
    strategy = tf.distribute.get_strategy()
    dataset = batches(folder, summary["split"], strategy, theirs, batch_size=100, limit=HELD_OUT)
    found = collect(make_evaluate(model, strategy), dataset, strategy, few(HELD_OUT, config))
    measured, samples = measure_holes(model, theirs, folder, found, limit=limit, seed=seed)
    titles = [f"{each['model']}, {each['latent_dim']} numbers: holes {share:.2f}"
              for each, share in ((config, summary["holes"]["share"]), (theirs, measured["share"]))]
    drawing.write_png(path, figures.beside(figures.tiles(model_samples[:100]), figures.tiles(samples[:100]),
                                           titles))
    return measured


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_string("tfrecords", None, "Record set; default: the one the run was trained on.")
    flags.DEFINE_alias("dataset", "tfrecords")
    flags.DEFINE_string("split", None, "Split to evaluate; default val, or train of a run with --limit.")
    flags.DEFINE_integer("limit", 0, "Evaluate the first N examples; 0 takes all.", lower_bound=0)
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_integer("batch_size", 100, "Pictures per step over all replicas.", lower_bound=1)
    flags.DEFINE_integer("importance_samples", 500, "Samples of a code in the importance-weighted bound.",
                         lower_bound=1)
    flags.DEFINE_integer("importance_pictures", 200, "Pictures that the bound is computed for; 0 leaves it out.",
                         lower_bound=0)
    flags.DEFINE_bool("holes", True, "Decode random codes, and measure how many are no pictures.")
    flags.DEFINE_string("beside", None, "Another run folder: draw its random samples beside this one's.")
    flags.DEFINE_integer("seed", 0, "Seed of the random codes.", lower_bound=0)
    flags.DEFINE_string("out", None, "Folder of the report; default <run>/evaluation.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    strategy = training.make_strategy()
    with strategy.scope():
        model, config = predict.load_run(flags.run, flags.which)
    name = flags.tfrecords or config.get("tfrecords")
    if not name:
        raise UserError(f"{flags.run} does not say what it was trained on; say with --tfrecords what to evaluate "
                        "it on.")
    limited = bool(config["limit"]) and not flags.tfrecords
    split = flags.split or ("train" if limited else "val")
    folder = records.resolve(name, kind=preprocess.KIND, split=split, command=preprocess.command(name))
    predict.require_shape(folder, config)
    limit = flags.limit or (config["limit"] if limited and split == "train" else 0)
    dataset = batches(folder, split, strategy, config, batch_size=flags.batch_size, limit=limit)
    found = collect(make_evaluate(model, strategy), dataset, strategy, few(HELD_OUT, config))
    summary, samples = {"split": split, **summarize(found, config), **measure_trivial(folder, split, limit)}, None
    if config["model"] in VARIATIONAL and flags.importance_pictures:
        count = min(flags.importance_pictures, summary["pictures"])
        summary |= measure_importance(model, folder, split, config, num_samples=flags.importance_samples,
                                      limit=count)
    seen = {"limit": config["limit"] if limited else 0, "seed": flags.seed}
    if flags.holes or flags.beside:
        summary["holes"], samples = measure_holes(model, config, folder, found, **seen)
    print(table(summary))
    out = pathlib.Path(flags.out or pathlib.Path(flags.run) / "evaluation")
    files.make_folder(out)
    title = f"{config['model']}: codes of {summary['pictures']} {split} pictures"
    for kind, picture in draw(model, config, found, samples, records.read_manifest(folder)["labels"],
                              title).items():
        drawing.write_png(out / f"{split}_{kind}.png", picture)
        print(out / f"{split}_{kind}.png")
    if flags.beside:
        path = out / f"{split}_samples_beside.png"
        summary["beside"] = {"run": flags.beside, **write_beside(path, samples, summary, config, flags.beside,
                                                                 folder, **seen)}
        print(f"{path}: {flags.beside} has holes {summary['beside']['share']:.3f}")
    files.write_json(out / f"{split}.json", summary)
    print(out / f"{split}.json")


if __name__ == "__main__":
    cli.run(main, define_flags)
