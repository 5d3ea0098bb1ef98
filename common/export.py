"""The serving bundle: a SavedModel without variables that TensorFlow Serving takes as it is, and its checks.

A bundle is a folder with a number, `serving/<model>/1`: saved_model.pb, and in assets.extra what goes with it
(warm-up requests, labels, config.json). It gets its number only when it is complete and checked, so that a
server that watches `serving/<model>` never loads half of one.

`tf.saved_model.save` of a Keras 3 model cannot be served: the server's loader misses its variables. Here the
weights are constants of the graph (common/folding.py).
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import socket
from typing import Callable, NamedTuple

import numpy as np
import tensorflow as tf

from common import files, images, warm_up
from common.errors import UserError

SERVING_VERSION = "2.19.1"  # of the docker image tensorflow/serving that the README of a bundle names
SERVING_API = "tensorflow-serving-api>=2.21,<2.22"  # the package of the README's gRPC client
EXTRA = "assets.extra"


# Pictures in the graph


def decode_picture(image_bytes, max_pixels=images.MAX_PIXELS, on_white=False):
    """uint8 RGB [H, W, 3] of one encoded JPEG or PNG, in the graph; EXIF orientation is not applied.

    on_white: as of `images.decode`.

    Anything else, and a picture that claims more than max_pixels, raises InvalidArgumentError before it is
    decoded.
    """
    is_jpeg = tf.io.is_jpeg(image_bytes)
    is_png = tf.equal(tf.strings.substr(image_bytes, 0, 8), b"\x89PNG\r\n\x1a\n")
    is_known = tf.debugging.Assert(is_jpeg | is_png, ["image_bytes must be a JPEG or PNG file"])
    with tf.control_dependencies([is_known]):
        image_bytes = tf.identity(image_bytes)
    size = tf.cond(
        is_jpeg,
        lambda: tf.image.extract_jpeg_shape(image_bytes)[:2],
        lambda: tf.io.decode_raw(tf.strings.substr(image_bytes, 16, 8), tf.int32, little_endian=False),
    )
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    fits = tf.reduce_all(size > 0) & (pixels <= max_pixels)
    message = f"image_bytes must have 1 to {max_pixels} pixels; height and width (PNG: width and height) are"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, size])]):
        return images.decode(image_bytes, on_white)


# The bundle


class Signature(NamedTuple):
    """What a server offers: `before`, then the network, then `after`."""

    spec: tf.TensorSpec | tuple  # of the one input, with its name; several for several inputs
    before: Callable  # inputs -> tuple: the network's input, and what `after` needs besides
    after: Callable  # (list of the network's outputs, *the rest of that tuple) -> {output name: tensor}
    tables: bool = False  # `before` makes lookup tables: it runs in the bundle's own graph, not traced beforehand


def save(folder, network, signatures, *, requests=(), extra=None):
    """Writes a SavedModel that runs a network of `folding.freeze` behind each of `signatures` {name: Signature}.

    network: one for all signatures, or {signature name: network}.
    requests: (signature name, {input name: array or TensorProto}) pairs that a server runs before it answers.
    extra: {file name: text or bytes} for the folder assets.extra.
    """
    tf1 = tf.compat.v1
    folder = pathlib.Path(folder)
    # Traced before there is a tf.Graph: inside one, == and != of tensors would compare Python objects.
    networks = network if isinstance(network, dict) else dict.fromkeys(signatures, network)
    traced = {name: _trace(networks[name], signature) for name, signature in signatures.items()}
    definitions, constants = {}, {id(each): {} for each in networks.values()}
    # The signatures of a network share one set of constants in one flat graph. As a function of the graph's
    # library, which is what tf.saved_model.save makes of it, a server copies the network for each loop and branch.
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session, _quiet():
        for name, (before, after) in traced.items():
            placeholders = {spec.name: tf1.placeholder(spec.dtype, spec.shape, f"{name}_{spec.name}")
                            for spec in tf.nest.flatten(signatures[name].spec)}
            network_input, *rest = before(*placeholders.values())
            each = networks[name]
            outputs = _import(each, network_input, constants[id(each)], f"{name}_network")
            found = {key: tf.identity(value, f"{name}_{key}") for key, value in after(outputs, *rest).items()}
            definitions[name] = tf1.saved_model.predict_signature_def(placeholders, found)
        has_tables = tf1.get_collection(tf1.GraphKeys.TABLE_INITIALIZERS)
        builder = tf1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, [tf1.saved_model.tag_constants.SERVING], definitions,
                                             main_op=tf1.tables_initializer() if has_tables else None,
                                             strip_default_attrs=True)
        builder.save()
    (folder / EXTRA).mkdir()
    warm_up.write(folder / EXTRA / warm_up.FILE, requests)
    for name, content in (extra or {}).items():
        (folder / EXTRA / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _trace(network, signature):
    """ConcreteFunctions of `before` and `after`; `before` as it is where it makes tables."""
    before = tf.function(signature.before, input_signature=tf.nest.flatten(signature.spec), autograph=False)
    before = before.get_concrete_function()
    outputs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in network.outputs]
    rest = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in before.outputs[1:]]
    after = tf.function(signature.after, autograph=False).get_concrete_function(outputs, *rest)
    return signature.before if signature.tables else before, after


def _import(network, network_input, constants, name):
    """The network's outputs in the current graph; `constants` {name: tensor}, filled at first, are shared."""
    definition = network.graph.as_graph_def()
    large = [node.name for node in definition.node if node.op == "Const" and node.ByteSize() > 1000]
    if constants:
        for index in reversed(range(len(definition.node))):
            if definition.node[index].name in constants:
                del definition.node[index]
    mapping = {network.inputs[0].name: network_input, **constants}
    wanted = [tensor.name for tensor in network.outputs]
    missing = [] if constants else [f"{constant}:0" for constant in large]
    found = tf.import_graph_def(definition, mapping, wanted + missing, name=name)
    constants.update(zip(large, found[len(wanted):]) if missing else {})
    return found[:len(wanted)]


