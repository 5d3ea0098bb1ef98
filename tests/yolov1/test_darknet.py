"""Loss and decoding against the [detection] layer of libdarknet, which is YOLO v1's."""

import numpy as np
import pytest
import tensorflow as tf

from common import boxes
from tests.yolov3 import darknet_oracle
from yolov1.loss import yolo_loss
from yolov1.model import decode

SIDE, NUM_BOXES, NUM_CLASSES, BATCH = 7, 3, 20, 2
SHIPPED = darknet_oracle.CFG / "yolov1.cfg"


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """The last layer of Debian's yolov1.cfg alone, on inputs of the caller's."""
    folder = tmp_path_factory.mktemp("darknet")
    library = darknet_oracle.Library(folder)
    last = darknet_oracle.parse_cfg(SHIPPED.read_text())[-1]
    assert last[0] == "detection" and last[1]["sqrt"] == last[1]["rescore"] == "1"
    assert [int(last[1][key]) for key in ("side", "num", "classes")] == [SIDE, NUM_BOXES, NUM_CLASSES]
    text = darknet_oracle.cfg_text([last], SIDE, SIDE, batch=BATCH)
    text = text.replace("channels=3", f"channels={NUM_CLASSES + 5 * NUM_BOXES}")
    (folder / "detection.cfg").write_text(text)
    network = library.network(folder / "detection.cfg")
    yield network
    network.free()


def flat(class_scores, cell_boxes):
    """Darknet's order of the outputs of a picture: all class scores, all confidences, all boxes."""
    batch = len(class_scores)
    parts = class_scores, cell_boxes[..., 4], cell_boxes[..., :4]
    return np.concatenate([np.reshape(part, [batch, -1]) for part in parts], axis=1)


def run(network, data, truth):
    data, truth = (np.ascontiguousarray(array, np.float32) for array in (data, truth))
    pointers = [array.ctypes.data_as(darknet_oracle.FLOATS) for array in (data, truth)]
    network.shim.train_layer(network.handle, 0, *pointers)
    return network._array(network.shim.delta, 0).reshape(data.shape), network.shim.cost(network.handle, 0)


@pytest.fixture(scope="module")
def case():
    """Our targets and predictions, and the same for Darknet: (targets, predictions, data, truth)."""
    rng = np.random.default_rng(7)
    cells = SIDE * SIDE
    targets = np.zeros([BATCH, cells, NUM_CLASSES + 5], np.float32)
    truth = np.zeros([BATCH, cells, 1 + NUM_CLASSES + 4], np.float32)
    for picture, cell in np.argwhere(rng.uniform(size=[BATCH, cells]) < 0.3):
        label = np.eye(NUM_CLASSES)[rng.integers(NUM_CLASSES)]
        offset, size = rng.uniform(size=2), rng.uniform(0.05, 0.6, 2)
        corner = [cell % SIDE, cell // SIDE]
        targets[picture, cell] = [*label, *(offset + corner), *size, 1]
        truth[picture, cell] = [1, *label, *offset, *size]
    predictions = rng.uniform(0.02, 1, [BATCH, cells, NUM_CLASSES + 1 + 5 * NUM_BOXES]).astype(np.float32)
    # Every third cell has boxes too small to meet their truth, for the choice by distance.
    sizes = predictions[:, ::3, NUM_CLASSES + 1:].reshape(BATCH, -1, NUM_BOXES, 5)
    sizes[..., 2:4] *= 0.01
    predictions[:, ::3, NUM_CLASSES + 1:] = sizes.reshape(BATCH, -1, 5 * NUM_BOXES)
    cell_boxes = predictions[..., NUM_CLASSES + 1:].reshape(BATCH, cells, NUM_BOXES, 5).copy()
    cell_boxes[..., 2:4] = np.sqrt(cell_boxes[..., 2:4])                     # sqrt=1: its sizes are roots
    return targets, predictions, flat(predictions[..., :NUM_CLASSES], cell_boxes), truth.reshape(BATCH, -1)


def test_gradients_and_cost(layer, case):
    targets, predictions, data, truth = case
    delta, cost = run(layer, data, truth)

    predictions = tf.constant(predictions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        parts = yolo_loss(targets, predictions, num_boxes=NUM_BOXES)
        loss = tf.add_n([tf.reduce_sum(part) for part in parts.values()])
    gradient = tape.gradient(loss, predictions).numpy()
    assert not gradient[..., NUM_CLASSES].any()                              # the score of none
    ours = gradient[..., NUM_CLASSES + 1:].reshape(BATCH, SIDE * SIDE, NUM_BOXES, 5)
    sizes = predictions.numpy()[..., NUM_CLASSES + 1:].reshape(ours.shape)[..., 2:4]
    ours[..., 2:4] *= 2 * np.sqrt(sizes)                                     # with respect to the root of a size
    ours = flat(gradient[..., :NUM_CLASSES], ours)
    # Darknet's delta is the negative gradient of half the loss. Its overlaps are float32 sums in another order.
    np.testing.assert_allclose(delta, -ours / 2, atol=2e-5)
    assert np.count_nonzero(delta) > 500

    # Its cost is the sum of the squared deltas, in which the weights count twice.
    weights = {"xy": 5.0, "wh": 5.0, "obj": 1.0, "noobj": 0.5, "class": 1.0}
    expected = sum(weights[name] * float(tf.reduce_sum(part)) for name, part in parts.items())
    assert cost == pytest.approx(expected, rel=1e-4)


def test_decoding(layer, case):
    _, predictions, data, truth = case
    run(layer, data, truth)
    theirs, scores = layer.detections(1, 1, 0.0)
    boxes_xyxy, our_scores = decode(predictions[:1], NUM_CLASSES, NUM_BOXES)
    ours = boxes.to_cxcywh(boxes_xyxy[0]).numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    np.testing.assert_allclose(scores, our_scores[0], atol=1e-6)
