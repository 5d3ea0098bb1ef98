"""Weights from elsewhere: of another run's layers, and run folders of networks that were not trained here."""

import pathlib

from common import checkpoints, files, run_folder
from common.errors import UserError


def copy_layers(pairs, folder):
    """Sets the weights of layers to those of another run's layers: all of them, or none and a UserError.

    pairs: [(layer here, layer of the run `folder`)], None where one side lacks the layer.
    """
    for mine, theirs in pairs:
        shapes, other_shapes = ([tuple(weight.shape) for weight in layer.weights] if layer else "no layer"
                                for layer in (mine, theirs))
        if shapes != other_shapes:
            raise UserError(f"{folder} must be a run of the same network, but {(mine or theirs).name} has "
                            f"{shapes} here and {other_shapes} there. Take less of it (--transfer), or give "
                            "the same --model, --width and classes.")
    for mine, theirs in pairs:
        mine.set_weights(theirs.get_weights())


def read_labels(path):
    """Class names of a text file, one per line; empty lines at the end do not count. Raises UserError."""
    must = "--labels must be a text file with one class name per line"
    try:
        names = [name.strip() for name in pathlib.Path(path).read_text("utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{must}, but {path} cannot be read ({files.reason(error)}).") from error
    if not names or not all(names):
        raise UserError(f"{must}, but {path} has an empty line or no line.")
    return names


def write_run(folder, model, config):
    """Makes a new run folder of a model that was not trained here. Raises UserError where one is already."""
    if (pathlib.Path(folder) / "config.json").exists():
        raise UserError(f"{folder} holds a run already. Choose another --run.")
    run = run_folder.open_run(folder, config)
    checkpoints.write_best(run.folder / "checkpoints" / "best.weights.h5", model, {"value": 0.0, "step": 0})
