"""Checkpoints that survive kill -9, damaged files and full disks, and weights for evaluation.

A variable is stored under the group it is given in and its Keras path, such as `model/conv_000/kernel`, so
that a checkpoint of another model is refused with the layer's name and both shapes. Layers that hold
variables must therefore have names of their own.
"""

import contextlib
import json
import pathlib
import re
import shutil
import sys
import tempfile

import h5py
import keras
import tensorflow as tf

from common import files
from common.errors import UserError

_TABLE = "zoo"  # the dataset of best.weights.h5 that holds value, step, names and shapes


class Checkpoints:
    """The newest `keep` checkpoints `ckpt-<step>` of a folder.

    items: {group: Keras model, Keras optimizer, variable, or list of variables}. All variables must exist:
    build the optimizers first. older: {group: function from an array that an older version stored in another shape to
    what is kept today}. In a cluster every process must call `save` and `restore`; only the chief's
    files are kept, and the folder must be shared.
    Raises `UserError` when the disk has no room for two more checkpoints.
    """

    def __init__(self, folder, items, keep=3, older=None):
        self.folder = pathlib.Path(folder)
        self.keep = keep
        self._older = older or {}
        self._named = {group: named_variables(item) for group, item in items.items()}
        self._variables = {f"{group}/{name}": variable
                           for group, variables in self._named.items() for name, variable in variables.items()}
        self._checkpoint = self._tracked()
        self._damaged = []
        self._saved = None
        if files.is_chief():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            files.require_space(self.folder, 2 * sum(_bytes(value) for value in self._variables.values()))

    def save(self, step):
        """Writes `ckpt-<step>` and removes the oldest; does nothing when this step is saved already.

        step: Python int. Raises `UserError`, and keeps what was saved before, when a variable is not
        finite or the disk is full.
        """
        if step == self._saved:
            return
        self._require_finite(step)
        if not files.is_chief():
            with tempfile.TemporaryDirectory() as scratch:
                self._checkpoint.write(f"{scratch}/ckpt-{step}")
            self._saved = step
            return
        prefix = self.folder / f"ckpt-{step}"
        try:
            self._checkpoint.write(str(prefix))
            for path in _files_of(prefix):
                files.flush(path)
            files.flush(self.folder)
        except (OSError, tf.errors.OpError) as error:
            for path in _files_of(prefix):
                path.unlink(missing_ok=True)
            self._remove_leftovers()
            raise UserError(f"Checkpoint {prefix} cannot be written ({files.reason(error)}). {self._kept()}"
                            "Free some space and run the same again.") from error
        self._saved = step
        self._remove_old(step)

    def restore(self):
        """Loads the newest checkpoint that is whole; returns its step, 0 when the folder holds none.

        A damaged one is named in a warning on stderr and the one before it is loaded. Raises `UserError` when
        checkpoints are there but none can be read, and when a checkpoint is of another model: it names the
        variable and both shapes.
        """
        steps = _steps(self.folder)
        self._damaged = []
        for step in steps:
            prefix = self.folder / f"ckpt-{step}"
            try:
                shapes, read = _open(prefix)
                changed = self._changed(shapes, read)
                now = {name: list(value.shape) for name, value in changed.items()}
                _require_same(_shapes(self._variables), {**shapes, **now}, prefix)
                if changed:
                    self._tracked(changed).read(str(prefix)).assert_existing_objects_matched()
                else:
                    self._checkpoint.read(str(prefix)).assert_consumed()
            except _DAMAGE as error:
                self._damaged.append(step)
                _warn_damaged(prefix, error)
                continue
            for name, value in changed.items():
                _value(self._variables[name]).assign(value)
                print(f"{prefix}: {name} is {shapes[name]}, as an older version kept it; {now[name]} of it are taken.",
                      file=sys.stderr)
            self._saved = step
            return step
        # A kill in the very first save leaves its data without an index: nothing is lost with it.
        if len(steps) > 1 or list(self.folder.glob("ckpt-*.index")):
            raise _none_readable(self.folder)
        return 0

    def _tracked(self, without=()):
        """The tf.train.Checkpoint of all variables, but for those named."""
        return tf.train.Checkpoint(**{group: {name: _value(variable) for name, variable in variables.items()
                                              if f"{group}/{name}" not in without}
                                      for group, variables in self._named.items()})

    def _changed(self, shapes, read):
        """{name: array as it is kept today} of the stored variables of another shape that `older` knows."""
        return {name: self._older[name.split("/")[0]](read(name)) for name, shape in _shapes(self._variables).items()
                if name.split("/")[0] in self._older and name in shapes and shapes[name] != shape}

    def _require_finite(self, step):
        for name, variable in self._variables.items():
            value = tf.convert_to_tensor(_value(variable))
            if value.dtype.is_floating and not bool(tf.reduce_all(tf.math.is_finite(value))):
                raise UserError(
                    f"{name} is not finite after step {step}, so this step is not saved. {self._kept()}Lower "
                    "the learning rate or clip the gradients, and run the same again.")

    def _kept(self):
        return "" if self._saved is None else f"The checkpoint of step {self._saved} is kept. "

    def _remove_leftovers(self):
        for path in self.folder.glob("ckpt-*_temp*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _remove_old(self, newest):
        """Removes damaged checkpoints and all but the newest `keep`."""
        whole = [step for step in _steps(self.folder) if step not in self._damaged or step == newest]
        kept = whole[:self.keep]
        for step in set(_steps(self.folder)) - set(kept):
            for path in _files_of(self.folder / f"ckpt-{step}"):
                path.unlink(missing_ok=True)
        self._damaged = []
        # TensorFlow's own list of checkpoints: for other tools, never read here.
        names = [f'model_checkpoint_path: "ckpt-{newest}"', *(f'all_model_checkpoint_paths: "ckpt-{step}"'
                                                              for step in reversed(kept))]
        with contextlib.suppress(UserError):
            files.write_text(self.folder / "checkpoint", "\n".join(names) + "\n")


def load_weights(folder, model, which="best", group="model"):
    """Loads a run's weights into `model`, all of them or none; returns the step they are of, and says it on
    stderr.

    which: "best" takes checkpoints/best.weights.h5 or, where no validation has written it yet, "last": the
    newest whole checkpoint, with averaged weights ("ema" of the items of `Checkpoints`) where it has them.
    group: the model's name among the items of `Checkpoints`. Raises `UserError`: no run, damaged, or of
    another model (names the variable and both shapes).
    """
    if which not in ("best", "last"):
        raise UserError(f'Weights must be "best" or "last", not {which!r}.')
    folder = pathlib.Path(folder)
    best = folder / "checkpoints" / "best.weights.h5"
    if which == "best" and best.exists():
        step = _load_best(best, model)
    else:
        step = _load_last(folder / "checkpoints", model, group)
        which = "last"
    print(f"{folder}: {which} weights, step {step}", file=sys.stderr)
    return step


def read_best(path):
    """The table of a `best.weights.h5`: {"value", "step", "shapes"}; None where there is no such file."""
    if not pathlib.Path(path).exists():
        return None
    try:
        with h5py.File(path, "r") as file:
            return json.loads(file[_TABLE].asstr()[()])
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} must be a weights file that train.py wrote ({files.reason(error)}). Remove "
                        "it to go on with the last checkpoint.") from error


