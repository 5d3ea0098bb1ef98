"""Measures a trained CycleGAN on the test pictures of both sides.

    python -m cyclegan.evaluate --run runs/cyclegan/horse2zebra
    python -m cyclegan.evaluate --run runs/cyclegan/horse2zebra --features inception

Article: "How do we know if a model is thoroughly trained and converged? The loss isn't good metrics here". So: the
share of translated pictures that a judge, trained on real pictures alone, takes for the target domain; the
Fréchet distance to the real pictures of the target (FID and KID where the features are Inception's); and what the
cycle and the identity lose. What doing nothing would give stands beside each.

B batch, N pictures, S side of what the networks get, D numbers of a feature. a2b: pictures of A, translated to B.
"""

import functools
import pathlib

import numpy as np
import tensorflow as tf

from common import cli, drawing, files, records, training
from common.errors import UserError
from common.metrics import frechet
from cyclegan import features as feature_sources
from cyclegan import predict, preprocess

SIDES = {"a2b": "A", "b2a": "B"}     # direction -> the side it starts from
_BACK = {"a2b": "b2a", "b2a": "a2b"}
_PREFIXES = {"inception": ("fid", "kid"), "custom": ("frechet_custom", "kernel_custom"),
             "stored": ("frechet_stored", "kernel_stored")}
_KEPT_PIXELS = 2**26  # of pictures that are kept to be drawn, of each kind
_DRAWN = 12


def batches(folder, side, split, strategy, config, *, batch_size, limit=0):
    """The evaluation dataset of a side ("A", "B") of a split ("test", "train"), distributed over the replicas.

    batch_size is the global one.
    """
    def make_dataset(replica_batch_size, context):
        return preprocess.evaluation_dataset(folder, f"{split}{side}", image_size=config["image_size"],
                                             batch_size=replica_batch_size, global_batch_size=batch_size,
                                             limit=limit)

    return training.distribute(strategy, make_dataset, batch_size)


def make_translate(generators, strategy):
    """The `@tf.function` from images float32 [B, S, S, 3] in -1..1 and a direction to the replicas' dicts.

    generators: {"a2b": model, "b2a": model}. "translated" and "cycled" [B, S, S, 3] in -1..1; "cycle" and
    "identity" [B], the mean absolute differences of the loss without their weights: the picture to its translation
    back, and to what the other generator, which has nothing to change in it, makes of it.
    """
    @tf.function
    def translate(images, direction):
        there, back = generators[direction], generators[_BACK[direction]]

        def replica(images):
            translated = tf.cast(there(images, training=False), tf.float32)
            cycled, same = (tf.cast(back(each, training=False), tf.float32) for each in (translated, images))
            return {"translated": translated, "cycled": cycled,
                    "cycle": tf.reduce_mean(tf.abs(cycled - images), axis=[1, 2, 3]),
                    "identity": tf.reduce_mean(tf.abs(same - images), axis=[1, 2, 3])}

        return strategy.run(replica, args=(images,))

    return translate


