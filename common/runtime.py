"""A trained network, ready to run: from a run folder or a bundle, as TensorFlow's graph or under OpenVINO.

A network is here a function from images float32 [B, S, S, 3] in 0..1 to the list of its outputs in the order of
tf.nest.flatten. B batch, S side of the network input.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from common import export, folding, training
from common.errors import UserError

RUNTIMES = ("keras", "openvino")
PRECISIONS = ("float32", "bfloat16")


@contextlib.contextmanager
def dtype_policy(name):
    """Layers made inside have this Keras policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def read_run(folder, which, *, article, keys, build):
    """(model, config) of a run folder of `article`, with the weights of its best or last epoch. Raises UserError.

    keys: what config.json must have. build: function from config to the model with random weights.
    """
    if not folder:
        raise UserError(f"--run must name a run folder, runs/{article}/<name>. Train one: "
                        f"python -m {article}.train --demo")
    config = training.read_config(folder)
    missing = {"article", *keys} - set(config)
    if missing or config["article"] != article:
        raise UserError(f"{folder} must be a run of {article}, and its config.json is of "
                        f"{config.get('article')!r} and lacks {sorted(missing) or 'nothing'}. Give a folder that "
                        f"{article}.train wrote.")
    model = build(config)
    training.load_weights(folder, model, which)
    return model, config


def images_spec(image_size):
    """The tf.TensorSpec of a batch of network inputs of side `image_size`."""
    return tf.TensorSpec([None, image_size, image_size, 3], tf.float32, "images")


def network(model, image_size, runtime="keras"):
    """The network of a Keras model, folded and frozen, as fast as the runtime can.

    openvino takes bfloat16 by itself where the processor has it.
    """
    frozen = folding.freeze(model, images_spec(image_size))
    return frozen if runtime == "keras" else openvino_network(frozen)


def bundle_network(folder, runtime="keras", *, article=None):
    """(network, config) of an exported bundle; its outputs stand in the order of their names.

    Raises UserError where it is of another article than `article`.
    """
    folder = export.resolve_version(folder)
    config = export.read_config(folder)
    if article and config.get("article") != article:
        other = config.get("article")
        raise UserError(f"--bundle must be one that {article}.export wrote, and {folder} is of {other!r}. Give another, "
                        f"or use python -m {other}.predict.")
    signature = tf.saved_model.load(str(folder)).signatures["network"]
    names = sorted(signature.structured_outputs)

    @tf.function(input_signature=[images_spec(config["image_size"])], autograph=False)
    def infer(images):
        found = signature(images=images)
        return [found[name] for name in names]

    concrete = folding.inlined(infer.get_concrete_function())
    return (openvino_network(concrete) if runtime == "openvino" else concrete), config


def openvino_network(concrete):
    """A ConcreteFunction from images to a list of outputs, compiled by OpenVINO.

    Raises UserError where OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise UserError(
            '--runtime openvino needs the package openvino. Install it: pip install -e ".[openvino]"'
        ) from None
    converted = openvino.convert_model(concrete.graph)
    compiled = openvino.compile_model(converted, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    outputs = [compiled.output(tensor.name) for tensor in concrete.outputs]

    def run(images):
        found = compiled(np.asarray(images))
        return [tf.constant(found[output]) for output in outputs]

    return run
