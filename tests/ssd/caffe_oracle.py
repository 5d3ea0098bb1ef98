"""SSD as its authors published it in Caffe, for OpenCV's importer: prototxt and .caffemodel, written out here.

The networks are listed from the authors' ssd_pascal.py (SSD300, and what they changed for SSD512), not from
ssd.model. The weight file is written byte by byte, so that OpenCV and ssd.convert read what neither wrote.
"""

import cv2
import numpy as np
import pytest

# (map, its cells, minimum and maximum size in pixels, aspect ratios, step).
PRIORS = {
    300: [("conv4_3_norm", 38, 30, 60, (2,), 8), ("fc7", 19, 60, 111, (2, 3), 16),
          ("conv6_2", 10, 111, 162, (2, 3), 32), ("conv7_2", 5, 162, 213, (2, 3), 64),
          ("conv8_2", 3, 213, 264, (2,), 100), ("conv9_2", 1, 264, 315, (2,), 300)],
    512: [("conv4_3_norm", 64, 35.84, 76.8, (2,), 8), ("fc7", 32, 76.8, 153.6, (2, 3), 16),
          ("conv6_2", 16, 153.6, 230.4, (2, 3), 32), ("conv7_2", 8, 230.4, 307.2, (2, 3), 64),
          ("conv8_2", 4, 307.2, 384.0, (2, 3), 128), ("conv9_2", 2, 384.0, 460.8, (2,), 256),
          ("conv10_2", 1, 460.8, 537.6, (2,), 512)],
}
# (layer, filters, kernel size, padding, stride, dilation) and pools (name, kernel size, padding, stride).
BASE = [("conv1_1", 64, 3, 1, 1, 1), ("conv1_2", 64, 3, 1, 1, 1), ("pool1", 2, 0, 2),
        ("conv2_1", 128, 3, 1, 1, 1), ("conv2_2", 128, 3, 1, 1, 1), ("pool2", 2, 0, 2),
        ("conv3_1", 256, 3, 1, 1, 1), ("conv3_2", 256, 3, 1, 1, 1), ("conv3_3", 256, 3, 1, 1, 1),
        ("pool3", 2, 0, 2),
        ("conv4_1", 512, 3, 1, 1, 1), ("conv4_2", 512, 3, 1, 1, 1), ("conv4_3", 512, 3, 1, 1, 1),
        ("pool4", 2, 0, 2),
        ("conv5_1", 512, 3, 1, 1, 1), ("conv5_2", 512, 3, 1, 1, 1), ("conv5_3", 512, 3, 1, 1, 1),
        ("pool5", 3, 1, 1),
        ("fc6", 1024, 3, 6, 1, 6), ("fc7", 1024, 1, 0, 1, 1),
        ("conv6_1", 256, 1, 0, 1, 1), ("conv6_2", 512, 3, 1, 2, 1),
        ("conv7_1", 128, 1, 0, 1, 1), ("conv7_2", 256, 3, 1, 2, 1)]
TOP = {
    300: [("conv8_1", 128, 1, 0, 1, 1), ("conv8_2", 256, 3, 0, 1, 1),
          ("conv9_1", 128, 1, 0, 1, 1), ("conv9_2", 256, 3, 0, 1, 1)],
    512: [("conv8_1", 128, 1, 0, 1, 1), ("conv8_2", 256, 3, 1, 2, 1),
          ("conv9_1", 128, 1, 0, 1, 1), ("conv9_2", 256, 3, 1, 2, 1),
          ("conv10_1", 128, 1, 0, 1, 1), ("conv10_2", 256, 4, 1, 1, 1)],
}


def require_opencv():
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip(f"OpenCV {cv2.__version__} has no Caffe importer; 4.14 has")


def layer(name, kind, bottoms, parameters="", top=None):
    bottoms = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {bottoms} top: "{top or name}" {parameters} }}\n'


def declare(name, *shape):
    return f'input: "{name}"\ninput_shape {{ {" ".join(f"dim: {size}" for size in shape)} }}\n'


def prior_box(side, source, feature):
    name, _, low, high, ratios, step = source
    ratios = " ".join(f"aspect_ratio: {ratio}" for ratio in ratios)
    return layer(f"{name}_priors", "PriorBox", [feature, "data"],
                 f"prior_box_param {{ min_size: {low} max_size: {high} {ratios} flip: true clip: false "
                 f"variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 step: {step} offset: 0.5 }}")


def detection_output(num_classes, score_threshold=0.01, iou_threshold=0.45, top_k=400, keep_top_k=200):
    return layer("detections", "DetectionOutput", ["loc", "probs", "priors"],
                 f"detection_output_param {{ num_classes: {num_classes + 1} share_location: true "
                 f"background_label_id: 0 nms_param {{ nms_threshold: {iou_threshold} top_k: {top_k} }} "
                 f"code_type: CENTER_SIZE keep_top_k: {keep_top_k} confidence_threshold: {score_threshold} }}")


def concat(name, bottoms, axis):
    return layer(name, "Concat", bottoms, f"concat_param {{ axis: {axis} }}")


def read_net(folder, prototxt, weights=None):
    """OpenCV's network of a prototxt (text) and the bytes of a .caffemodel."""
    require_opencv()
    (folder / "net.prototxt").write_text('name: "net"\n' + prototxt)
    if weights is None:
        return cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"))
    (folder / "net.caffemodel").write_bytes(weights)
    return cv2.dnn.readNetFromCaffe(str(folder / "net.prototxt"), str(folder / "net.caffemodel"))


