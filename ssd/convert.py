"""Weights from elsewhere: Keras's VGG-16 for ImageNet, the networks that SSD's authors published, other runs.

    python -m ssd.convert --weights VGG_VOC0712_SSD_300x300.caffemodel --labels voc.names --run runs/ssd/voc0712

A .caffemodel is a protocol buffer, NetParameter of caffe.proto: layers by name, each with its arrays (blobs). A
convolution has kernel [out, in, height, width] and bias, Normalize has its scales. The authors' networks count the
extra layers from conv6 on, the article from conv8 on, and take pictures in BGR.
"""

import math
import os
import pathlib
import sys

import keras
import numpy as np
from absl import flags
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from common import cli, detection_sources, run_folder, runtime, transfers
from common.errors import UserError
from ssd import model as models

FLAGS = flags.FLAGS

VGG16_FILE = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
VGG16_HOST = "https://storage.googleapis.com/"
VGG16_MEAN = (123.68, 116.779, 103.939)  # RGB, what keras.applications.vgg16.preprocess_input subtracts
_BLOCKS = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))  # (block, its convolutions) of VGG-16


def load_imagenet(model):
    """Sets the layers up to fc7 from Keras's VGG-16 for ImageNet, downloaded (553 MB) if it is not there.

    Raises UserError: the network does not begin with a VGG-16 of full width without batch normalisation, or the
    weights cannot be had.
    """
    _require_vgg16(model)
    path = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / VGG16_FILE
    advice = (f"Download {VGG16_HOST}tensorflow/keras-applications/vgg16/{VGG16_FILE} elsewhere and put it "
              "there, or train without --weights and with --batch_norm.")
    if not path.exists() and not detection_sources.reachable(VGG16_HOST):
        raise UserError(f"--weights imagenet needs {path}, and {VGG16_HOST} cannot be reached. {advice}")
    try:
        vgg16 = keras.applications.VGG16(weights="imagenet")
    except Exception as error:  # whatever the network, the server or the disk did
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--weights imagenet could not be had ({words}). {advice}") from error
    load_vgg16(model, vgg16)


def load_vgg16(model, vgg16):
    """Sets the layers up to fc7 from a VGG-16 as `keras.applications.VGG16` makes it, with its last layers.

    fc6 and fc7 are decimated (article, "Base Network and Extensions"): of the 7x7 filters every third row and
    column, of the filters every fourth. Raises UserError if the network has no such layers.
    """
    _require_vgg16(model, vgg16.get_layer("block1_conv1").filters)
    for block, count in _BLOCKS:
        for number in range(1, count + 1):
            weights = vgg16.get_layer(f"block{block}_conv{number}").get_weights()
            if (block, number) == (1, 1):
                weights = _take_rgb(*weights)
            model.get_layer(f"conv{block}_{number}").set_weights(weights)
    kernel, bias = vgg16.get_layer("fc1").get_weights()
    kernel = kernel.reshape(7, 7, -1, len(bias))  # Keras flattens rows first, channels last
    model.get_layer("fc6").set_weights([kernel[::3, ::3, :, ::4], bias[::4]])
    kernel, bias = vgg16.get_layer("fc2").get_weights()
    model.get_layer("fc7").set_weights([kernel[np.newaxis, np.newaxis, ::4, ::4], bias[::4]])


def load_caffe(model, path, *, transfer="all"):
    """Sets weights of `model` from a .caffemodel of SSD300 or SSD512; its backbone also from the decimated VGG-16.

    transfer: "all", "all_but_classes" or "backbone", see `load_run`. Of vgg512 only the variant caffe has the
    shapes of the file; of vgg300 only that variant computes what Caffe computes. Raises UserError, and leaves the
    model as it was, if the file is of another network or damaged.
    """
    blobs = read_caffe(path)
    assignments = []
    for layer in _transferred(model, transfer):
        name = caffe_name(layer.name)
        arrays = blobs.get(name)
        if arrays is None:
            raise UserError(f"{path} has no weights for {layer.name} ({name} in Caffe); it has "
                            f"{', '.join(list(blobs)[:4])} ... {', '.join(list(blobs)[-2:])}. Take less of it "
                            "(--transfer), or give the --model it is of.")
        arrays = [array.transpose(2, 3, 1, 0) if array.ndim == 4 else array for array in arrays]
        shapes = [tuple(array.shape) for array in arrays]
        expected = [tuple(weight.shape) for weight in layer.weights]
        if shapes != expected:
            raise UserError(f"{path} has {shapes} for {layer.name} ({name} in Caffe), where {model.name} has "
                            f"{expected}. Take less of it (--transfer), or give the --model, --variant and "
                            "classes it is of, without --batch_norm.")
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError(f"{path} has a value that is not finite at {name}; it is damaged.")
        if name == "conv1_1":
            arrays = [arrays[0][:, :, ::-1], arrays[1]]
        assignments.append((layer, arrays))
    for layer, arrays in assignments:
        layer.set_weights(arrays)


