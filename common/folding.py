"""A trained model as one graph without variables, for inference: what is served, measured and converted.

Batch normalisation is folded into the convolutions before it, and padding is part of the convolution: TensorFlow
then runs convolution, bias and activation as one oneDNN kernel, in float32 and in bfloat16.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants  # it has no public name

from common.layers import BatchNormalization, Conv2D


class ConstantConv2D(keras.layers.Layer):
    """Convolution and bias with weights that are constants of the graph.

    kernel [kh, kw, in / groups, out]; bias [out]; padding "SAME", "VALID" or pairs of pixels for each axis.
    """

    def __init__(self, kernel, bias, strides, padding, dilations=(1, 1), **kwargs):
        super().__init__(**kwargs)
        self.kernel, self.bias = kernel, bias
        self.strides, self.padding, self.dilations = strides, padding, dilations

    def call(self, x):
        dtype = x.dtype.as_numpy_dtype
        kernel, bias = tf.constant(self.kernel.astype(dtype)), tf.constant(self.bias.astype(dtype))
        x = tf.nn.conv2d(x, kernel, self.strides, self.padding, dilations=self.dilations)
        return tf.nn.bias_add(x, bias)


class Folded(keras.layers.Layer):
    """Stands where a layer was that is now part of a convolution; takes what batch norm takes."""

    def call(self, x, training=False, mask=None):
        return x


class ConstantAffine(keras.layers.Layer):
    """x * scale + offset by channel: a batch normalisation that stands behind no convolution."""

    def __init__(self, scale, offset, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.offset = scale, offset

    def call(self, x, training=False, mask=None):
        dtype = x.dtype.as_numpy_dtype
        return x * tf.constant(self.scale.astype(dtype)) + tf.constant(self.offset.astype(dtype))


def fold_batch_norm(model):
    """A copy of a functional model for inference: batch norm and padding folded into its 2-D convolutions.

    What is folded has constants instead of variables; other layers are copied with their weights. Input,
    output and dtype policies stay; in float32 the outputs agree to rounding. The model must be built with
    channels last.
    """
    users = _users(model)

    def only_user(layer):
        found = users.get(id(layer.output), []) if _used_once(layer) else []
        return found[0] if len(found) == 1 else None

    norm_of, pad_of = {}, {}
    for layer in model.layers:
        user = only_user(layer)
        if _is_linear_conv(layer) and _is_norm(user):
            norm_of[layer.name] = user
        if type(layer) is keras.layers.ZeroPadding2D and _is_linear_conv(user) and user.padding == "valid":
            pad_of[user.name] = layer
    folded = {layer.name for layer in (*norm_of.values(), *pad_of.values())}

    def clone(layer):
        if layer.name in folded:
            return Folded(name=layer.name, dtype=layer.dtype_policy)
        if _is_linear_conv(layer):
            return _constant_conv(layer, norm_of.get(layer.name), pad_of.get(layer.name))
        if _is_norm(layer):
            return ConstantAffine(*_scale_and_offset(layer), name=layer.name, dtype=layer.dtype_policy)
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone)
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return copy


def _users(model):
    """id of each tensor of a model -> the operations that read it; None stands for the model's output."""
    users = {}
    for operation in model.operations:
        with contextlib.suppress(AttributeError):  # an input layer, or one used more than once
            for tensor in keras.tree.flatten(operation.input):
                users.setdefault(id(tensor), []).append(operation)
    for tensor in keras.tree.flatten(model.output):
        users.setdefault(id(tensor), []).append(None)
    return users


def _used_once(layer):
    try:
        return isinstance(layer.output, keras.KerasTensor)
    except AttributeError:
        return False


def _is_linear_conv(layer):
    return type(layer) in (Conv2D, keras.layers.Conv2D) and layer.activation is keras.activations.linear


def _is_norm(layer):
    return isinstance(layer, (BatchNormalization, keras.layers.BatchNormalization))


def _scale_and_offset(norm):
    """float32 [C] each, so that inference of the layer is x * scale + offset."""
    variance, mean = (np.asarray(value, np.float64) for value in (norm.moving_variance, norm.moving_mean))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    scale *= 1.0 if norm.gamma is None else np.asarray(norm.gamma)
    offset = -mean * scale + (0.0 if norm.beta is None else np.asarray(norm.beta))
    return scale.astype(np.float32), offset.astype(np.float32)


def _constant_conv(conv, norm, pad):
    kernel = np.asarray(conv.kernel, np.float32)
    bias = np.asarray(conv.bias, np.float32) if conv.use_bias else np.zeros(kernel.shape[-1], np.float32)
    if norm is not None:
        scale, offset = _scale_and_offset(norm)
        kernel, bias = kernel * scale, bias * scale + offset
    padding = conv.padding.upper()
    if pad is not None:
        padding = [[0, 0], *map(list, pad.padding), [0, 0]]
    return ConstantConv2D(kernel, bias, conv.strides, padding, conv.dilation_rate, name=conv.name,
                          dtype=conv.dtype_policy)


def freeze(model, *specs):
    """The model's inference as a ConcreteFunction without variables, folded first.

    specs: a tf.TensorSpec per input. Call it with tensors; it returns a list of float32 tensors, the model's
    outputs in the order of tf.nest.flatten.
    """
    folded = fold_batch_norm(model)

    @tf.function(input_signature=specs, autograph=False)
    def infer(*inputs):
        outputs = folded(inputs[0] if len(inputs) == 1 else inputs, training=False)
        return [tf.cast(output, tf.float32) for output in tf.nest.flatten(outputs)]

    concrete = infer.get_concrete_function()
    return inlined(concrete) if folded.weights else concrete


def inlined(concrete):
    """The ConcreteFunction with constants for its variables, and without calls of other functions.

    Its outputs are a flat list in the order of tf.nest.flatten.
    """
    return convert_to_constants.convert_variables_to_constants_v2(concrete)
