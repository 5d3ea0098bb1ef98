"""Pictures that show what a model does: boxes, skeletons, grids, curves; as uint8 RGB arrays and PNG files.

Nothing here needs a display. H, W picture, N boxes, P persons, K joints.
"""

import math
import pathlib
import unicodedata

import cv2
import numpy as np

from common import files

FONT = cv2.FONT_HERSHEY_SIMPLEX
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def class_color(class_id):
    """(r, g, b) in 0..255 of a class: hues a golden section apart, so that neighbouring classes differ."""
    # Three levels of lightness and saturation set classes apart whose hues come close to each other.
    saturation, value = ((230, 255), (160, 230), (255, 190))[class_id // 8 % 3]
    hue = round(180 * (class_id * GOLDEN_RATIO % 1)) % 180
    color = cv2.cvtColor(np.uint8([[[hue, saturation, value]]]), cv2.COLOR_HSV2RGB)[0, 0]
    return tuple(int(channel) for channel in color)


def draw_boxes(image, boxes_xyxy, labels, scores=None, class_ids=None):
    """Returns a copy of the picture with a frame and a tag, "label 97%", around each object.

    image uint8 RGB [H, W, 3]; boxes_xyxy [N, 4] in pixels, cut at the border; labels N texts; scores [N] in
    0..1; class_ids [N] choose the colours (default: by label). Lines and letters grow with the picture, tags
    stay inside it, and boxes with high scores are drawn over those with low ones.
    """
    image = np.array(image, np.uint8, order="C")
    if class_ids is None:
        # Texts get the same colour wherever they stand in the list.
        class_ids = [sum(map(ord, label)) for label in labels]
    height, width = image.shape[:2]
    thickness = max(1, round((height + width) / 700))
    order = range(len(labels)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    for index in order:
        box = np.asarray(boxes_xyxy[index], np.float64)
        if not np.all(np.isfinite(box)):
            continue
        x1, y1, x2, y2 = (int(round(v)) for v in np.clip(box, 0, [width - 1, height - 1] * 2))
        color = class_color(int(class_ids[index]))
        cv2.rectangle(image, (x1, y1), (x2, y2), color, thickness)
        text = labels[index] if scores is None else f"{labels[index]} {100 * float(scores[index]):.0f}%"
        _draw_tag(image, ascii_text(text), x1 - thickness // 2, y1, color)
    return image


def draw_skeletons(image, joints_xy, scores, skeleton, *, threshold=0.2, colors=None):
    """Returns a copy of the picture with the joints and limbs of each person whose score reaches `threshold`.

    image uint8 RGB [H, W, 3]; joints_xy [P, K, 2] in pixels, pixel i from i to i + 1; scores [P, K], or what is
    1 for joints to draw and 0 for others; skeleton: limbs as pairs of joints; colors: K times (r, g, b), default a
    colour of its own for each joint. A limb has the mean of its ends' colours. Lines grow with the picture and, so
    that small persons stay visible, shrink with the person.
    """
    image = np.array(image, np.uint8, order="C")
    if colors is None and len(joints_xy):
        colors = [class_color(joint) for joint in range(len(joints_xy[0]))]
    thickest = max(1, round(sum(image.shape[:2]) / 250))
    for joints, seen in zip(np.asarray(joints_xy, np.float64), np.asarray(scores) >= threshold):
        seen = seen & np.isfinite(joints).all(axis=-1)
        if not seen.any():
            continue
        reach = np.ptp(joints[seen], axis=0).max()
        thickness = int(np.clip(round(reach / 60), 1, thickest))
        # OpenCV counts sixteenths of a pixel from the middle of the first one, in 32 bits.
        points = np.rint((np.clip(joints, -1e5, 1e5, where=seen[:, None], out=np.zeros_like(joints)) - 0.5) * 16)
        points = points.astype(int).tolist()
        for a, b in skeleton:
            if seen[a] and seen[b]:
                color = [(one + other) / 2 for one, other in zip(colors[a], colors[b])]
                cv2.line(image, points[a], points[b], color, thickness, cv2.LINE_AA, 4)
        for joint in np.flatnonzero(seen):
            cv2.circle(image, points[joint], 16 * (thickness + 1), colors[joint], cv2.FILLED, cv2.LINE_AA, 4)
    return image


def _draw_tag(image, text, left, bottom, color):
    """A filled tag with text above (left, bottom), moved inside the picture, smaller if it is too wide."""
    height, width = image.shape[:2]
    scale = max(0.35, (height + width) / 2600)
    (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, 1)
    if text_width + 4 > width:
        scale *= max(width - 4, 1) / text_width
        (text_width, text_height), baseline = cv2.getTextSize(text, FONT, scale, 1)
    stroke = max(1, round(scale * 1.4))
    tag_width, tag_height = text_width + 4, text_height + baseline + 2
    left = max(0, min(left, width - tag_width))
    top = max(0, min(bottom - tag_height, height - tag_height))
    cv2.rectangle(image, (left, top), (left + tag_width - 1, top + tag_height - 1), color, cv2.FILLED)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    cv2.putText(image, text, (left + 2, top + text_height + 1), FONT, scale, ink, stroke, cv2.LINE_AA)


def ascii_text(text):
    """The text in the letters that OpenCV's fonts have: accents dropped, others as "?"."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return plain.encode("ascii", "replace").decode()


def grid(images, columns=None, gap=4, background=255):
    """One picture with all of them in rows of `columns` (default: about square), in cells of the largest.

    images: uint8 RGB [H, W, 3], sizes may differ; smaller ones are centred.
    """
    if not len(images):
        raise ValueError("grid needs at least one picture")
    columns = columns or math.ceil(math.sqrt(len(images)))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell_height = max(image.shape[0] for image in images)
    cell_width = max(image.shape[1] for image in images)
    size = [rows * (cell_height + gap) - gap, columns * (cell_width + gap) - gap, 3]
    canvas = np.full(size, background, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = row * (cell_height + gap) + (cell_height - image.shape[0]) // 2
        left = column * (cell_width + gap) + (cell_width - image.shape[1]) // 2
        canvas[top:top + image.shape[0], left:left + image.shape[1]] = image
    return canvas


def curves(path, lines, *, title="", xlabel="", ylabel="", xlim=None, ylim=None, log_y=False, most_named=24):
    """Writes a PNG with one line per entry of `lines`: {name: (x values, y values)}.

    Values that are not finite leave gaps. With more than `most_named` lines the legend is left out.
    """
    # The object interface of matplotlib: no window system, no global state of pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
    for index, (name, (x, y)) in enumerate(lines.items()):
        color = tuple(0.85 * channel / 255 for channel in class_color(index))
        axes.plot(np.asarray(x, float), np.asarray(y, float), label=name, color=color, linewidth=1.4,
                  marker="." if len(x) == 1 else None)
    axes.grid(alpha=0.3)
    if xlim is not None:
        axes.set_xlim(xlim)
    if ylim is not None:
        axes.set_ylim(ylim)
    if log_y:
        axes.set_yscale("log")
    if 0 < len(lines) <= most_named:
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    canvas.draw()
    write_png(path, np.asarray(canvas.buffer_rgba())[..., :3])


def write_png(path, image):
    """Writes a uint8 picture, RGB [H, W, 3] or gray [H, W], so that the file is either whole or not there.

    Folders are made as needed. Raises UserError if the file cannot be written.
    """
    image = np.ascontiguousarray(image)
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    files.make_folder(pathlib.Path(path).parent)
    files.write_bytes(path, cv2.imencode(".png", image)[1].tobytes())