def caffe_name(name):
    """What the layer `name` of `model.vgg300` or `vgg512` is called in the authors' networks."""
    kind, _, rest = name.partition("_")
    if kind in ("classes", "boxes"):
        source = ("conv4_3_norm", "fc7")[int(rest)] if int(rest) < 2 else f"conv{int(rest) + 4}_2"
        return f"{source}_mbox_{'conf' if kind == 'classes' else 'loc'}"
    if name == "conv4_norm":
        return "conv4_3_norm"
    number = int(kind.removeprefix("conv")) if kind.startswith("conv") else 0
    return f"conv{number - 2}_{rest}" if number >= 8 else name


def read_caffe(path):
    """{layer: [arrays float32]} of a .caffemodel, of the layers that have any, in its order. Raises UserError."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"A .caffemodel must be at {path}; there is none.")
    net = _net_parameter()()
    try:
        net.ParseFromString(path.read_bytes())
    except message.DecodeError as error:
        raise UserError(f"{path} must be a .caffemodel, and cannot be read as one. It is cut short or another "
                        "kind of file.") from error
    blobs = {layer.name.decode(errors="replace"): [_array(path, layer, blob) for blob in layer.blobs]
             for layer in (*net.layer, *net.layers) if layer.blobs}
    if not blobs:
        raise UserError(f"{path} must be a .caffemodel, and has no layer with weights. Is it the prototxt?")
    return blobs


def load_run(model, folder, *, transfer="all"):
    """Sets weights of `model` to those of another run.

    transfer: "all", "all_but_classes" (all but the predictors of the classes) or "backbone" (up to fc7). Raises
    UserError, and leaves the model as it was, if the folder is no run or its network has other shapes.
    """
    source, _ = read_run(folder)
    mine, theirs = ({layer.name: layer for layer in _transferred(network, transfer)}
                    for network in (model, source))
    names = dict.fromkeys([*mine, *theirs])
    transfers.copy_layers([(mine.get(name), theirs.get(name)) for name in names], folder)


def build(config):
    """The network of a run's or a bundle's config.json, with random weights."""
    return models.MODELS[config["model"]](len(config["labels"]), config["variant"], config["width"],
                                          config["batch_norm"])


def read_run(folder, which="best"):
    """(model, config) of a run folder. Raises UserError."""
    keys = ("model", "variant", "width", "batch_norm", "image_size", "labels")
    return runtime.read_run(folder, which, article="ssd", keys=keys, build=build)


def variant_for(weights, asked=None):
    """The variant of the network that the weights were trained in, for a network that starts from them.

    weights: as `train --weights` takes them. asked: the variant of the command line, which is kept, with a line where
    the other would compute what the weights were trained for. "article" where neither says any. Raises UserError.
    """
    path, own = pathlib.Path(weights), None
    if path.is_dir():
        own = run_folder.read_config(path).get("variant")
    elif weights != "imagenet" and caffe_name("classes_0") in read_caffe(path):
        own = "caffe"
    if own and asked and own != asked:
        print(f"note: {weights} was trained as --variant {own}; as {asked} the network pads otherwise and computes "
              "something else from the same weights.", file=sys.stderr)
    elif own and not asked:
        print(f"--variant {own}, as {weights} was trained.", file=sys.stderr)
    return asked or own or "article"


def backbone(model):
    """The layers with weights that come from VGG-16: up to fc7, with their batch normalisation."""
    layers = [layer for layer in model.layers if layer.weights]
    last = [layer.name.removesuffix("_bn") for layer in layers[::-1]].index("fc7")
    return layers[:len(layers) - last]


def from_caffe(path, labels):
    """(model, name) of a .caffemodel of SSD300 or SSD512, in the variant caffe. Raises UserError."""
    blobs = read_caffe(path)
    name = "vgg512" if "conv10_2" in blobs else "vgg300"
    predictor = blobs.get(caffe_name("classes_0"))
    num_classes = len(predictor[-1]) // 4 - 1 if predictor else 0
    if num_classes < 1:
        raise UserError(f"{path} must be an SSD300 or SSD512 with its predictors, and has no "
                        f"{caffe_name('classes_0')}. As a start for training: python -m ssd.train --weights "
                        f"{path} --transfer backbone")
    if num_classes != len(labels):
        raise UserError(f"{path} is {name} with {num_classes} classes; {len(labels)} labels came. Give --labels "
                        "with one name per line, in the order of training, without the background.")
    model = models.MODELS[name](num_classes, "caffe")
    load_caffe(model, path)
    return model, name


def define_flags():
    cli.define_run_flag()
    flags.DEFINE_string("weights", None, ".caffemodel to read; --run is the run folder to make.")
    flags.DEFINE_string("labels", None, "Text file with one class name per line, in the order of training, "
                        "without the background.")


def main(args):
    cli.no_arguments(args)
    if not FLAGS.run or not FLAGS.weights or not FLAGS.labels:
        raise UserError("Give --weights (a .caffemodel), --labels (a text file with one class name per line) and "
                        "--run (the run folder to make).")
    labels = transfers.read_labels(FLAGS.labels)
    model, name = from_caffe(FLAGS.weights, labels)
    transfers.write_run(FLAGS.run, model, {
        "article": "ssd", "model": name, "variant": "caffe", "width": 1.0, "batch_norm": False,
        "image_size": models.IMAGE_SIZE[name], "labels": labels, "precision": "float32"})
    print(f"{FLAGS.run}: {name} with {len(labels)} classes")
    print(f"next: python -m ssd.predict --run {FLAGS.run} photo.jpg")


def _require_vgg16(model, filters=64):
    """Raises UserError unless the model begins with a VGG-16 whose first convolution has so many filters."""
    names = {layer.name for layer in model.layers}
    if "conv5_3" not in names or "conv1_1_bn" in names or model.get_layer("conv1_1").filters != filters:
        raise UserError("The weights of VGG-16 fit vgg300 and vgg512 with --width 1 and without --batch_norm, not "
                        f"this {model.name}. Choose another --model, or train without --weights.")


def _take_rgb(kernel, bias):
    """conv1_1 for RGB minus `model.MEAN`, from one for BGR minus VGG16_MEAN; exact but for the padded border."""
    kernel = kernel[:, :, ::-1]
    shift = np.subtract(models.MEAN, VGG16_MEAN)
    return kernel, bias + np.einsum("hwio,i->o", kernel, shift).astype(np.float32)


def _transferred(model, transfer):
    """The layers with weights that `transfer` names."""
    if transfer == "backbone":
        return backbone(model)
    leave = "classes_" if transfer == "all_but_classes" else " "
    return [layer for layer in model.layers if layer.weights and not layer.name.startswith(leave)]


def _array(path, layer, blob):
    """A blob as a float32 array; one of the old format has four sizes, of which leading ones may be 1."""
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    if not blob.HasField("shape") and shape[:3] == [1, 1, 1]:
        shape = shape[3:]
    if any(size < 0 for size in shape) or 4 * math.prod(shape) != len(blob.data):
        raise UserError(f"{path} has {len(blob.data):,} bytes at {layer.name.decode(errors='replace')} where its "
                        f"shape {shape} needs {4 * math.prod(shape):,}. It is damaged.")
    return np.frombuffer(blob.data, "<f4").reshape(shape)


def _net_parameter():
    """The message class of caffe.proto's NetParameter, as far as weights go; before 2015 it had `layers`."""
    fields = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    messages = {
        "Shape": [("dim", 1, "INT64", True)],
        # The floats are packed, which on the wire is one run of bytes.
        "Blob": [("num", 1, "INT32", False), ("channels", 2, "INT32", False), ("height", 3, "INT32", False),
                 ("width", 4, "INT32", False), ("data", 5, "BYTES", False), ("shape", 7, "Shape", False)],
        "Layer": [("name", 1, "BYTES", False), ("blobs", 7, "Blob", True)],
        "OldLayer": [("name", 4, "BYTES", False), ("blobs", 6, "Blob", True)],
        "Net": [("layers", 2, "OldLayer", True), ("layer", 100, "Layer", True)],
    }
    for message_name, members in messages.items():
        descriptor = file.message_type.add(name=message_name)
        for name, number, kind, repeated in members:
            field = descriptor.field.add(name=name, number=number)
            field.label = fields.LABEL_REPEATED if repeated else fields.LABEL_OPTIONAL
            if kind in messages:
                field.type, field.type_name = fields.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(fields, f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Net"))


if __name__ == "__main__":
    cli.run(main, define_flags)
