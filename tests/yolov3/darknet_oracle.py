"""Darknet as a witness: its cfg files, weight files with random values, and its library through ctypes.

Nothing here uses the zoo's own code. `sections` rebuilds the shipped cfg files from a small table, so that
OpenCV can be asked without them; a test compares the two. The library and its header are Debian's `darknet`.

Shape letters: B batch, H W image, h w grid, A anchors per scale, C classes, D detections.
"""

import ctypes
import math
import pathlib
import shutil
import struct
import subprocess

import numpy as np
import pytest

LIBRARY = pathlib.Path("/usr/lib/darknet/libdarknet.so")
HEADER = pathlib.Path("/usr/lib/darknet/include/darknet.h")
CFG = pathlib.Path("/usr/share/darknet/cfg")
FILES = {"yolov3": "yolov3.cfg", "tiny": "yolov3-tiny.cfg", "spp": "yolov3-spp.cfg"}

ANCHORS = "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326"
TINY_ANCHORS = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"


class Cfg(list):
    """Sections (name, {key: value}) of a network in order; the first layer behind [net] has index 0."""

    def __init__(self, num_classes, width):
        super().__init__()
        self.num_classes = num_classes
        self.width = width

    def conv(self, filters, size, stride=1):
        filters = filters if self.width == 1 else max(8, round(filters * self.width / 8) * 8)
        self.append(("convolutional", {"batch_normalize": 1, "filters": filters, "size": size,
                                       "stride": stride, "pad": 1, "activation": "leaky"}))

    def yolo(self, mask, anchors):
        filters = len(mask) * (5 + self.num_classes)
        self.append(("convolutional", {"filters": filters, "size": 1, "stride": 1, "pad": 1,
                                       "activation": "linear"}))
        self.append(("yolo", {"mask": ",".join(map(str, mask)), "anchors": anchors,
                              "classes": self.num_classes, "num": anchors.count(",") // 2 + 1,
                              "ignore_thresh": ".7", "truth_thresh": 1}))

    def maxpool(self, size, stride):
        self.append(("maxpool", {"size": size, "stride": stride}))

    def route(self, *layers):
        self.append(("route", {"layers": ",".join(map(str, layers))}))

    def up(self, filters, skip):
        self.route(-4)
        self.conv(filters, 1)
        self.append(("upsample", {"stride": 2}))
        self.route(-1, skip)


def sections(name, num_classes=80, width=1.0):
    """The layers of yolov3.cfg, yolov3-tiny.cfg or yolov3-spp.cfg, its filters times `width`."""
    cfg = Cfg(num_classes, width)
    if name == "tiny":
        for filters in (16, 32, 64, 128, 256):
            cfg.conv(filters, 3)
            cfg.maxpool(2, 2)
        cfg.conv(512, 3)
        cfg.maxpool(2, 1)
        cfg.conv(1024, 3)
        cfg.conv(256, 1)
        cfg.conv(512, 3)
        cfg.yolo((3, 4, 5), TINY_ANCHORS)
        cfg.up(128, skip=8)
        cfg.conv(256, 3)
        cfg.yolo((0, 1, 2), TINY_ANCHORS)
        return cfg

    cfg.conv(32, 3)
    for filters, num_blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        cfg.conv(filters, 3, 2)
        for _ in range(num_blocks):
            cfg.conv(filters // 2, 1)
            cfg.conv(filters, 3)
            cfg.append(("shortcut", {"from": -3, "activation": "linear"}))
    for filters, mask, skip in ((512, (6, 7, 8), None), (256, (3, 4, 5), 61), (128, (0, 1, 2), 36)):
        if skip:
            cfg.up(filters, skip)
        cfg.conv(filters, 1)
        cfg.conv(2 * filters, 3)
        cfg.conv(filters, 1)
        if name == "spp" and not skip:
            cfg.maxpool(5, 1)
            cfg.route(-2)
            cfg.maxpool(9, 1)
            cfg.route(-4)
            cfg.maxpool(13, 1)
            cfg.route(-1, -3, -5, -6)
            cfg.conv(filters, 1)
        cfg.conv(2 * filters, 3)
        cfg.conv(filters, 1)
        cfg.conv(2 * filters, 3)
        cfg.yolo(mask, ANCHORS)
    return cfg


def cfg_text(layers, height, width, batch=1):
    net = {"batch": batch, "subdivisions": 1, "height": height, "width": width, "channels": 3,
           "max_batches": 100, "learning_rate": .001, "momentum": .9, "decay": .0005}
    return "\n".join(f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in values.items())
                     for name, values in [("net", net), *layers])


