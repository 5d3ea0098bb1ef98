"""Darknet weight files to run folders, and run folders to Darknet weight files.

    python -m yolov3.convert --weights yolov3.weights --labels coco.names --run runs/yolov3/coco
    python -m yolov3.convert --run runs/yolov3/coco --out yolov3.weights        writes yolov3.cfg beside it

A weight file is a header (int32 major, minor, revision; then the number of pictures seen, int64 from version
0.2 on, int32 before) and float32 values, little-endian, in the order of the convolutions in the cfg file. One
with batch normalisation has beta, gamma, moving mean, moving variance, kernel; one without has bias, kernel.
Kernels are [out, in, height, width]. The file names neither its network nor its number of classes: its length
gives them away. It does not name its anchors either: see `darknet_cfg.find_anchors`.
"""

import itertools
import math
import pathlib
import re
import struct
import sys
from typing import NamedTuple

import numpy as np
from absl import flags

from common import class_names, cli, files, run_folder, runtime, transfers
from common.errors import UserError
from yolov3 import darknet_cfg
from yolov3 import model as models

FLAGS = flags.FLAGS

# Values in a file without classes, values per class, at width 1 and three anchors per scale.
SIZES = {"yolov3": (61_570_957, 5_385), "tiny": (8_673_934, 2_310), "spp": (62_621_581, 5_385)}


class Header(NamedTuple):
    """What stands before the values; `seen` counts the pictures that the network was trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    def pack(self):
        return struct.pack(self.layout(), *self)

    def layout(self):
        return "<iiiq" if self.major * 10 + self.minor >= 2 else "<iiii"


def read_darknet(path):
    """(Header, values [n] float32) of a weight file. Raises UserError if it cannot be one."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"A Darknet weight file must be at {path}; there is none.")
    data = path.read_bytes()
    if len(data) < 16:
        raise UserError(f"{path} has {len(data)} bytes; the header alone of a weight file has 16 or 20.")
    header = Header(*struct.unpack("<iii", data[:12]))
    if header.major != 0 or not 0 <= header.minor <= 2:
        raise UserError(f"{path} must be a Darknet weight file of version 0.0 to 0.2; it claims version "
                        f"{header.major}.{header.minor}.{header.revision}. Is it a weight file?")
    size = struct.calcsize(header.layout())
    if len(data) < size or (len(data) - size) % 4:
        raise UserError(f"{path} has {len(data):,} bytes; a Darknet weight file of version 0.{header.minor} "
                        f"has {size} and a multiple of 4. It is cut short or another kind of file.")
    header = Header(*struct.unpack(header.layout(), data[:size]))
    return header, np.frombuffer(data, "<f4", offset=size)


def identify(num_values):
    """[(model, num_classes)] of networks (width 1, three anchors per scale) whose file has so many values."""
    fits = []
    for name, (base, per_class) in SIZES.items():
        num_classes, rest = divmod(num_values - base, per_class)
        if num_classes > 0 and rest == 0:
            fits.append((name, num_classes))
    return fits


def convolutions(model):
    """[(convolution, its batch normalisation or None)] in the order of Darknet's cfg file."""
    layers = {layer.name: layer for layer in model.layers}
    names = sorted(name for name in layers if name.startswith("conv_"))
    return [(layers[name], layers.get(name.replace("conv_", "bn_"))) for name in names]


def num_backbone(model):
    """How many convolutions stand before the first neck: Darknet-53 without its classifier has 52."""
    return 7 if "tiny" in model.name else 52


