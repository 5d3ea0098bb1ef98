"""The command line that every article shares: the same flags, the same words, one line for a user's mistake.

An article's train.py, evaluate.py, ... end with

    if __name__ == "__main__":
        cli.run(main, define_flags)

Flags are defined when a file is run, not when it is imported, so that files can import each other.
"""

import atexit
import contextlib
import math
import os
import sys

from absl import app, flags
from absl import logging as absl_logging
import tensorflow as tf

from common import errors, records
from common.errors import UserError

FLAGS = flags.FLAGS
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def run(main, define_flags):
    """Defines the flags, parses the command line, calls `main(args)`, args without the program's name, and ends the
    process.

    A `UserError`, and a damaged record, become one line on stderr and exit code 2; Ctrl-C becomes exit code 130, any
    other error a traceback and 1.
    """
    before = set(FLAGS)
    define_flags()
    for name in set(FLAGS) - before:
        # --help shows the flags of the file that was run; those that it shares are its own, too.
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])

    def guarded(argv):
        absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            require_finite(FLAGS)
            main(argv[1:])
        except UserError as error:
            return refuse(error)
        except tf.errors.OpError as error:
            damage = errors.original(error) or records.damage(error)
            if damage is None:
                raise
            return refuse(damage)
        except KeyboardInterrupt:
            return 130

    try:
        app.run(guarded)
    except SystemExit as end:
        leave(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        leave(1)


def require_finite(values):
    """Refuses nan and inf, which no bound of a flag keeps out: nan is below nothing, and no JSON can hold them."""
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number; {value} came.")


def refuse(error):
    """Prints the line of an error; the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def leave(code):
    """Ends the process with the exit code of a SystemExit: what was registered for the end runs, output is written.

    Python does not take itself down: threads of tf.data that are in a Python function, or come into one, would hang or
    abort the process then. It ends its own forked processes the same way.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
    try:
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more; closed
                stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def define_training_flags(article, *, batch_size, epochs, learning_rate, unit="Images"):
    """The flags that every train.py has, with the article's own defaults."""
    flags.DEFINE_string("tfrecords", None, "Record set: a name under tfrecords/ or a path to a folder of records.")
    flags.DEFINE_alias("dataset", "tfrecords")
    flags.DEFINE_bool("demo", False, "Train a small configuration on made-up data for about three minutes.")
    flags.DEFINE_string("run", None, f"Run folder; default runs/{article}/<name of the record set>.")
    flags.DEFINE_integer("batch_size", batch_size, f"{unit} per step over all replicas.", lower_bound=1)
    flags.DEFINE_integer("epochs", epochs, "Passes over the training records.", lower_bound=1)
    flags.DEFINE_float("learning_rate", learning_rate, "Learning rate after the warm-up.", lower_bound=0.0)
    flags.DEFINE_enum("precision", "float32", PRECISIONS, "Arithmetic of the network; variables stay float32.")
    flags.DEFINE_integer("seed", 0, "Seed of the weights, the order of the data and the augmentation.", lower_bound=0,
                         upper_bound=2**32 - 1)
    flags.DEFINE_integer("limit", 0, "Train on the first N examples and validate on the same; 0 takes all.",
                         lower_bound=0)
    flags.DEFINE_integer("eval_every", 1, "Validate every N epochs, and after the last.", lower_bound=1)
    flags.DEFINE_integer("checkpoint_every", 1000, "Checkpoint every N steps, and after every epoch.", lower_bound=1)


def define_run_flag():
    """`--run`, the only thing that evaluate, predict and export need."""
    flags.DEFINE_string("run", None, "Run folder written by train.py.")


def no_arguments(args):
    """Refuses words that are not flags: a forgotten -- must not be ignored."""
    if args:
        raise UserError(f"This command takes flags only; it came with {' '.join(args)!r}. See --help.")
