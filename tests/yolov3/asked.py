"""What a command line of train.py asks for, without the training."""

import tensorflow as tf
from absl import flags

from yolov3 import train


def configuration(arguments, monkeypatch, folder, train=train):
    """The config.json with which the train.py of a detector would begin to train with these arguments in `folder`."""
    values = flags.FlagValues()
    with monkeypatch.context() as patch:
        for name in dir(flags):
            if name.startswith("DEFINE_"):
                define = getattr(flags, name)
                patch.setattr(flags, name, lambda *args, define=define, **options: define(
                    *args, flag_values=values, **options))
        train.define_flags()
    values(["train", *arguments])
    asked = {}
    with monkeypatch.context() as patch:
        patch.setattr(train.cli, "FLAGS", values)
        patch.setattr(train, "train", lambda run_folder, config, strategy: asked.update(config) or {})
        patch.setattr(train.training, "make_strategy", tf.distribute.get_strategy)
        patch.chdir(folder)
        train.main([])
    return asked
