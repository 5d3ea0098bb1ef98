"""YOLO v3 against Darknet itself and against OpenCV's reader of its files, on random weights."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from common import boxes
from common.nms import nms
from tests.yolov3 import darknet_oracle
from yolov3 import convert, preprocess
from yolov3.loss import darknet_loss
from yolov3.model import ANCHORS, MODELS, TINY_ANCHORS, decode
from yolov3.postprocess import postprocess

HEIGHT, WIDTH = 96, 128  # not square, so that no axis can be taken for another
NUM_CLASSES = 80
IOU_THRESHOLD = 0.45
NAMES = ("yolov3", "tiny", "spp")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return darknet_oracle.Library(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module", params=NAMES)
def case(request, tmp_path_factory):
    """One network at full width: cfg and weight files, an image, our logits, boxes, scores, detections."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    layers = darknet_oracle.sections(name, NUM_CLASSES)
    (folder / "net.cfg").write_text(darknet_oracle.cfg_text(layers, HEIGHT, WIDTH))
    darknet_oracle.write_weights(folder / "net.weights", layers, seed=1)
    image = np.random.default_rng(2).random([HEIGHT, WIDTH, 3], np.float32)

    model = MODELS[name](NUM_CLASSES)
    convert.load_darknet(model, folder / "net.weights")
    logits = model(image[None])
    anchors = TINY_ANCHORS if name == "tiny" else ANCHORS
    boxes_xyxy, scores = decode(logits, anchors, (HEIGHT, WIDTH))
    threshold = threshold_for(scores.numpy(), 400)
    found = postprocess(logits, anchors, (HEIGHT, WIDTH), score_threshold=threshold,
                        iou_threshold=IOU_THRESHOLD, max_detections=500)
    yield {"model": model, "folder": folder, "image": image, "threshold": threshold,
           "logits": [scale[0].numpy() for scale in logits], "boxes_xyxy": boxes_xyxy[0].numpy(),
           "scores": scores[0].numpy(), "found": {key: value[0].numpy() for key, value in found.items()}}
    (folder / "net.weights").unlink()


def threshold_for(scores, count):
    """A threshold that about `count` scores pass, in the widest gap, so that rounding moves none across."""
    ranked = np.sort(scores, axis=None)[-count - 50:-count + 50]
    gap = np.argmax(np.diff(ranked))
    return float(ranked[gap:gap + 2].mean())


def order_of_darknet(counts):
    """Indices that put our boxes, fine scale first, into Darknet's order, coarse scale first.

    counts: the numbers of boxes of the scales in Darknet's order. Within a scale both go cell by cell.
    """
    scales = np.split(np.arange(sum(counts)), np.cumsum(counts[::-1])[:-1])
    return np.concatenate(scales[::-1])


def detections_of(boxes_xyxy, scores):
    """Rows (class, score, box) of all scores above 0, ordered by class and score."""
    index, label = np.nonzero(scores > 0)
    rows = np.concatenate([label[:, None], scores[index, label][:, None], boxes_xyxy[index]], axis=1)
    return rows[np.lexsort((-rows[:, 1], rows[:, 0]))]


def our_detections(found):
    count = found["num"]
    assert count < len(found["scores"])
    columns = [found["classes"][:, None], found["scores"][:, None], found["boxes"]]
    rows = np.concatenate(columns, axis=1)[:count]
    return rows[np.lexsort((-rows[:, 1], rows[:, 0]))]


@pytest.mark.parametrize("name", NAMES)
def test_sections_are_those_of_the_shipped_cfg(name):
    path = darknet_oracle.CFG / darknet_oracle.FILES[name]
    if not path.is_file():
        pytest.skip(f"Darknet's cfg files are not at {path.parent}: apt-get install darknet")
    shipped = darknet_oracle.parse_cfg(path.read_text())[1:]
    ours = darknet_oracle.parse_cfg(darknet_oracle.cfg_text(darknet_oracle.sections(name), 416, 416))[1:]
    assert len(shipped) == len(ours)
    for (shipped_name, shipped_values), (our_name, our_values) in zip(shipped, ours):
        assert shipped_name == our_name
        for key in ("jitter", "random"):  # augmentation
            shipped_values.pop(key, None)
        assert shipped_values == our_values


