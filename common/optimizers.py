"""Adam and SGD on TensorFlow's fused kernels, which read and write every weight once a step; the loss scale of float16.

Keras 3 spells an update as a dozen operations over all weights, which took a fifth of a training step of YOLOv3 on a
processor. The formulas are Keras's but for the decay of SGD, and so are names, slots and checkpoints; tests compare
them step by step.
"""

import keras
import tensorflow as tf


class _FusedDecay:
    """Weight decay inside the update of a variable, where Keras makes a pass of its own for it."""

    def _apply_weight_decay(self, variables):
        pass  # done in update_step

    def _decays(self, variable):
        return self.weight_decay and self._use_weight_decay(variable)


@keras.saving.register_keras_serializable(package="zoo")
class AdamW(_FusedDecay, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` for dense gradients, without amsgrad: each step takes learning_rate * weight_decay of a
    kernel off it, apart from the gradient.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = tf.cast(learning_rate, variable.dtype)
        step = tf.cast(self.iterations + 1, variable.dtype)
        if self._decays(variable):
            variable.assign(variable * (1 - self.weight_decay * learning_rate))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._momentums[index].value.handle, v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, variable.dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, variable.dtype), step),
            lr=learning_rate, beta1=tf.cast(self.beta_1, variable.dtype), beta2=tf.cast(self.beta_2, variable.dtype),
            epsilon=tf.cast(self.epsilon, variable.dtype), grad=tf.cast(gradient, variable.dtype))


@keras.saving.register_keras_serializable(package="zoo")
class SGD(_FusedDecay, keras.optimizers.SGD):
    """`keras.optimizers.SGD` for dense gradients, with momentum, and the weight decay of Darknet, Caffe and PyTorch.

    They add weight_decay * kernel to the gradient, before the momentum (Darknet, convolutional_layer.c,
    update_convolutional_layer), which makes it 1 / (1 - momentum) times as strong as Keras's, whose decay passes the
    momentum by: ten times with 0.9.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        gradient = tf.cast(gradient, variable.dtype)
        if self._decays(variable):
            gradient += self.weight_decay * variable
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle, accum=self.momentums[index].value.handle, lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient, momentum=tf.cast(self.momentum, variable.dtype), use_nesterov=self.nesterov)


@keras.saving.register_keras_serializable(package="zoo")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """`keras.optimizers.LossScaleOptimizer` that passes over a step when a gradient of any replica overflows.

    Keras asks the first replica alone, before the gradients are summed: an overflow on another one would reach the
    weights of all.
    """

    def check_finite(self, grads):
        overflows = tf.cast(tf.logical_not(super().check_finite(grads)), tf.float32)
        context = tf.distribute.get_replica_context()
        return tf.equal(context.all_reduce(tf.distribute.ReduceOp.SUM, overflows), 0.0)


def in_precision(optimizer, precision):
    """`optimizer`, in mixed_float16 with a loss scale around it."""
    return LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer
