"""What an evaluation shows: tables, the disagreements as CSV and text, confusion and calibration as PNG."""

import csv
import io
import pathlib
import textwrap
from typing import NamedTuple

import numpy as np

from common import drawing, files
from common.metrics import classification

PICTURES = ("confusion.png", "reliability.png")
_MOST_NAMED = 30  # categories; more are drawn without numbers and names
_INK, _BLUE, _RED = "#222222", "#2c6fad", "#c8553d"


class Disagreement(NamedTuple):
    """A text whose category is not what the network says; the columns of the CSV."""

    source: str
    category: str
    category_probability: float
    prediction: str
    probability: float
    second_choice: str
    second_probability: float
    text: str


def table(summary):
    """The figures as text: a line a category, then the whole."""
    def share(value, width):
        return f"{'-':>{width}}" if value is None else f"{value:{width}.3f}"

    width = max(8, *map(len, summary["categories"]))
    lines = [f"{'category':{width}}    texts  precision  recall     F1"]
    for label, row in summary["categories"].items():
        lines.append(f"{label:{width}}  {row['texts']:7d}  {share(row['precision'], 9)}  {share(row['recall'], 6)}  "
                     f"{share(row['f1'], 5)}")
    missing = [label for label, row in summary["categories"].items() if not row["texts"]]
    lines.append(f"accuracy {100 * summary['accuracy']:.2f} % of {summary['texts']} texts (always "
                 f"{summary['always']['category']}: {100 * summary['always']['accuracy']:.2f} %), macro F1 "
                 f"{summary['macro_f1']:.3f}, cross-entropy {summary['crossentropy']:.3f}")
    if missing:
        lines.append(f"no texts of {', '.join(missing)}: macro F1 is the mean of the other categories")
    lines.append(f"mean confidence {100 * summary['mean_confidence']:.2f} %, calibration error (ECE, 15 bins) "
                 f"{summary['ece']:.3f}")
    return "\n".join(lines)


def disagreement_table(rows, split, shown=10, columns=110):
    """The first `shown` disagreements, two or three lines each; all with shown=None."""
    if not rows:
        return f"The network agrees with the category of every text of {split}."
    lines = [f"{len(rows)} texts of {split} whose category and prediction differ, the most confident first:"]
    for row in rows[:shown]:
        second = (f", then {row.second_choice} {100 * row.second_probability:.1f} %"
                  if row.second_choice != row.category else ", its second choice")
        lines.append(f"  {100 * row.probability:5.1f} % {row.prediction}; category {row.category} "
                     f"{100 * row.category_probability:.1f} %{second}  [{row.source}]")
        text = textwrap.shorten(row.text.replace("\x00", " "), 2 * columns, placeholder=" ...")
        lines += textwrap.wrap(text, columns, initial_indent=" " * 10, subsequent_indent=" " * 10)
    if shown and len(rows) > shown:
        lines.append(f"  and {len(rows) - shown} more")
    return "\n".join(lines)


def write_disagreements(folder, split, rows):
    """Writes <split>_disagreements.csv (whole texts) and .txt; returns their paths."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Disagreement._fields)
    for row in rows:
        writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in row])
    paths = [folder / f"{split}_disagreements.{suffix}" for suffix in ("csv", "txt")]
    files.write_text(paths[0], text.getvalue())
    files.write_text(paths[1], disagreement_table(rows, split, shown=None) + "\n")
    return paths


def pictures(folder, prefix=""):
    """The paths of the pictures of `draw` that are in a folder."""
    return [path for path in (pathlib.Path(folder) / f"{prefix}{name}" for name in PICTURES) if path.exists()]


def draw(folder, found, labels, prefix=""):
    """Draws confusion.png and reliability.png of an `evaluate.Found`; returns their paths."""
    folder = pathlib.Path(folder)
    predictions = found.probs.argmax(axis=1)
    confusion = classification.confusion_matrix(found.labels, predictions, len(labels))
    draw_confusion(folder / f"{prefix}{PICTURES[0]}", confusion, labels)
    draw_reliability(folder / f"{prefix}{PICTURES[1]}", classification.reliability(found.labels, found.probs))
    return pictures(folder, prefix)


def draw_confusion(path, confusion, labels):
    """PNG of the confusion matrix [C, C]: counts, the colour is the share of the row (of the category's texts)."""
    named = len(labels) <= _MOST_NAMED
    side = max(4.5, 0.62 * len(labels) + 2.2) if named else 9.0
    figure, canvas = _figure(side + 0.8, side)
    right, total = np.trace(confusion), max(confusion.sum(), 1)
    axes = figure.add_subplot(xlabel="prediction", ylabel="category",
                              title=f"{right} of {total} right ({100 * right / total:.1f} %)")
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # The square root makes a few mistakes among hundreds of texts visible.
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    if named:
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), labels)
        for row, column in np.argwhere(confusion > 0):
            color = "white" if shares[row, column] > 0.4 else _INK
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color, fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.75, label="share of the category's texts")
    marks = np.array([0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.set_ticks(np.sqrt(marks), labels=[f"{100 * mark:g} %" for mark in marks])
    _write(path, canvas)


def draw_reliability(path, found):
    """PNG: how often predictions of each confidence are right, and below it how many there are."""
    figure, canvas = _figure(5.6, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    centers, width = (found.edges[:-1] + found.edges[1:]) / 2, np.diff(found.edges) * 0.92
    upper.bar(centers, np.nan_to_num(found.accuracy), width, color=_BLUE, alpha=0.75, label="right")
    upper.plot(found.confidence, found.accuracy, ".", color=_INK, label="mean confidence of the bin")
    upper.plot([0, 1], [0, 1], "--", color=_RED, linewidth=1.2, label="as often right as it says")
    ece = classification.expected_calibration_error(found)
    upper.set(ylabel="share that is right", ylim=(0, 1.02), xlim=(0, 1), title=f"expected calibration error "
                                                                               f"{ece:.3f}")
    upper.legend(loc="upper left", fontsize="small")
    upper.grid(alpha=0.25)
    lower.bar(centers, found.count, width, color=_BLUE, alpha=0.75)
    lower.set(xlabel="confidence (probability of the prediction)", ylabel="texts")
    lower.grid(alpha=0.25)
    _write(path, canvas)


def _figure(width, height):
    # The object interface of matplotlib: no window system, no global state of pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _write(path, canvas):
    canvas.draw()
    drawing.write_png(path, np.asarray(canvas.buffer_rgba())[..., :3])