class Session:
    """A bundle in the session loader that TensorFlow Serving uses."""

    def __init__(self, folder):
        tf1 = tf.compat.v1
        self._session = tf1.Session(graph=tf.Graph())
        with self._session.graph.as_default(), _quiet():
            meta = tf1.saved_model.load(self._session, [tf1.saved_model.tag_constants.SERVING], str(folder))
        self.signatures = {name: signature for name, signature in meta.signature_def.items()
                           if not name.startswith("__")}

    def run(self, signature, inputs):
        """{output name: array} of {input name: array}; raises InvalidArgumentError for bad inputs."""
        return self.callable(signature)(inputs)

    @functools.cache
    def callable(self, signature):
        """The function of one signature from {input name: array} to {output name: array}."""
        spec = self.signatures[signature]
        names = sorted(spec.inputs)
        outputs = {name: tensor.name for name, tensor in spec.outputs.items()}
        compiled = self._session.make_callable(outputs, [spec.inputs[name].name for name in names])
        return lambda inputs: compiled(*(inputs[name] for name in names))

    def close(self):
        self._session.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


@contextlib.contextmanager
def _quiet():
    """Without TensorFlow's remark that the loader which its own server uses is the older one."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def check_bundle(folder, then=None, broken=b"not a picture"):
    """Loads a bundle as a server does, runs its warm-up requests and sends broken strings; raises UserError.

    Outputs must have the types and shapes that their signature states, the batch of the request, and be
    finite; the string `broken` must give INVALID_ARGUMENT, and the next request must still be
    answered. Returns {signature: {output name: array}} of the warm-up requests.
    then: a further check, called with the open `Session`; a second one would take as much memory again.
    """
    try:
        requests = warm_up.read(pathlib.Path(folder) / EXTRA / warm_up.FILE)
        session = Session(folder)
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(f"{folder} must be a bundle that export.py wrote, and cannot be loaded "
                        f"({str(error).splitlines()[0][:200]}). Export again.") from None
    results = {}
    with session:
        for signature, inputs in requests:
            for name, value in inputs.items():
                if value.dtype == object:
                    refused = np.array([broken], object)
                    _check_refused(folder, session, signature, {**inputs, name: refused})
            results[signature] = session.run(signature, inputs)
            batch = len(next(iter(inputs.values())))
            _check_outputs(folder, signature, session.signatures[signature], results[signature], batch)
        if then is not None:
            then(session)
    missing = set(session.signatures) - set(results)
    if missing:
        raise UserError(f"{folder} has no warm-up request for {', '.join(sorted(missing))}. Export again.")
    return results


def _check_refused(folder, session, signature, inputs):
    try:
        session.run(signature, inputs)
    except tf.errors.InvalidArgumentError:
        return
    raise UserError(
        f"{folder}: {signature} must refuse broken strings with INVALID_ARGUMENT, and answers it. "
        "Export again."
    )


def _check_outputs(folder, signature, spec, outputs, batch):
    for name, tensor in spec.outputs.items():
        value, shape = outputs[name], tf.TensorShape(tensor.tensor_shape)
        dtype = tf.as_dtype(tensor.dtype)
        if not shape.is_compatible_with(value.shape) or (value.dtype != object) and dtype != value.dtype:
            raise UserError(
                f"{folder}: {signature} must put out {name} as {dtype.name} {shape}, and puts out "
                f"{value.dtype} {value.shape}. Export again."
            )
        if len(value) != batch:
            raise UserError(
                f"{folder}: {signature} must answer {batch} images with as many {name}, and answers with "
                f"{len(value)}. Export again."
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(
                f"{folder}: {signature} puts out {name} that are not finite. The weights of this run are "
                "broken; take another checkpoint (--which last)."
            )


# Publishing


def publish(out, write, check, readme=None):
    """Writes the next version of a bundle into the folder `out`; returns its path, `out`/<number>.

    write(folder) makes the bundle under a name that is no number, check(folder) raises if it is not good;
    only then it gets its number in one step. readme(version folder) gives the text of `out`/README.md. Two
    exports at once get two numbers. What an export that was killed has left behind is removed by the next.
    """
    out = pathlib.Path(out)
    prefix = f"exporting-{socket.gethostname()}-"
    staging = out / f"{prefix}{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out, prefix)
        shutil.rmtree(staging, ignore_errors=True)
        write(staging)
        check(staging)
        for path in staging.rglob("*"):
            files.flush(path)
        version = _rename_to_next_number(staging, out)
        files.flush(out)
        if readme is not None:
            files.write_text(out / "README.md", readme(version))
        return version
    except (OSError, tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError,
            tf.errors.FailedPreconditionError) as error:
        raise UserError(
            f"The bundle cannot be written to {out} ({files.reason(error)}). Free some space or choose "
            "another --out."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def versions(out):
    """The numbers of the published versions in a folder, ascending: what a server sees."""
    return sorted(int(path.name) for path in pathlib.Path(out).iterdir()
                  if re.fullmatch(r"[0-9]+", path.name) and path.is_dir())


def _rename_to_next_number(staging, out):
    number = max(versions(out), default=0) + 1
    while True:
        try:
            os.replace(staging, out / str(number))
            return out / str(number)
        except OSError:
            if not (out / str(number)).exists():
                raise
            number += 1  # another export was faster


def _remove_abandoned(out, prefix):
    for path in out.glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix)
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def resolve_version(folder):
    """The bundle at `folder`: itself, or the highest version in it; UserError where there is none."""
    folder = pathlib.Path(folder)
    if (folder / "saved_model.pb").is_file():
        return folder
    if folder.is_dir() and versions(folder):
        return folder / str(versions(folder)[-1])
    raise UserError(f"{folder} must be a bundle, serving/<model>/<number> or the folder above; it has no "
                    "saved_model.pb. Export one: python -m <article>.export --run <run> --out <folder>")


def read_config(folder):
    """The dict of a bundle's assets.extra/config.json; UserError where it is missing or damaged."""
    path = pathlib.Path(folder) / EXTRA / "config.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must be the JSON that export.py wrote ({files.reason(error)}). Export again."
        ) from None


def serve_command(name, out):
    """The docker command of a bundle's README."""
    return (f"docker run --rm -p 8500:8500 -p 8501:8501 \\\n"
            f"  -v \"{pathlib.Path(out).resolve()}:/models/{name}:ro\" -e MODEL_NAME={name} \\\n"
            f"  tensorflow/serving:{SERVING_VERSION}")