def load_darknet(model, path, *, backbone_only=False, skip_heads=False):
    """Sets the weights of `model` from a Darknet weight file; returns the file's Header.

    backbone_only: only the convolutions before the first neck. The file may end with any convolution behind
        them (darknet53.conv.74, yolov3-tiny.conv.15), be the ImageNet classifier with this backbone
        (darknet53.weights), or be a whole network with this backbone and any number of classes.
    skip_heads: all but the last convolution of each head, whose shape depends on the classes. The file is of
        the whole network with any number of classes.
    Without either, all weights; the number of classes must be the same.
    Raises UserError, and leaves the model as it was, if the file is of another network, short or too long.
    """
    header, values = read_darknet(path)
    layers = convolutions(model)
    num_classes = model.outputs[0].shape[-1] - 5
    if backbone_only:
        layers = layers[:num_backbone(model)]
        if not _has_backbone(model, len(values)):
            raise UserError(_wrong_size(model, path, header, len(values), layers))
    else:
        file_classes = _fitting_classes(model, len(values))
        if file_classes is None or (not skip_heads and file_classes != num_classes):
            raise UserError(_wrong_size(model, path, header, len(values), layers))
        num_classes = file_classes

    assignments, offset = [], 0
    for convolution, norm in layers:
        arrays = []
        for shape in _shapes(model, convolution, norm, num_classes):
            arrays.append(values[offset:offset + math.prod(shape)].reshape(shape))
            offset += math.prod(shape)
        finite = all(np.isfinite(array).all() for array in arrays)
        if not finite or (norm is not None and arrays[3].min() < 0):
            raise UserError(f"{path} has a value that is not finite, or a variance below 0, at "
                            f"{convolution.name}; it is damaged or of another network than {model.name}.")
        if norm is not None or not skip_heads:
            assignments.append((convolution, norm, arrays))
    for convolution, norm, arrays in assignments:
        _assign(convolution, norm, arrays)
    return header


def save_darknet(model, path, header=Header()):
    """Writes the weights of `model` as a Darknet weight file, whole or not at all."""
    path = pathlib.Path(path)
    files.make_folder(path.parent)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header.pack())
        for convolution, norm in convolutions(model):
            if norm is None:
                before = [convolution.bias]
            else:
                before = [norm.beta, norm.gamma, norm.moving_mean, norm.moving_variance]
            kernel = np.asarray(convolution.kernel).transpose(3, 2, 0, 1)
            for array in (*before, kernel):
                file.write(np.ascontiguousarray(array, "<f4").tobytes())


def load_run(model, folder, *, transfer="all", labels=None):
    """Sets weights of `model` to those of another run.

    transfer: "all", "all_but_classes" (all but the last convolution of each head) or "backbone". labels: of `model`,
    which must mean the run's if its class layers are taken. Raises UserError, and leaves the model as it was, if the
    folder is no run or its network has other shapes.
    """
    source, config = read_run(folder)
    if transfer == "all" and labels is not None:
        class_names.require_same(labels, config["labels"], "The network", str(folder), "Take less of it (--transfer).")
    pairs = list(itertools.zip_longest(convolutions(model), convolutions(source), fillvalue=(None, None)))
    if transfer == "backbone":
        pairs = pairs[:num_backbone(model)]
    elif transfer == "all_but_classes":
        pairs = [(mine, theirs) for mine, theirs in pairs if mine[1] or theirs[1]]
    layers = [both for mine, theirs in pairs for both in zip(mine, theirs) if both != (None, None)]
    transfers.copy_layers(layers, folder)


def build(config):
    """The network of a run's or a bundle's config.json, with random weights."""
    return models.MODELS[config["model"]](len(config["labels"]), len(config["anchors"][0]), config["width"])


def read_run(folder, which="best"):
    """(model, config) of a run folder. Raises UserError.

    Says so where it was converted with anchors that the published weights of its network were not trained with.
    """
    keys = ("model", "width", "image_size", "labels", "anchors")
    model, config = runtime.read_run(folder, which, article="yolov3", keys=keys, build=build)
    before = "darknet" in config and "anchors_from" not in config
    if before and config["model"] == "tiny" and np.array_equal(config["anchors"], models.TINY_ANCHORS):
        print(f"note: {folder} was converted with the anchors {darknet_cfg.text_of(config['anchors'])}; the published "
              "yolov3-tiny.weights have others. If it is of that file, convert it again.", file=sys.stderr)
    return model, config


