"""What evaluation found as text and as pictures: the table, skeletons of persons, curves.

K joints.
"""

import numpy as np
import tensorflow as tf

from common import drawing, records
from hourglass import crops, doctor, poses, preprocess

SAMPLES = 6          # persons in each of the pictures
SIDE = 256           # pixels of a person in them


def table(summary):
    """`evaluate.details` as text: a line a joint, the joint sets, what was left out, left and right."""
    names = summary["name"], summary["strict_name"]
    width = max(map(len, [*summary["joints"], *summary["sets"], "mean of the joints"]))
    wide, narrow = (max(len(name), 8) for name in names)
    lines = [f"{'joint':{width}}  {'joints':>7}  {names[0]:>{wide}}  {names[1]:>{narrow}}  {'area':>6}"]
    for name, row in {**summary["joints"], **summary["sets"]}.items():
        lines.append(f"{name:{width}}  {row['joints']:7d}  {row[names[0]]:{wide}.3f}  {row[names[1]]:{narrow}.3f}"
                     f"  {row['area']:6.3f}")
        if name in summary["sets"]:
            lines.append(f"{'  mean of the joints':{width}}  {'':7}  {row['mean of the joints']:{wide}.3f}")
    left_out = "; ".join(f"{what}: {times}" for what, times in summary["left_out"].items())
    lines.append(f"{summary['persons']} persons, distances in {summary['unit']}, area under the curve up to "
                 f"{summary['threshold']:g}; left out: {left_out}")
    missing = [name for name, row in summary["joints"].items() if not row["joints"]]
    if missing:
        lines.append(f"nan: no person counts who has {', '.join(missing)}")
    if "oks" in summary:
        lines.append("OKS  " + "  ".join(f"{name} {value:.3f}" for name, value in summary["oks"].items()))
        if any(np.isnan(value) for value in summary["oks"].values()):
            lines.append("nan: no person is of that size (m: area of 32 x 32 to 96 x 96 pixels, l: above)")
        crowded = summary["pictures of more than 20 persons"]
        if crowded:
            lines.append(f"{crowded} pictures have more than 20 persons; AP and AR count 20 answers, as COCO's do")
    for name, figures in summary.get("without looking", {}).items():
        lines.append(f"without looking, the {name}: "
                     + ", ".join(f"{what} {value:.3f}" for what, value in figures.items()))
    if summary["left_and_right"]:
        width = max(map(len, summary["left_and_right"]))
        heads = ("exchanged", "on one spot", "annotated there", "only one annotated")
        lines.append(f"{'left and right':{width}}" + "".join(f"  {head:>18}" for head in heads))
    for pair, row in summary["left_and_right"].items():
        lines.append(f"{pair:{width}}" + "".join(f"  {share(*counts):>18}" for counts in row.values()))
    return "\n".join(lines)


def share(times, total):
    """"3 of 60 (5.0%)"."""
    return f"{times} of {total} ({times / total:.1%})" if total else "-"


def choose_samples(errors, count=SAMPLES, seed=0):
    """{"worst", "best", "random": int arrays}: which of the persons with these errors [P] to draw."""
    known = np.flatnonzero(np.isfinite(errors))
    order = known[np.argsort(errors[known], kind="stable")]
    drawn = np.random.default_rng(seed).permutation(len(errors))[:count]
    return {kind: chosen for kind, chosen in
            {"worst": order[::-1][:count], "best": order[:count], "random": np.sort(drawn)}.items() if len(chosen)}


def draw_persons(folder, split, found, body, chosen, crop="center", side=SIDE):
    """(picture uint8, file names) of the persons `chosen` (positions in `found`), in that order.

    Each as evaluation crops it, annotated on the left, predicted on the right; joints that are not annotated are drawn
    on neither. Red is the person's right, blue the left. crop: as in `crops.square_of`.
    """
    colors, drawn = doctor.side_colors(body), {}
    wanted = found["index"][np.asarray(chosen, np.int64)]
    stream = records.dataset(folder, split, epochs=1).filter(lambda item: tf.reduce_any(item["index"] == wanted))
    for item in stream.take(len(set(wanted.tolist()))):
        index = int(item["index"])
        example = {key: value.numpy() for key, value in poses.parse(item["record"], len(body.labels)).items()}
        square = crops.square_of(crop, *(example[key] for key in preprocess.PLACE))
        matrix = crops.to_picture(square, side)
        image = crops.view(example["image_bytes"], matrix, side)
        row = int(np.searchsorted(found["index"], index))
        halves = [drawing.draw_skeletons(image, [crops.move(crops.invert(matrix), joints_xy)],
                                         [example["visible"] > 0], body.skeleton, colors=colors)
                  for joints_xy in (found["joints"][row], found["predicted"][row])]
        drawn[index] = np.concatenate(halves, axis=1), example["filename"].decode(errors="replace")
    pictures, names = zip(*(drawn[index] for index in wanted.tolist()))
    return drawing.grid(pictures, columns=3), list(names)


def draw_curves(path, sets, body, summary, title):
    """Writes the PNG of the share of right joints over the threshold, a line a joint, and the mean of all.

    sets, summary: of `evaluate.details`.
    """
    every = next(iter(sets.values()))
    lines = {f"{label} {every.curve[-1, joint]:.2f}": (every.thresholds, every.curve[:, joint])
             for joint, label in enumerate(body.labels) if every.count[joint]}
    lines[f"all {every.mean[-1]:.2f}"] = every.thresholds, every.mean
    unit = summary["unit"].split(":")[0]
    drawing.curves(path, lines, xlabel=f"threshold, {unit}", ylabel="share of joints within it", title=title,
                   xlim=(0, summary["threshold"]), ylim=(0, 1.02))