def test_forward_and_decoding_equal_opencv(case):
    net = cv2.dnn.readNetFromDarknet(str(case["folder"] / "net.cfg"), str(case["folder"] / "net.weights"))
    net.setInput(np.ascontiguousarray(case["image"].transpose(2, 0, 1)[None]))
    # OpenCV names the layers by their place in the cfg: ours go from small to large strides.
    outputs = np.concatenate(net.forward(sorted(net.getUnconnectedOutLayersNames(), reverse=True,
                                                key=lambda layer: int(layer.split("_")[1]))))
    objectness = np.concatenate([1 / (1 + np.exp(-scale[..., 4].reshape(-1))) for scale in case["logits"]])
    np.testing.assert_allclose(outputs[:, :4], boxes.to_cxcywh(case["boxes_xyxy"]), atol=1e-4)
    np.testing.assert_allclose(outputs[:, 4], objectness, atol=1e-4)
    # OpenCV clears class scores below a threshold.
    kept = outputs[:, 5:] > 0
    assert kept.mean() > 0.3
    np.testing.assert_allclose(outputs[:, 5:][kept], case["scores"][kept], atol=1e-4)

    suppressed = np.zeros_like(outputs[:, 5:])
    corners = boxes.to_xyxy(outputs[:, :4]).numpy()
    for label in range(NUM_CLASSES):
        xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        scores = outputs[:, 5 + label]
        kept = cv2.dnn.NMSBoxes(xywh.tolist(), scores.tolist(), case["threshold"], IOU_THRESHOLD)
        kept = np.array(kept, int)
        suppressed[kept, label] = scores[kept]
    expected, ours = detections_of(corners, suppressed), our_detections(case["found"])
    assert len(expected) > 20
    assert expected.shape == ours.shape
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_forward_and_decoding_equal_libdarknet(case, library):
    network = library.network(case["folder"] / "net.cfg", case["folder"] / "net.weights")
    outputs = network.predict(case["image"])
    for ours, output in zip(case["logits"], outputs):
        height, width, num_anchors, depth = ours.shape
        expected = output.reshape(num_anchors, depth, height, width).transpose(2, 3, 0, 1)
        np.testing.assert_allclose(ours, expected, atol=1e-4)
    # All boxes: absolutely to 1e-4, but for those beyond the picture, which float32 gives to 1e-5 of their
    # size.
    centred, scores = network.detections(HEIGHT, WIDTH, 0.)
    order = order_of_darknet([scale[..., 0].size for scale in case["logits"]][::-1])
    np.testing.assert_allclose(boxes.to_cxcywh(case["boxes_xyxy"][order]), centred, atol=1e-4, rtol=2e-5)
    np.testing.assert_allclose(case["scores"][order], scores, atol=1e-4)
    centred, scores = network.detections(HEIGHT, WIDTH, case["threshold"], IOU_THRESHOLD)
    network.free()
    expected, ours = detections_of(boxes.to_xyxy(centred).numpy(), scores), our_detections(case["found"])
    assert len(expected) > 20
    assert expected.shape == ours.shape
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_weights_there_and_back_are_byte_identical(case):
    model, path = case["model"], case["folder"] / "net.weights"
    convert.save_darknet(model, case["folder"] / "back.weights", convert.read_darknet(path)[0])
    assert (case["folder"] / "back.weights").read_bytes() == path.read_bytes()
    (case["folder"] / "back.weights").unlink()
    assert convert.identify(model.count_params())[0][1] == NUM_CLASSES