def collect(translate, dataset, strategy, direction, features=None, *, kept=None, write=None):
    """Translates an evaluation dataset; returns a dict of arrays in the order of the records.

    "images", "translated" and "cycled" uint8 [N, S, S, 3] (of the first `kept` pictures; None: as many as have 67
    million pixels), "cycle" and "identity" [N]; and of `features.Features`, with /images and /translated at the
    end: "judge" [N, D], "logit" [N] and, where it has an extractor, "features" [N, D]. write: function (indices,
    {kind: pictures uint8}) that gets every batch.
    """
    found, pictures, held = {}, {}, 0
    for batch in dataset:
        result = {**batch, **translate(batch["images"], direction)}
        local = {name: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
                 for name, value in result.items()}
        real = local["index"] >= 0  # the others fill the last batch up
        local = {name: value[real] for name, value in local.items()}
        if not len(local["index"]):
            continue
        shown = {kind: preprocess.to_bytes(local.pop(kind)) for kind in ("images", "translated", "cycled")}
        if kept is None:
            kept = max(1, _KEPT_PIXELS // int(np.prod(shown["images"].shape[1:3])))
        if held < kept:
            for kind, value in shown.items():
                pictures.setdefault(kind, []).append(value)
            held += len(local["index"])
        if write:
            write(local["index"], shown)
        for name, value in {**local, **_described(features, shown)}.items():
            found.setdefault(name, []).append(value)
    if not found:
        raise UserError("There is nothing to evaluate: the record set has no picture of this side.")
    found = {name: np.concatenate(values) for name, values in found.items()}
    order = np.argsort(found["index"], kind="stable")
    first = np.argsort(found["index"][:held], kind="stable")[:kept]
    return {**{name: value[order] for name, value in found.items()},
            **{kind: np.concatenate(values)[first] for kind, values in pictures.items()}}


def _described(features, shown):
    """What the judge and the extractor say of the pictures of a batch and of their translations."""
    values = {}
    for kind in ("images", "translated") if features else ():
        values[f"judge/{kind}"], values[f"logit/{kind}"] = features.judge(shown[kind])
        if features.extract:
            values[f"features/{kind}"] = features.extract(shown[kind])
    return values


def toward(found, direction, kind="translated"):
    """The judge's logits [N] for the domain that a direction leads to: above 0, it takes the picture for that."""
    return found[direction][f"logit/{kind}"] * (1 if direction == "a2b" else -1)


def round_trip(found, direction):
    """bool [N]: the judge takes the translation for the target, and what comes back is nearest to what was sent.

    Nearest of all pictures that `collect` kept, by the squared difference of 4 x 4 means. It is low however
    networks fail: what is copied is not taken for the target, and of what is painted at random, though the judge
    may like it, one of N comes back.
    """
    pictures = [found[direction][kind] for kind in ("images", "cycled")]
    count, side = pictures[0].shape[:2]
    sent, back = (kind.reshape(count, side // 4, 4, side // 4, 4, 3).mean((2, 4), np.float64).reshape(count, -1)
                  - 127.5 for kind in pictures)
    distances = np.sum(sent ** 2, axis=1) - 2 * back @ sent.T  # but for what is the same in a row
    return (distances.argmin(axis=1) == np.arange(count)) & (toward(found, direction)[:count] > 0)


def summarize(found, features):
    """The figures of {"a2b": `collect`, "b2a": `collect`} as a flat dict of plain numbers and texts.

    judge_accuracy: the judge's, on the real pictures, mean of both sides. judged_<direction> and _before: share of
    pictures it takes for the target, translated and not. round_trip_<direction>: see `round_trip`.
    frechet_judge_<direction>, frechet_judge_before; and
    fid_, kid_ (inception), frechet_custom_, kernel_custom_ (SavedModel) or frechet_stored_, kernel_stored_.
    Distances are left out with fewer than two pictures on a side, and the _std of a kernel distance where all pictures
    make one subset; the note says where pictures are fewer than numbers of a feature. cycle_a, cycle_b, identity_a2b,
    identity_b2a: see `make_translate`.
    """
    summary = {"pictures_a": len(found["a2b"]["index"]), "pictures_b": len(found["b2a"]["index"]),
               "features": features.kind, "note": features.note}
    summary["judge_accuracy"] = float(np.mean([np.mean(toward(found, direction, "images") <= 0)
                                               for direction in SIDES]))
    for direction in SIDES:
        summary[f"judged_{direction}_before"] = float(np.mean(toward(found, direction, "images") > 0))
        summary[f"judged_{direction}"] = float(np.mean(toward(found, direction) > 0))
        summary[f"round_trip_{direction}"] = float(np.mean(round_trip(found, direction)))
    if min(summary["pictures_a"], summary["pictures_b"]) > 1:
        described = ({direction: found[direction]["judge/images"] for direction in SIDES},
                     {direction: found[direction]["judge/translated"] for direction in SIDES})
        summary |= _distances(*described, "frechet_judge")
        if features.kind in _PREFIXES:
            described = _extracted(found, features)
            summary |= _distances(*described, *_PREFIXES[features.kind])
        caveat = frechet.caveat(*described[0].values())
        summary["note"] += f"; {caveat}" if caveat else ""
    for direction, side in SIDES.items():
        summary[f"cycle_{side.lower()}"] = float(np.mean(found[direction]["cycle"], dtype=np.float64))
        summary[f"identity_{_BACK[direction]}"] = float(np.mean(found[direction]["identity"], dtype=np.float64))
    return summary


def _extracted(found, features):
    """({direction: features [N, D] of the real pictures it starts from}, {direction: of their translations})."""
    if features.kind != "stored":
        return tuple({direction: found[direction][f"features/{kind}"] for direction in SIDES}
                     for kind in ("images", "translated"))
    for direction, side in SIDES.items():
        for name in (side.lower(), direction):
            stored, evaluated = len(features.stored[name]), len(found[direction]["index"])
            if stored != evaluated:
                raise UserError(f"The stored features {name} must be of the {evaluated} pictures that are "
                                f"evaluated, and are of {stored}. Write the pictures with --pictures, and make "
                                "them again.")
    return ({direction: features.stored[side.lower()] for direction, side in SIDES.items()},
            {direction: features.stored[direction] for direction in SIDES})


def _distances(real, translated, name, kernel_name=None):
    """The distances of translations to the real pictures of their target, and of the two sides as they are."""
    statistics = {direction: frechet.statistics(value) for direction, value in real.items()}
    values = {f"{name}_before": frechet.frechet_distance(*statistics["a2b"], *statistics["b2a"])}
    if kernel_name:
        values[f"{kernel_name}_before"], _ = frechet.kernel_distance(real["a2b"], real["b2a"])
    for direction in SIDES:
        target = _BACK[direction]
        values[f"{name}_{direction}"] = frechet.frechet_distance(*frechet.statistics(translated[direction]),
                                                                 *statistics[target])
        if kernel_name:
            mean, deviation = frechet.kernel_distance(translated[direction], real[target])
            values |= {f"{kernel_name}_{direction}": mean}
            if np.isfinite(deviation):
                values |= {f"{kernel_name}_{direction}_std": deviation}
    return values


def measure(translate, folder, strategy, config, features, *, batch_size, split="test", limit=0, kept=None,
            write=None):
    """(`summarize`, {direction: `collect`}) of both sides of a split; limit: pictures of each side, 0 takes all.

    write: {direction: function as in `collect`}.
    """
    found = {}
    for direction, side in SIDES.items():
        dataset = batches(folder, side, split, strategy, config, batch_size=batch_size, limit=limit)
        found[direction] = collect(translate, dataset, strategy, direction, features, kept=kept,
                                   write=write and functools.partial(write, direction))
    summary = {"split": split, **summarize(found, features)}
    if split == "train":
        summary["note"] += "; the judge has learnt from training pictures, so its own accuracy on them says little"
    return summary, found


def score(summary):
    """The figure to choose between epochs by, lower is better: the mean of both directions' Fréchet distances.

    Of the features that were asked for, else the judge's; with too few pictures for one, the share that the judge
    does not take for the target.
    """
    for name in ("fid", "frechet_custom", "frechet_judge"):
        if f"{name}_a2b" in summary:
            return (summary[f"{name}_a2b"] + summary[f"{name}_b2a"]) / 2
    return 1 - (summary["judged_a2b"] + summary["judged_b2a"]) / 2


def chosen(found, direction, count=_DRAWN, seed=0):
    """{"best", "worst", "random": indices} of translations: what the judge likes most, least, and a draw."""
    logits = toward(found, direction)[:len(found[direction]["images"])]
    order = np.argsort(-logits, kind="stable")
    drawn = np.random.default_rng(seed).permutation(len(order))[:count]
    return {"best": order[:count], "worst": order[::-1][:count], "random": np.sort(drawn)}


def sheet(found, indices, columns=2):
    """A picture uint8: for each of the indices the picture, its translation, and that translated back."""
    triples = [drawing.grid([found[kind][i] for kind in ("images", "translated", "cycled")], columns=3, gap=2)
               for i in indices]
    return drawing.grid(triples, columns=columns, gap=8)


def table(summary, labels):
    """The summary as text."""
    a, b = labels
    heads = f"{a} -> {b}", f"{b} -> {a}"

    def row(title, key, digits, before=False):
        values = [summary.get(f"{key}_before" if before and f"{key}_before" in summary else f"{key}_{direction}" +
                              "_before" * before) for direction in SIDES]
        return f"{title:32}" + "".join(f"{value:>20.{digits}f}" for value in values)

    lines = [f"{summary['pictures_a']} pictures of {a}, {summary['pictures_b']} of {b}; the judge is right about "
             f"{summary['judge_accuracy']:.3f} of them", f"{'':32}" + "".join(f"{head:>20}" for head in heads),
             row("judged as target, untranslated", "judged", 3, True),
             row("judged as target, translated", "judged", 3),
             row("... and comes back as itself", "round_trip", 3)]
    names = {"frechet_judge": ("Frechet (judge)", 2), "fid": ("FID (Keras's Inception)", 2),
             "kid": ("KID (Keras's Inception)", 4)}
    for key in ("frechet_judge", *_PREFIXES.get(summary["features"], ())):
        if f"{key}_a2b" in summary:
            title, digits = names.get(key, (key.replace("_", " "), 4))
            lines += [row(f"{title}, untranslated", key, digits, True), row(f"{title}, translated", key, digits)]
    cycle, identity = (f"{title:32}{summary[one]:>20.4f}{summary[other]:>20.4f}" for title, one, other in (
        ("cycle L1 (pictures in -1..1)", "cycle_a", "cycle_b"),
        ("identity L1", "identity_a2b", "identity_b2a")))
    return "\n".join([*lines, cycle, identity, f"({summary['note']})"])


def write_pictures(folder, direction, indices, shown):
    """Writes a batch as PNG to <folder>/a and /a2b, or /b and /b2a: for figures of other programs."""
    for kind, name in (("images", SIDES[direction].lower()), ("translated", direction)):
        for index, picture in zip(indices, shown[kind]):
            drawing.write_png(pathlib.Path(folder) / name / f"{index:06d}.png", picture)


def leftovers(folder, found):
    """Lines about the folders of `write_pictures` that hold more pictures than those of this evaluation."""
    lines = []
    for direction, side in SIDES.items():
        for name in (side.lower(), direction):
            held, written = len(list((pathlib.Path(folder) / name).glob("*.png"))), len(found[direction]["index"])
            if held > written:
                lines.append(f"note: {pathlib.Path(folder) / name} holds {held} pictures, and {written} are of this "
                             "evaluation. Empty it first, before figures are made of it.")
    return lines


def compare_labels(labels, trained, folder):
    """Says that a record set has other domains than those trained on; a UserError where they changed places."""
    if labels == trained[::-1]:
        raise UserError(f"A and B must be {trained[0]} and {trained[1]}, as in training, and {folder} has {labels[0]} "
                        "for A. Build it again with --source_a and --source_b (or the folders of --source) the other "
                        "way round.")
    if labels != trained:
        print(f"note: trained on {trained[0]} and {trained[1]}, and evaluated on {labels[0]} and {labels[1]}.")


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_string("tfrecords", None, "Record set; default: the one the run was trained on.")
    flags.DEFINE_alias("dataset", "tfrecords")
    flags.DEFINE_enum("split", None, ["train", "test"], "Default test, or train of a run with --limit.")
    flags.DEFINE_integer("limit", 0, "Evaluate the first N pictures of each side; 0 takes all.", lower_bound=0)
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_integer("batch_size", 4, "Pictures per step over all replicas.", lower_bound=1)
    flags.DEFINE_string("features", "judge", "judge: those of a classifier of A and B trained here; inception: "
                        "FID and KID; or the folder of a SavedModel, or of stored features (a.npy, b.npy, "
                        "a2b.npy, b2a.npy).")
    flags.DEFINE_string("pictures", None, "Folder for all pictures and translations as PNG (a, b, a2b, b2a).")
    flags.DEFINE_integer("seed", 0, "Seed of the pictures drawn at random.", lower_bound=0)
    flags.DEFINE_string("out", None, "Folder of the report; default <run>/evaluation.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    strategy = training.make_strategy()
    with strategy.scope():
        generators, config = predict.load_run(flags.run, flags.which)
    name = flags.tfrecords or config.get("tfrecords")
    if not name:
        raise UserError(f"{flags.run} does not say what it was trained on; say with --tfrecords what to evaluate "
                        "it on.")
    limited = bool(config["limit"]) and not flags.tfrecords
    split = flags.split or ("train" if limited else "test")
    for side in "AB":
        folder = records.resolve(name, kind=preprocess.KIND, split=f"{split}{side}", command=preprocess.command(name))
    labels = preprocess.domains(folder)
    compare_labels(labels, config["labels"], folder)
    limit = flags.limit or (config["limit"] if limited and split == "train" else 0)
    # The judge learns from the set that the run was trained on; from another one it is not kept.
    own = pathlib.Path(config.get("tfrecords") or "none") if flags.tfrecords else folder
    known = (own / records.MANIFEST).is_file()
    features = feature_sources.load(flags.features, own if known else folder, flags.run, seed=config["seed"],
                                    keep=known)
    write = functools.partial(write_pictures, flags.pictures) if flags.pictures else None
    summary, found = measure(make_translate(generators, strategy), folder, strategy, config, features,
                             batch_size=flags.batch_size, split=split, limit=limit, write=write)
    print("\n".join([table(summary, labels), *(leftovers(flags.pictures, found) if flags.pictures else [])]))
    out = pathlib.Path(flags.out or pathlib.Path(flags.run) / "evaluation")
    for direction in SIDES:
        for kind, indices in chosen(found, direction, seed=flags.seed).items():
            path = out / f"{split}_{direction}_{kind}.png"
            drawing.write_png(path, sheet(found[direction], indices))
            print(path)
    files.write_json(out / f"{split}.json", summary)
    print(out / f"{split}.json")


if __name__ == "__main__":
    cli.run(main, define_flags)