def from_darknet(weights, labels, name=None, *, width=1.0, anchors=None, cfg=None, image_size=None):
    """(model, config) of a weight file of the whole network, config as in config.json. Raises UserError.

    labels: class names; their number must be the file's. name: a key of `model.MODELS`, by default the
    network of the cfg, or the one that the length of the file fits. anchors: text of the command line, see
    `darknet_cfg.find_anchors`; which were taken is said on stderr. cfg: path of the cfg file, or None; it has the side
    of the network input, too, if image_size does not say it (default 416).
    """
    cfg = darknet_cfg.read(cfg) if cfg else None
    if cfg and name not in (None, cfg.model):
        raise UserError(f"--cfg is of {cfg.model}, and --model {name} came. Leave --model out.")
    if cfg and width not in (1.0, cfg.width):
        raise UserError(f"--cfg is of width {cfg.width:g}, and --width {width:g} came. Leave --width out.")
    if cfg and cfg.num_classes != len(labels):
        raise UserError(f"--cfg has {cfg.num_classes} classes, and {len(labels)} labels came. Give --labels with one "
                        "name per line, in the order of training.")
    name, width = (cfg.model, cfg.width) if cfg else (name, width)
    header, values = read_darknet(weights)
    fits = identify(len(values)) if width == 1 else []
    if name is None:
        if not fits:
            found = len(header.pack()) + 4 * len(values)
            raise UserError(f"{weights} has {found:,} bytes. {_say_fits(len(values))} Say with "
                            "--model what it should be, or give its --cfg.")
        name = fits[0][0]
    asked = None if anchors is None else parse_anchors(anchors, name)
    found, source = darknet_cfg.find_anchors(weights, name, asked=asked, cfg=cfg)
    num_anchors = np.shape(found)[1]
    for fit, num_classes in fits:
        if (fit, num_anchors) == (name, 3) and num_classes != len(labels):
            raise UserError(f"{weights} is {name} with {num_classes} classes; {len(labels)} labels came. "
                            "Give --labels with one name per line, in the order of training.")
    model = models.MODELS[name](len(labels), num_anchors, width)
    header = load_darknet(model, weights)
    print(darknet_cfg.say(weights, found, source), file=sys.stderr)
    return model, {
        "article": "yolov3", "model": name, "width": width, "labels": labels,
        "image_size": image_size or (cfg.image_size if cfg else 416), "anchors": np.asarray(found).tolist(),
        "anchors_from": source, "precision": "float32", "darknet": list(header)}


def anchors_of(weights, name, cfg=None):
    """(anchors [scales, A, 2] that weights for `train --weights` were trained with, where they come from in words).

    weights: another run folder, or a Darknet file, if it is of the network `name` or of its backbone. Raises UserError.
    """
    if pathlib.Path(weights).is_dir():
        config = run_folder.read_config(weights)
        if cfg:
            raise UserError(f"--cfg is of a Darknet file, and {weights} is a run folder, which has its own anchors. "
                            "Leave --cfg out.")
        if config.get("article") != "yolov3":
            raise UserError(f"{weights} must be a run of yolov3, and its config.json is of {config.get('article')!r}.")
        if len(config["anchors"]) != len(models.STRIDES[name]):
            raise UserError(f"{weights} must be a run of --model {name}, to start from it with its anchors, and is one "
                            f"of {config['model']}. Give the same --model, or --transfer backbone.")
        return config["anchors"], f"of {weights}"
    cfg = darknet_cfg.read(cfg) if cfg else None
    if cfg and cfg.model != name:
        raise UserError(f"--cfg is of {cfg.model}, and --model is {name}. Give --model {cfg.model}.")
    _, values = read_darknet(weights)
    fits = identify(len(values))
    if cfg and fits and cfg.width == 1 and cfg.anchors.shape[1] == 3 and (name, cfg.num_classes) not in fits:
        raise UserError(f"--cfg must be that of {weights}, and is of {name} with {cfg.num_classes} classes. "
                        f"{_say_fits(len(values))}")
    anchors, source = darknet_cfg.find_anchors(weights, name, cfg=cfg)
    if len(anchors) != len(models.STRIDES[name]):
        raise UserError(f"{weights} must be of {name}, to start from it with its anchors, and is {source}. "
                        "Give its --model, or --transfer backbone.")
    return anchors, source