def write_best(path, model, table):
    """Writes the model's weights in Keras's format, with `table` and all shapes, whole or not at all."""
    variables = named_variables(model)
    shapes = _shapes(variables)
    # Asked beforehand, because HDF5 goes on complaining after a failure.
    files.require_space(path.parent, sum(map(_bytes, variables.values())) + files.MEBIBYTE)
    with files.replacing(path) as temporary:
        try:
            model.save_weights(temporary)
            with h5py.File(temporary, "r+") as file:
                file[_TABLE] = json.dumps({**table, "shapes": shapes})
        except RuntimeError as error:  # h5py's word for a full disk when it closes a file
            raise OSError(str(error)) from error


def named_variables(item):
    """{name: variable} of a Keras model or optimizer, a variable, or a list of variables.

    Names are Keras paths without what differs from process to process: the model's or optimizer's own name
    and the running numbers of seed generators.
    """
    if isinstance(item, keras.optimizers.Optimizer):
        variables, paths = item.variables, [v.path.split("/", 1)[-1] for v in item.variables]
    elif isinstance(item, keras.Model):
        own = f"{item.name}/"
        variables, paths = item.variables, [v.path.removeprefix(own) for v in item.variables]
    else:
        variables = list(item) if isinstance(item, (list, tuple)) else [item]
        paths = [_path(variable, position) for position, variable in enumerate(variables)]
    named = {}
    for path, variable in zip(paths, variables):
        path = re.sub(r"seed_generator(_\d+)?/seed_generator_state", "seed_generator/state", path)
        name, repeats = path, 0
        while name in named:
            repeats += 1
            name = f"{path}#{repeats}"
        named[name] = variable
    return named


def _path(variable, position):
    path = getattr(variable, "path", None) or variable.name.split(":")[0]
    return str(position) if path == "Variable" else path


def _value(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def _shapes(named):
    return {name: list(variable.shape) for name, variable in named.items()}


def _bytes(variable):
    return _value(variable).dtype.size * tf.TensorShape(variable.shape).num_elements()


# What TensorFlow raises for files that are cut, flipped, or gone.
_DAMAGE = (tf.errors.OpError, OSError, ValueError, RuntimeError, LookupError)


def _steps(folder):
    """Steps of all checkpoints of which a file is left, newest first; the file `checkpoint` is not needed."""
    names = [path.name for path in pathlib.Path(folder).glob("ckpt-*")]
    found = [re.fullmatch(r"ckpt-(\d+)\.(index|data-\d+-of-\d+)", name) for name in names]
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def _files_of(prefix):
    return list(prefix.parent.glob(f"{prefix.name}.*"))


def _open(prefix):
    """A checkpoint's ({group/name: shape}, function from such a name to its array)."""
    if not prefix.with_name(f"{prefix.name}.index").exists():
        raise OSError(f"{prefix.name}.index is missing")
    reader = tf.train.load_checkpoint(str(prefix))
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    # tf.train.Checkpoint writes "/" within a name as ".S" and "." as "..".
    plain = {".S": "/", "..": "."}
    keys, shapes = {}, {}
    for key, shape in reader.get_variable_to_shape_map().items():
        if key.endswith(suffix):
            name = re.sub(r"\.[S.]", lambda match: plain[match[0]], key.removesuffix(suffix))
            keys[name], shapes[name] = key, shape
    return shapes, lambda name: reader.get_tensor(keys[name])


def _require_same(expected, stored, source):
    """Raises `UserError` unless two {name: shape} agree."""
    for name, shape in expected.items():
        if name in stored and stored[name] != shape:
            raise UserError(f"{name} is {stored[name]} in {source}, but {shape} in this model. "
                            "Build the model as it was trained (labels, model, sizes), or choose another "
                            "--run.")
    missing = [name for name in expected if name not in stored]
    surplus = [name for name in stored if name not in expected]
    if missing or surplus:
        both = [f"has no {missing[0]} (one of {len(missing)} that this model has)"] if missing else []
        both += [f"has {surplus[0]} (one of {len(surplus)} that this model lacks)"] if surplus else []
        raise UserError(f"{source} is of another model: it {' and '.join(both)}. Build the model as it was "
                        "trained, or choose another --run.")


def _warn_damaged(prefix, error):
    print(f"warning: checkpoint {prefix} is damaged ({files.reason(error)}); trying the one before it.",
          file=sys.stderr)


def _none_readable(folder):
    return UserError(f"{folder} holds checkpoints, but none of them can be read. Put back a copy, or choose "
                     "another --run to start anew.")


def _load_best(path, model):
    table = read_best(path)
    _require_same(_shapes(named_variables(model)), table["shapes"], path)
    try:
        model.load_weights(path)
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged ({files.reason(error)}). Put back a copy, or remove it to go on "
                        "with the last checkpoint.") from error
    return table["step"]


def _load_last(folder, model, group):
    steps = _steps(folder)
    variables = named_variables(model)
    for step in steps:
        prefix = folder / f"ckpt-{step}"
        try:
            shapes, read = _open(prefix)
            own = {name.removeprefix(f"{group}/"): shape for name, shape in shapes.items()
                   if name.startswith(f"{group}/")}
            _require_same(_shapes(variables), own, f"{prefix}, {group}")
            values = {}
            for name, variable in variables.items():
                averaged = [f"ema/{path}" for path in (name, variable.path) if f"ema/{path}" in shapes]
                values[name] = read(averaged[0] if averaged else f"{group}/{name}")
        except _DAMAGE as error:
            _warn_damaged(prefix, error)
            continue
        for name, variable in variables.items():
            variable.assign(values[name])
        return step
    if steps:
        raise _none_readable(folder)
    raise UserError(f"{folder} holds no weights. Train first, or give --run the folder that train.py wrote.")
