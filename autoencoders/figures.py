"""Pictures of what an autoencoder does: reconstructions, the plane of codes, pictures decoded from codes.

Small pictures are uint8 or float in 0..1, [H, W, C] with C 1 or 3. Nothing here runs a network.
"""

import cv2
import numpy as np

from common import drawing

SIDE = 56        # small pictures are enlarged to at least this, by a whole factor
_DIGITS = 10


def as_bytes(pictures):
    """uint8 RGB [N, H, W, 3] of pictures float in 0..1 or uint8, with 1 or 3 channels."""
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8:
        pictures = np.rint(np.clip(pictures, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(pictures, (*pictures.shape[:3], 3))


def enlarged(pictures):
    """The pictures as uint8 RGB, their pixels repeated until they are large enough to be looked at."""
    pictures = as_bytes(pictures)
    factor = max(1, round(SIDE / max(pictures.shape[1:3])))
    return np.repeat(np.repeat(pictures, factor, axis=1), factor, axis=2)


def tiles(pictures, columns=10):
    """One picture with all of them in rows of `columns`."""
    return drawing.grid(list(enlarged(pictures)), columns=columns, gap=2, background=96)


def reconstructions(*rows, columns=10):
    """One picture with rows of pictures that belong together, one above the other: in, (noisy,) out.

    rows: arrays [N, H, W, C] of one length. With N above `columns` the rows are repeated, set apart by a gap.
    """
    count = len(rows[0])
    bands = [tiles(np.concatenate([enlarged(row[first:first + columns]) for row in rows]),
                   columns=min(columns, count - first)) for first in range(0, count, columns)]
    return stacked(bands)


def stacked(bands, gap=12):
    """One picture with pictures of any size below each other, left-aligned on white."""
    width, parts = max(band.shape[1] for band in bands), []
    for band in bands:
        parts += [np.full([gap, width, 3], 255, np.uint8)] if parts else []
        parts.append(np.pad(band, [(0, 0), (0, width - band.shape[1]), (0, 0)], constant_values=255))
    return np.concatenate(parts)


def beside(left, right, titles):
    """Two pictures side by side with a line of text above each."""
    titled = []
    for picture, title in zip((left, right), titles):
        head = np.full([34, picture.shape[1], 3], 255, np.uint8)
        scale = 0.55
        (width, _), _ = cv2.getTextSize(title, drawing.FONT, scale, 1)
        scale *= min(1, (picture.shape[1] - 8) / width)
        cv2.putText(head, drawing.ascii_text(title), (4, 22), drawing.FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
        titled.append(np.concatenate([head, picture]))
    return drawing.grid(titled, columns=2, gap=24)


def plane(codes, ids, labels, title=""):
    """A picture of codes [N, 2] as dots coloured by label; ids [N], -1 without a label (gray)."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="code 1", ylabel="code 2", title=title)
    size = float(np.clip(50_000 / max(len(codes), 1), 5, 16))
    if (ids < 0).any():
        axes.scatter(*codes[ids < 0].T, s=size, color="0.6", linewidths=0)
    colors = colormaps["tab10" if len(labels) <= _DIGITS else "hsv"]
    for number, label in enumerate(labels):
        chosen = codes[ids == number]
        if len(chosen):
            color = colors(number if len(labels) <= _DIGITS else number / len(labels))
            axes.scatter(*chosen.T, s=size, color=color, alpha=0.6, linewidths=0, label=label)
    low, high = np.percentile(codes, [0.2, 99.8], axis=0)  # a few stray codes must not shrink all others
    margin = 0.05 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.grid(alpha=0.3)
    if 0 < len(labels) <= 2 * _DIGITS and (ids >= 0).any():
        legend = axes.legend(markerscale=20 / size**0.5 / 2, fontsize="medium", loc="center left",
                             bbox_to_anchor=(1.0, 0.5))
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