def test_libdarknet_reads_our_file_and_writes_it_again(library, tmp_path):
    layers = darknet_oracle.sections("tiny", 3, width=0.25)
    (tmp_path / "net.cfg").write_text(darknet_oracle.cfg_text(layers, HEIGHT, WIDTH))
    model = MODELS["tiny"](3, width=0.25)
    convert.save_darknet(model, tmp_path / "ours.weights", convert.Header(0, 2, 0, 5_000_000_000))
    network = library.network(tmp_path / "net.cfg", tmp_path / "ours.weights")
    network.save(tmp_path / "theirs.weights")
    network.free()
    assert (tmp_path / "theirs.weights").read_bytes() == (tmp_path / "ours.weights").read_bytes()


def test_suppression_equals_libdarknet(library):
    rng = np.random.default_rng(3)
    centred = np.concatenate([rng.uniform(0, 1, [500, 2]), rng.uniform(.05, .4, [500, 2])], axis=1)
    centred = centred.astype(np.float32)
    scores = rng.random([500, 4], np.float32)
    scores[scores < .5] = 0
    expected = detections_of(boxes.to_xyxy(centred).numpy(), library.suppress(centred, scores, IOU_THRESHOLD))
    found = nms(boxes.to_xyxy(centred)[None], scores[None], score_threshold=0., iou_threshold=IOU_THRESHOLD,
                max_detections=1000)
    ours = our_detections({key: value[0].numpy() for key, value in found.items()})
    assert 20 < len(expected) < np.sum(scores > 0) - 100
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("height, width, size", [
    (64, 64, 64), (37, 61, 64), (61, 37, 64), (100, 301, 96), (301, 100, 96), (5, 7, 32), (90, 30, 64),
    (480, 640, 96)])
def test_letterbox_equals_libdarknet(height, width, size, library):
    # White pictures show where the bars are: at exactly the same pixels.
    bars = library.letterbox(np.ones([height, width, 3], np.float32), size) == 0.5
    ours = boxes.letterbox(np.ones([height, width, 3], np.float32), size).numpy() == 0.5
    np.testing.assert_array_equal(ours, bars)

    # Darknet lays the middles of the corner pixels on each other, we lay the corners. With Darknet's rule in
    # our geometry the pixels are equal; with ours they lie at most half a pixel of the coarser picture away.
    columns, rows = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    image = np.stack([columns, rows, (columns + rows) / 2], axis=-1).astype(np.float32)
    expected = library.letterbox(image, size)
    new_height, new_width, top, left = (int(value) for value in boxes.letterbox_geometry(height, width, size))
    aligned = tf.compat.v1.image.resize_bilinear(image[None], [new_height, new_width], align_corners=True)[0]
    np.testing.assert_allclose(expected[top:top + new_height, left:left + new_width], aligned, atol=1e-5)
    # The colours rise from 0 to 1 along each side.
    tolerance = 0.51 / min(height, width, new_height, new_width)
    np.testing.assert_allclose(boxes.letterbox(image, size), expected, atol=tolerance)


def test_boxes_come_back_from_the_letterbox_as_in_libdarknet(library, tmp_path):
    # An even number of pixels in the bars; with an odd one Darknet's own correction is half a pixel off.
    size, height, width = 96, 200, 300
    layers = darknet_oracle.sections("tiny", 2, width=0.25)
    (tmp_path / "net.cfg").write_text(darknet_oracle.cfg_text(layers, size, size))
    network = library.network(tmp_path / "net.cfg")
    logits = network.predict(np.random.default_rng(0).random([size, size, 3], np.float32))
    centred, _ = network.detections(height, width, 0.)
    network.free()
    shaped = [values.reshape(3, 7, side, side).transpose(2, 3, 0, 1)[None]
              for values, side in zip(logits, (6, 3))]
    boxes_xyxy, _ = decode(shaped, TINY_ANCHORS, (size, size))
    ours = boxes.unletterbox_boxes(boxes_xyxy[0], height, width, size).numpy()
    expected = boxes.clip(boxes.to_xyxy(centred) * [width, height, width, height], height, width).numpy()
    np.testing.assert_allclose(ours[order_of_darknet([3 * 3 * 3, 6 * 6 * 3])], expected, atol=1e-2)


