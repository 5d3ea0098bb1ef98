"""Times of one picture through CycleGAN's generator (256 x 256, random weights): python -m benchmarks.cyclegan_inference

Keras's predict, the network as predict.py runs it in float32 and bfloat16, PyTorch with the same weights. They take turns
in one process; the table has the smallest and the middle time of each. Needs the extra `bench`.
"""

import numpy as np
import tensorflow as tf

from benchmarks.inference import is_installed, measure, table
from common import cli, runtime
from cyclegan import model as cyclegan_model


def candidates(image_size):
    """{name: function that translates one picture}."""
    images = np.random.default_rng(0).uniform(-1, 1, [1, image_size, image_size, 3]).astype(np.float32)
    found = {}
    for precision, name in (("float32", "ours, float32"), ("mixed_bfloat16", "ours, bfloat16")):
        with runtime.dtype_policy(precision):
            net = cyclegan_model.generator()
        run = tf.function(lambda x, net=net: net(x, training=False), autograph=False)
        if precision == "float32":
            weights = net
            found["Keras predict, float32"] = lambda net=net: net.predict(images, verbose=0)
        found[name] = lambda run=run: run(tf.constant(images)).numpy()
    if is_installed("torch"):
        import torch

        from benchmarks import torch_cyclegan

        theirs = torch_cyclegan.generator().eval()
        torch_cyclegan.copy_weights(theirs, weights)
        theirs = theirs.to(memory_format=torch.channels_last)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)

        def translate(bfloat16):
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                return theirs(x).float().numpy()

        found |= {"PyTorch, float32": lambda: translate(False), "PyTorch, bfloat16": lambda: translate(True)}
    return found


def main(args):
    cli.no_arguments(args)
    print(table(measure(candidates(cli.FLAGS.image_size), cli.FLAGS.rounds), "ours, bfloat16"))


def define_flags():
    cli.flags.DEFINE_integer("image_size", 256, "Side of the picture, a multiple of 4.", lower_bound=8)
    cli.flags.DEFINE_integer("rounds", 10, "Runs of each candidate.", lower_bound=1)


if __name__ == "__main__":
    cli.run(main, define_flags)