def parse_cfg(text):
    """[(section, {key: text without blanks})] of a cfg file."""
    parsed = []
    for line in text.splitlines():
        line = "".join(line.split())
        if line.startswith("["):
            parsed.append((line[1:-1], {}))
        elif line and line[0] not in "#;":
            key, value = line.split("=")
            parsed[-1][1][key] = value
    return parsed


def write_weights(path, layers, seed, seen=32_013_312):
    """A weight file of random values for the layers of `sections`: He-scaled kernels, statistics about 0 and
    1.

    The last convolution of a residual block is scaled down, or the activations would double with every block.
    The heads are scaled so that logits are about 1 and boxes at most some ten times the network input: their
    sizes are exponentials, and float32 sums of 75 layers in another order differ by about 1e-5 of them.
    """
    rng = np.random.default_rng(seed)
    channels = []
    with open(path, "wb") as file:
        file.write(struct.pack("<iiiq", 0, 2, 0, seen))
        for index, (name, values) in enumerate(layers):
            previous = channels[-1] if channels else 3
            if name == "route":
                layers_in = [int(i) for i in str(values["layers"]).split(",")]
                previous = sum(channels[i if i >= 0 else index + i] for i in layers_in)
            if name == "convolutional":
                filters, fan_in = int(values["filters"]), previous * int(values["size"]) ** 2
                if "batch_normalize" in values:
                    gain = .25 if layers[index + 1][0] == "shortcut" else 1
                    before = [rng.normal(0, .1, filters), rng.uniform(.5, 1.3, filters) * gain,
                              rng.normal(0, .2, filters), rng.uniform(.5, 1.5, filters)]
                    scale = math.sqrt(2 / fan_in)
                else:
                    before = [rng.normal(0, .5, filters)]
                    scale = .2 / math.sqrt(fan_in)
                for array in before:
                    file.write(array.astype("<f4").tobytes())
                file.write((rng.standard_normal(filters * fan_in, np.float32) * np.float32(scale)).tobytes())
                previous = filters
            channels.append(previous)


FLOATS = ctypes.POINTER(ctypes.c_float)


class Image(ctypes.Structure):
    _fields_ = [("w", ctypes.c_int), ("h", ctypes.c_int), ("c", ctypes.c_int), ("data", FLOATS)]


class Detection(ctypes.Structure):
    _fields_ = [("box", ctypes.c_float * 4), ("classes", ctypes.c_int), ("prob", FLOATS), ("mask", FLOATS),
                ("objectness", ctypes.c_float), ("sort_class", ctypes.c_int)]


SHIM = r"""
#include "darknet.h"
layer *at(network *net, int i) { return net->layers + i; }
int num_outputs(network *net, int i) { return at(net, i)->outputs * at(net, i)->batch; }
float *output(network *net, int i) { return at(net, i)->output; }
float *delta(network *net, int i) { return at(net, i)->delta; }
float cost(network *net, int i) { return *at(net, i)->cost; }
/* One layer in training, on an input and truths of the caller's. */
void train_layer(network *net, int i, float *input, float *truth)
{
    network state = *net;
    state.input = input;
    state.truth = truth;
    state.train = 1;
    state.index = i;
    at(net, i)->forward(*at(net, i), state);
}
"""


class Library:
    """libdarknet, and a few functions compiled against its header that reach into its structs."""

    def __init__(self, folder):
        if not LIBRARY.is_file() or not HEADER.is_file():
            pytest.skip(f"libdarknet is not at {LIBRARY} with {HEADER}: apt-get install darknet")
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler to reach into libdarknet's structs: apt-get install gcc libc6-dev")
        source, shim = folder / "shim.c", folder / "shim.so"
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-I", HEADER.parent, "-o", shim, source], check=True)
        try:
            self.darknet = ctypes.CDLL(str(LIBRARY))
        except OSError as error:
            pytest.skip(f"libdarknet does not load: {error}")
        self.shim = ctypes.CDLL(str(shim))
        for function in (self.shim.output, self.shim.delta, self.darknet.network_predict):
            function.restype = FLOATS
        self.shim.cost.restype = ctypes.c_float
        self.darknet.parse_network_cfg.restype = ctypes.c_void_p
        self.darknet.letterbox_image.restype = Image
        self.darknet.letterbox_image.argtypes = [Image, ctypes.c_int, ctypes.c_int]
        self.darknet.free_image.argtypes = [Image]
        self.darknet.get_network_boxes.restype = ctypes.POINTER(Detection)
        self.darknet.get_network_boxes.argtypes = [
            ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float, ctypes.c_float, ctypes.c_void_p,
            ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
        self.darknet.do_nms_sort.argtypes = [
            ctypes.POINTER(Detection), ctypes.c_int, ctypes.c_int, ctypes.c_float]
        self.darknet.free_detections.argtypes = [ctypes.POINTER(Detection), ctypes.c_int]

    def letterbox(self, image, size):
        """Darknet's letterbox_image of an image [H, W, 3] in 0..1: [size, size, 3]."""
        data = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        source = Image(image.shape[1], image.shape[0], 3, _pointer(data))
        boxed = self.darknet.letterbox_image(source, size, size)
        result = np.ctypeslib.as_array(boxed.data, [3, size, size]).transpose(1, 2, 0).copy()
        self.darknet.free_image(boxed)
        return result

    def suppress(self, boxes_cxcywh, scores, iou_threshold):
        """Scores [N, C] after Darknet's do_nms_sort: 0 where a box was dropped for a class."""
        num_boxes, num_classes = scores.shape
        rows = (Detection * num_boxes)()
        probs = [np.array(row, np.float32) for row in scores]
        for i, row in enumerate(rows):
            row.box[:] = boxes_cxcywh[i].tolist()
            row.classes, row.prob, row.objectness = num_classes, _pointer(probs[i]), 1
        self.darknet.do_nms_sort(rows, num_boxes, num_classes, iou_threshold)  # reorders rows, not scores
        return np.stack(probs)

    def network(self, cfg_path, weights_path=None):
        return Network(self, cfg_path, weights_path)


class Network:
    """A network of libdarknet; free() gives its memory back."""

    def __init__(self, library, cfg_path, weights_path=None):
        self.darknet, self.shim = library.darknet, library.shim
        self.layers = parse_cfg(pathlib.Path(cfg_path).read_text())[1:]
        self.handle = ctypes.c_void_p(self.darknet.parse_network_cfg(str(cfg_path).encode()))
        if weights_path is not None:
            self.darknet.load_weights(self.handle, str(weights_path).encode())

    def free(self):
        self.darknet.free_network(self.handle)

    def yolo_layers(self):
        """Indices of the yolo layers, small stride first, as the zoo orders its outputs."""
        return [i for i, (name, _) in enumerate(self.layers) if name == "yolo"][::-1]

    def predict(self, image):
        """The logits before each yolo layer, flat [A * (5 + C) * h * w], of an image [H, W, 3] in 0..1."""
        data = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        self.darknet.network_predict(self.handle, _pointer(data))
        return [self._array(self.shim.output, i - 1) for i in self.yolo_layers()]

    def save(self, path):
        self.darknet.save_weights(self.handle, str(path).encode())

    def detections(self, height, width, score_threshold, iou_threshold=None):
        """boxes_cxcywh [D, 4] in fractions of the last image before its letterbox, and scores [D, C]."""
        count = ctypes.c_int(0)
        found = self.darknet.get_network_boxes(self.handle, width, height, score_threshold, .5, None, 1,
                                               ctypes.byref(count))
        num_classes = int(self.layers[-1][1]["classes"])
        if iou_threshold is not None:
            self.darknet.do_nms_sort(found, count.value, num_classes, iou_threshold)
        boxes = np.array([found[i].box[:] for i in range(count.value)], np.float32).reshape(-1, 4)
        scores = np.array([found[i].prob[:num_classes] for i in range(count.value)], np.float32)
        self.darknet.free_detections(found, count.value)
        return boxes, scores.reshape(-1, num_classes)

    def train_yolo(self, index, logits, truths):
        """One yolo layer in training.

        logits [B, h, w, A, 5 + C]; truths: B arrays [N, 5], rows (centre x, centre y, width, height, class).
        Returns (deltas [B, h, w, A, 5 + C], outputs of the same shape, cost).
        """
        batch, height, width, num_anchors, depth = logits.shape
        rows = np.zeros([batch, 90, 5], np.float32)
        for row, boxes in zip(rows, truths):
            row[:len(boxes)] = boxes
        data = np.ascontiguousarray(logits.transpose(0, 3, 4, 1, 2), np.float32)
        self.shim.train_layer(self.handle, index, _pointer(data), _pointer(rows))
        shape = [batch, num_anchors, depth, height, width]
        delta, output = (self._array(function, index).reshape(shape).transpose(0, 3, 4, 1, 2)
                         for function in (self.shim.delta, self.shim.output))
        return delta, output, self.shim.cost(self.handle, index)

    def _array(self, function, index):
        count = self.shim.num_outputs(self.handle, index)
        return np.ctypeslib.as_array(function(self.handle, index), [count]).copy()


def _pointer(array):
    return array.ctypes.data_as(FLOATS)