def priors(folder, side):
    """Corners [A, 4] in fractions of all priors of the network of that side, and their variances [A, 4]."""
    text = declare("data", 1, 3, side, side)
    text += "".join(declare(source[0], 1, 1, source[1], source[1]) for source in PRIORS[side])
    text += "".join(prior_box(side, source, source[0]) for source in PRIORS[side])
    net = read_net(folder, text + concat("priors", [f"{source[0]}_priors" for source in PRIORS[side]], 2))
    net.setInput(np.zeros((1, 3, side, side), np.float32), "data")
    for source in PRIORS[side]:
        net.setInput(np.zeros((1, 1, source[1], source[1]), np.float32), source[0])
    return net.forward("priors")[0].reshape(2, -1, 4)


def convolutions(side, num_classes, width):
    """[(name, filters, kernel size, padding, stride, dilation, input channels)] of the network in order."""
    channels, kept = {"data": 3}, []
    previous = "data"
    for name, *numbers in BASE + TOP[side]:
        if not name.startswith("pool"):
            filters, *rest = numbers
            kept.append((name, int(filters * width), *rest, channels[previous]))
            channels[name] = int(filters * width)
            previous = name
    for name, _, _, _, ratios, _ in PRIORS[side]:
        anchors = 2 + 2 * len(ratios)
        for kind, values in (("loc", 4), ("conf", num_classes + 1)):
            source = channels[name.removesuffix("_norm")]
            kept.append((f"{name}_mbox_{kind}", anchors * values, 3, 1, 1, 1, source))
    return kept


def network(side, num_classes, width=1.0):
    """Prototxt of the network up to its detections, filters times `width`."""
    text, previous = declare("data", 1, 3, side, side), "data"
    by_name = {row[0]: row[1:] for row in convolutions(side, num_classes, width)}

    def convolution(name, bottom):
        filters, size, padding, stride, dilation, _ = by_name[name]
        return layer(name, "Convolution", [bottom],
                     f"convolution_param {{ num_output: {filters} kernel_size: {size} pad: {padding} "
                     f"stride: {stride} dilation: {dilation} }}")

    for name, *numbers in BASE + TOP[side]:
        if name.startswith("pool"):
            size, padding, stride = numbers
            text += layer(name, "Pooling", [previous],
                          f"pooling_param {{ pool: MAX kernel_size: {size} pad: {padding} stride: {stride} }}")
        else:
            text += convolution(name, previous) + layer(f"{name}_relu", "ReLU", [name], top=name)
        previous = name
    text += layer("conv4_3_norm", "Normalize", ["conv4_3"],
                  "norm_param { across_spatial: false channel_shared: false }")
    for source in PRIORS[side]:
        text += prior_box(side, source, source[0])
        for kind in ("loc", "conf"):
            name = f"{source[0]}_mbox_{kind}"
            text += convolution(name, source[0])
            text += layer(f"{name}_perm", "Permute", [name],
                          "permute_param { order: 0 order: 2 order: 3 order: 1 }")
            text += layer(f"{name}_flat", "Flatten", [f"{name}_perm"], "flatten_param { axis: 1 }")
    names = [source[0] for source in PRIORS[side]]
    text += concat("loc", [f"{name}_mbox_loc_flat" for name in names], 1)
    text += concat("conf", [f"{name}_mbox_conf_flat" for name in names], 1)
    text += concat("priors", [f"{name}_priors" for name in names], 2)
    text += layer("conf_rows", "Reshape", ["conf"],
                  f"reshape_param {{ shape {{ dim: 0 dim: -1 dim: {num_classes + 1} }} }}")
    text += layer("softmax", "Softmax", ["conf_rows"], "softmax_param { axis: 2 }")
    text += layer("probs", "Flatten", ["softmax"], "flatten_param { axis: 1 }")
    return text + detection_output(num_classes)


def random_weights(side, num_classes, width, seed=0):
    """{layer: [arrays]} as Caffe has them, of a size that keeps the values of all layers alike."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, filters, size, _, _, _, channels in convolutions(side, num_classes, width):
        deviation = np.sqrt(2 / (size * size * channels))
        kernel = rng.normal(0, deviation, [filters, channels, size, size])
        if name == "conv1_1":
            kernel /= 50  # its input has pictures' values in 0..255
        bias = rng.normal(0, 0.1, [filters])
        weights[name] = [kernel.astype(np.float32), bias.astype(np.float32)]
    scales = rng.uniform(1, 5, [len(weights["conv4_3"][1])])
    return {**weights, "conv4_3_norm": [scales.astype(np.float32)]}


def varint(number):
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes(data) + bytes([number])


def field(number, payload):
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def caffemodel(weights, old=False):
    """Bytes of a NetParameter; old: in the format that Caffe wrote before 2015 (V1LayerParameter, four sizes)."""
    data = field(1, b"net") + field(2 if old else 100, field(4 if old else 1, b"relu"))
    for name, arrays in weights.items():
        content = field(4 if old else 1, name.encode())
        for array in arrays:
            values = field(5, array.astype("<f4").tobytes())
            if old:
                sizes = [1] * (4 - array.ndim) + list(array.shape)
                blob = b"".join(varint(i << 3) + varint(size) for i, size in enumerate(sizes, 1)) + values
            else:
                blob = values + field(7, field(1, b"".join(varint(size) for size in array.shape)))
            content += field(6 if old else 7, blob)
        data += field(2 if old else 100, content)
    return data
