"""Is the space of codes dense or full of holes? Random codes, and how far what they decode to is from a picture.

Article, "Randomly sampling numbers": "the latent space is not dense, which means that a random vector will be
unlikely to produce a valid image". Measured: the share of random codes whose picture lies farther from every
training picture than 95 % of the model's own reconstructions of held-out pictures do. Codes as good as those of
pictures would give 0.05; a space of nothing but holes gives 1.

It takes little to have no holes: a decoder that answers every code with one picture has none, if that picture is
among the usual. So beside the share stand what the mean picture would get, how many different training pictures the
samples are nearest to, and the agreement of labels that chance gives.

N pictures, M random codes. Distances are roots of mean squared differences of pixels in 0..1.
"""

import numpy as np
import tensorflow as tf

QUANTILE = 0.95
NEIGHBOURS = 10


def random_codes(codes, count, *, variational, seed=0):
    """Random codes [M, ...] as somebody would draw them who knows no picture.

    variational: from the prior N(0, 1). Otherwise each number of the code is drawn, independently of the others,
    from the values that it has over the pictures, `codes` [N, ...]: this never leaves the range of any number, and
    a code whose numbers were independent, as a dense latent space has them, would lose nothing by it.
    """
    rng = np.random.default_rng(seed)
    if variational:
        return rng.normal(size=(count, *codes.shape[1:])).astype(np.float32)
    flat = codes.reshape(len(codes), -1)
    drawn = np.take_along_axis(flat, rng.integers(len(flat), size=(count, flat.shape[1])), axis=0)
    return drawn.reshape(count, *codes.shape[1:])


def plane_codes(codes, side=10, *, variational):
    """Codes [side * side, 2] on a grid over a latent plane, second number falling from row to row.

    The grid lines are the quantiles 0.5/side, 1.5/side, ... of the standard normal distribution (article: a square
    from -1 to 1) or, of a plain autoencoder, of the codes [N, 2] of pictures.
    """
    shares = (np.arange(side) + 0.5) / side
    if variational:
        lines = np.stack([tf.math.ndtri(shares).numpy()] * 2)
    else:
        lines = np.quantile(codes, shares, axis=0).T
    first, second = np.meshgrid(lines[0], lines[1][::-1])
    return np.stack([first.reshape(-1), second.reshape(-1)], axis=-1).astype(np.float32)


def nearest(pictures, references, count=1, chunk=500):
    """(distances [M, count], their indices) of the nearest references.

    pictures [M, H, W, C] and references [N, H, W, C], float32 in 0..1.
    """
    flat = tf.reshape(references, [len(references), -1])
    norms, found = tf.reduce_sum(tf.square(flat), axis=1), []
    for first in range(0, len(pictures), chunk):
        part = tf.reshape(pictures[first:first + chunk], [-1, flat.shape[1]])
        squares = tf.reduce_sum(tf.square(part), axis=1)[:, None] - 2 * tf.matmul(part, flat,
                                                                                  transpose_b=True) + norms
        closest, index = tf.math.top_k(-squares, count)
        found.append((tf.sqrt(tf.maximum(-closest, 0) / flat.shape[1]).numpy(), index.numpy()))
    return tuple(np.concatenate(column) for column in zip(*found))


def agreement(ids):
    """Mean share of the most frequent label among the neighbours, ids [M, count]: 1 where no picture is a mix."""
    counts = [np.bincount(row).max() / len(row) for row in ids]
    return float(np.mean(counts))


def measure(samples, reconstructions, references, ids=None, seed=0):
    """How often `samples`, decoded from random codes, are no pictures: a dict of plain numbers.

    samples [M, H, W, C]; reconstructions of held-out pictures; references: training pictures, all float32 in 0..1;
    ids: labels of the references, -1 without.

    "share": of the samples that lie in a hole, farther than "limit"; "mean_share", 0 or 1: the same if every sample
    were the mean of the references, which lies at "mean_distance". "distance", "usual_distance": medians of the
    distance to the nearest training picture, of samples and of reconstructions.
    "variety", "usual_variety": how many different training pictures are the nearest of one of them, a sample (or
    reconstruction, as many of them). "agreement", "usual_agreement": of the labels of the nearest "neighbours"
    training pictures, None without labels: the article's "mix of numbers" has neighbours of many;
    "chance_agreement": of as many drawn at random. "samples", "reconstructions", "references": how many there were.
    """
    count = min(NEIGHBOURS, len(references))
    far, near = nearest(samples, references, count), nearest(reconstructions, references, count)
    mean, _ = nearest(references.mean(axis=0, keepdims=True), references)
    limit = float(np.quantile(near[0][:, 0], QUANTILE))
    paired = min(len(samples), len(reconstructions))
    found = {"share": float(np.mean(far[0][:, 0] > limit)), "limit": limit,
             "mean_share": float(mean[0, 0] > limit), "mean_distance": float(mean[0, 0]),
             "distance": float(np.median(far[0][:, 0])), "usual_distance": float(np.median(near[0][:, 0])),
             "variety": variety(far[1][:paired]), "usual_variety": variety(near[1][:paired])}
    names = "agreement", "usual_agreement", "chance_agreement"
    if ids is not None and (np.asarray(ids) >= 0).all():
        drawn = np.random.default_rng(seed).integers(len(references), size=(1000, count))
        agreements = [agreement(np.asarray(ids)[index]) for index in (far[1], near[1], drawn)]
    else:
        agreements = [None] * 3
    return {**found, **dict(zip(names, agreements)), "neighbours": count, "samples": len(samples),
            "reconstructions": len(reconstructions), "references": len(references)}


def variety(index):
    """Of indices [M, count] of nearest references: how many different ones come first, a row."""
    return len(np.unique(index[:, 0])) / len(index)