def parse_anchors(text, name):
    """Anchors as a cfg file has them, "10,13, 16,30, ...", as [scales, A, 2] float32. Raises UserError."""
    num_scales = len(models.STRIDES[name])
    try:
        numbers = np.array([float(number) for number in re.findall(r"[^,\s]+", text)], np.float32)
    except ValueError:
        numbers = np.zeros([0], np.float32)
    if numbers.size == 0 or numbers.size % (2 * num_scales) or not (np.isfinite(numbers) & (numbers > 0)).all():
        raise UserError("--anchors must be positive widths and heights with commas or blanks between them, "
                        f"the same number for each of the {num_scales} scales of {name}; {text!r} came.")
    anchors = numbers.reshape(num_scales, -1, 2)
    darknet_cfg.require_rising(anchors)
    return anchors


def define_anchor_flags():
    """`--anchors` and `--cfg` of the weight file that `--weights` names."""
    flags.DEFINE_string("anchors", None, 'Anchors that --weights was trained with, "10,13, 16,30, ...", the smallest '
                        "stride first; default: see --cfg.")
    flags.DEFINE_string("cfg", None, "Darknet's cfg file of --weights: network, anchors, side and number of classes. "
                        "Without it, the anchors of the published files, or the network's own.")


def define_flags():
    cli.define_run_flag()
    flags.DEFINE_string("weights", None, "Darknet weight file to read; --run is then the run folder to make.")
    flags.DEFINE_string("out", None, "Darknet weight file to write from --run; its cfg file is written beside it.")
    flags.DEFINE_enum("model", None, list(models.MODELS), "Network; default: what the file's length fits.")
    flags.DEFINE_string("labels", None, "Text file with one class name per line, in the order of training.")
    flags.DEFINE_integer("image_size", None, "Side of the network input, a multiple of 32; default: that of --cfg, or "
                         "416.", lower_bound=32)
    flags.DEFINE_float("width", 1.0, "Multiplies the filters of all layers; needs --model.", lower_bound=0.05)
    define_anchor_flags()
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch (--out).")


def main(args):
    cli.no_arguments(args)
    if not FLAGS.run or bool(FLAGS.weights) == bool(FLAGS.out):
        raise UserError("Give --run and either --weights (a Darknet file to read) or --out (one to write).")
    if FLAGS.out:
        given = [name for name in ("model", "labels", "image_size", "width", "anchors", "cfg")
                 if not FLAGS[name].using_default_value]
        if given:
            raise UserError(f"--out writes the weights of a run, which says everything else; leave --{given[0]} out.")
        model, config = read_run(FLAGS.run, FLAGS.which)
        header = Header(*config["darknet"]) if "darknet" in config else Header()
        save_darknet(model, FLAGS.out, header)
        cfg = pathlib.Path(FLAGS.out).with_suffix(".cfg")
        num_classes = len(config["labels"])
        files.write_text(cfg, darknet_cfg.text(model, config["anchors"], config["image_size"], num_classes))
        print(f"{FLAGS.out} and {cfg}: {config['model']} with {num_classes} classes")
        return

    if FLAGS.image_size and FLAGS.image_size % 32:
        raise UserError(f"--image_size must be a multiple of 32; {FLAGS.image_size} came.")
    if not FLAGS.labels:
        raise UserError("--weights needs --labels, a text file with one class name per line.")
    labels = transfers.read_labels(FLAGS.labels)
    model, config = from_darknet(FLAGS.weights, labels, FLAGS.model, width=FLAGS.width, anchors=FLAGS.anchors,
                                 cfg=FLAGS.cfg, image_size=FLAGS.image_size)
    transfers.write_run(FLAGS.run, model, config)
    print(f"{FLAGS.run}: {config['model']} with {len(labels)} classes")
    print(f"next: python -m yolov3.predict --run {FLAGS.run} photo.jpg")