def truths_for(predicted_xyxy):
    """Truths of three pictures, rows (centre x, y, width, height, class), from the boxes predicted there.

    First: predictions of every scale, moved a little, so that cells are ignored, of other scales too. Second:
    two objects of different classes in one cell and anchor, twice, and one on the border. Third: none.
    """
    rng = np.random.default_rng(4)
    centred = boxes.to_cxcywh(predicted_xyxy).numpy()
    inside = np.flatnonzero(((predicted_xyxy > .02) & (predicted_xyxy < .98)).all(axis=1))
    chosen = centred[inside[np.linspace(0, len(inside) - 1, 60).astype(int)]]
    chosen += rng.uniform(-.05, .05, chosen.shape) * np.tile(chosen[:, 2:], 2)
    first = np.concatenate([chosen, rng.integers(0, 4, [len(chosen), 1])], axis=1)
    second = [[.5101, .5102, .30, .25, 1], [.5111, .5112, .31, .26, 3], [.2, .2, .03, .05, 0],
              [.2001, .2, .03, .05, 2], [.99, .99, .02, .02, 0], [.7, .3, .9, .8, 2], [.7, .3, .9, .8, 2]]
    return [first.astype(np.float32), np.array(second, np.float32), np.zeros([0, 5], np.float32)]


def test_darknet_loss_gradients(library, tmp_path):
    size, num_classes, batch, strides = 416, 4, 3, (8, 16, 32)
    layers = darknet_oracle.sections("yolov3", num_classes, width=0.1)
    (tmp_path / "net.cfg").write_text(darknet_oracle.cfg_text(layers, size, size, batch))
    network = library.network(tmp_path / "net.cfg")
    rng = np.random.default_rng(0)
    shapes = [[batch, size // stride, size // stride, 3, 5 + num_classes] for stride in strides]
    logits = [rng.normal(0, .7, shape).astype(np.float32) for shape in shapes]
    predicted, _ = decode(logits, ANCHORS, (size, size))
    truths = truths_for(predicted[0].numpy())

    padded = np.zeros([batch, max(map(len, truths)), 4], np.float32)
    grids = []
    for row, truth in zip(padded, truths):
        row[:len(truth)] = boxes.to_xyxy(truth[:, :4])
        grids.append(preprocess.encode_targets(row[:len(truth)], truth[:, 4].astype(int), ANCHORS, strides,
                                               size, num_classes))
    targets = {"boxes_xyxy": padded, "grids": [tf.stack(scale) for scale in zip(*grids)]}
    with tf.GradientTape() as tape:
        variables = [tf.constant(scale) for scale in logits]
        tape.watch(variables)
        loss = tf.add_n([tf.reduce_sum(part) for part in darknet_loss(
            targets, variables, ANCHORS, (size, size), ignore_threshold=.7).values()])
    gradients = tape.gradient(loss, variables)

    ignored = 0
    for index, scale, grid, gradient in zip(network.yolo_layers(), logits, targets["grids"], gradients):
        delta, output, cost = network.train_yolo(index, scale, truths)
        np.testing.assert_allclose(output[..., 4:], tf.sigmoid(scale[..., 4:]), atol=1e-6)
        assert np.sum(grid[..., 4]) > 0
        ignored += np.sum((delta[..., 4] == 0) & (grid[..., 4] == 0))
        np.testing.assert_allclose(gradient, -delta, atol=2e-5)
        assert cost == pytest.approx(float(tf.reduce_sum(tf.square(gradient))), rel=1e-3)
    network.free()
    assert ignored > 20
    # Two objects in one cell and anchor: both classes are wanted there, and the box of the later.
    shared = [np.argwhere(np.sum(grid[1, ..., 5:], axis=-1) == 2) for grid in targets["grids"]]
    assert sum(map(len, shared)) == 2