def _shapes(model, convolution, norm, num_classes):
    """Shapes of the arrays of one convolution in the file, whose network has `num_classes`."""
    height, width, channels, filters = convolution.kernel.shape
    if norm is not None:
        return [(filters,)] * 4 + [(filters, channels, height, width)]
    filters = _num_anchors(model) * (5 + num_classes)
    return [(filters,), (filters, channels, height, width)]


def _num_anchors(model):
    return model.outputs[0].shape[-2]


def _num_values(model, layers):
    """Values that a file of these convolutions has, with the model's own number of classes."""
    num_classes = model.outputs[0].shape[-1] - 5
    return sum(math.prod(shape) for layer in layers for shape in _shapes(model, *layer, num_classes))


def _fitting_classes(model, num_values):
    """The number of classes with which the model's file has so many values, or None."""
    layers, num_classes = convolutions(model), model.outputs[0].shape[-1] - 5
    heads = [convolution for convolution, norm in layers if norm is None]
    per_class = sum(_num_anchors(model) * (head.kernel.shape[2] + 1) for head in heads)
    more_classes, rest = divmod(num_values - _num_values(model, layers), per_class)
    return num_classes + more_classes if rest == 0 and num_classes + more_classes > 0 else None


def _has_backbone(model, num_values):
    """Whether a file with so many values starts with the model's backbone, as far as its length tells."""
    layers, backbone = convolutions(model), num_backbone(model)
    sizes = np.cumsum([_num_values(model, [layer]) for layer in layers])
    features = layers[backbone - 1][0].filters
    classifier = sizes[backbone - 1] + 1000 * (features + 1)
    # identify knows networks of full width, whose backbones have 1024 features.
    names = [name for name, _ in identify(num_values)] if features == 1024 else []
    relative = any((name == "tiny") == (backbone == 7) for name in names)
    return (num_values in sizes[backbone - 1:] or num_values == classifier
            or _fitting_classes(model, num_values) is not None or relative)


def _assign(convolution, norm, arrays):
    *before, kernel = arrays
    convolution.kernel.assign(kernel.transpose(2, 3, 1, 0))
    if norm is None:
        convolution.bias.assign(before[0])
    else:
        for variable, array in zip((norm.beta, norm.gamma, norm.moving_mean, norm.moving_variance), before):
            variable.assign(array)


def _wrong_size(model, path, header, num_values, layers):
    found = len(header.pack()) + 4 * num_values
    expected = len(header.pack()) + 4 * _num_values(model, layers)
    network = f"{model.name} with {model.outputs[0].shape[-1] - 5} classes"
    if len(layers) < len(convolutions(model)):
        network = f"the backbone of {model.name}"
    difference = f"{abs(found - expected):,} too {'few' if found < expected else 'many'}"
    return f"{path} has {found:,} bytes; {network} has {expected:,} ({difference}). {_say_fits(num_values)}"


def _say_fits(num_values):
    fits = " or ".join(f"{name} with {num_classes} classes" for name, num_classes in identify(num_values))
    if fits:
        return f"It is as long as {fits}."
    return (f"It fits none of {', '.join(SIZES)} with any number of classes: it is cut short, or of another "
            "network.")


if __name__ == "__main__":
    cli.run(main, define_flags)
