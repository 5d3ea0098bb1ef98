"""A stand-in for TensorFlow Serving: gRPC and REST over the session loader that the real server uses.

There is no TensorFlow Serving binary in any package index that pip or apt reads, so this small server answers
what the tests ask: PredictionService.Predict of tensorflow-serving-api, and POST /v1/models/<name>:predict
with JSON, base64 strings included, in row ("instances") and column ("inputs") form. It follows the real one
in what is loaded (the highest number in the model's folder), in its error codes, and in the forms of its
answers. It is not a server to use. Below it stand the requests that the tests of several articles send.
"""

import base64
import concurrent.futures
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import urllib.request

import cv2
import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from common import export


class Server:
    """Serves the highest version in `folder` under `name` on grpc_port and rest_port; use it with `with`."""

    def __init__(self, name, folder):
        self.name = name
        self.folder = pathlib.Path(folder)
        self.version, self.session = None, None
        self.reload()

    def reload(self):
        """Looks for a new version, as the real server does every second; returns the version served."""
        newest = max((int(path.name) for path in self.folder.iterdir() if path.name.isdigit()), default=None)
        if newest != self.version:
            self.session = export.Session(self.folder / str(newest))
            self.version = newest
            log = self.folder / str(newest) / "assets.extra" / "tf_serving_warmup_requests"
            for signature, inputs in export.warm_up.read(log):
                self.session.run(signature, inputs)
        return self.version

    def __enter__(self):
        self._grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Servicer(self), self._grpc)
        self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self._rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.rest_port = self._rest.server_address[1]
        self._thread = threading.Thread(target=self._rest.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._rest.shutdown()
        self._rest.server_close()
        self._thread.join()
        self._grpc.stop(None).wait()
        self.session.close()


class _Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self.server = server

    def Predict(self, request, context):  # noqa: N802, the name in the service's definition
        server = self.server
        if request.model_spec.name != server.name:
            missing = f"Servable not found for request: Latest({request.model_spec.name})"
            context.abort(grpc.StatusCode.NOT_FOUND, missing)
        signature = request.model_spec.signature_name or "serving_default"
        if signature not in server.session.signatures:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature key "{signature}" not found.')
        if set(request.inputs) != set(server.session.signatures[signature].inputs):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "input names do not match those of the signature")
        try:
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            outputs = server.session.run(signature, inputs)
        except (ValueError, tf.errors.InvalidArgumentError) as error:  # ValueError: a shape that does not fit
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = server.name
        response.model_spec.version.value = server.version
        response.model_spec.signature_name = signature
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def _handler(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802, the name that the base class calls
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if self.path != f"/v1/models/{server.name}:predict":
                    return self.answer(404, {"error": "Malformed request: POST " + self.path})
                self.answer(200, _predict(server, json.loads(body)))
            except (ValueError, KeyError, tf.errors.InvalidArgumentError) as error:
                self.answer(400, {"error": str(error)})

        def answer(self, code, value):
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    return Handler


def _predict(server, request):
    signature = request.get("signature_name", "serving_default")
    specs = server.session.signatures[signature].inputs
    if "instances" in request:
        rows = request["instances"]
        if len(specs) == 1 and not (isinstance(rows[0], dict) and set(rows[0]) == set(specs)):
            # The name may be left out where there is one input.
            rows = [{next(iter(specs)): row} for row in rows]
        columns = {name: [row[name] for row in rows] for name in specs}
    else:
        columns = request["inputs"]
        if len(specs) == 1 and not (isinstance(columns, dict) and set(columns) == set(specs)):
            columns = {next(iter(specs)): columns}
    inputs = {name: _array(columns[name], tf.as_dtype(spec.dtype)) for name, spec in specs.items()}
    outputs = {name: _plain(name, value) for name, value in server.session.run(signature, inputs).items()}
    if "inputs" in request:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    if len(outputs) == 1:
        return {"predictions": next(iter(outputs.values()))}
    return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}


def _array(value, dtype):
    def decode(entry):
        if isinstance(entry, list):
            return [decode(item) for item in entry]
        return base64.b64decode(entry["b64"], validate=True) if isinstance(entry, dict) else entry.encode()

    if dtype == tf.string:
        return np.array(decode(value), object)
    return np.array(value, dtype.as_numpy_dtype)


def _plain(name, value):
    """JSON values; strings as text, base64 only where the output's name ends with _bytes, as really."""
    if value.dtype != object:
        return value.tolist()

    def text(item):
        if isinstance(item, list):
            return [text(one) for one in item]
        return {"b64": base64.b64encode(item).decode()} if name.endswith("_bytes") else item.decode()

    return text(value.tolist())


def example_pictures(rng):
    """uint8 pictures and their files: a wide JPEG, a high PNG, a gray PNG larger than a small network's input."""
    shapes = [(50, 130, 3), (200, 90, 3), (300, 300)]
    images = [cv2.resize(rng.integers(0, 256, (6, 7, *shape[2:]), np.uint8), shape[1::-1]) for shape in shapes]
    files = [cv2.imencode(suffix, image)[1].tobytes() for suffix, image in zip((".jpg", ".png", ".png"), images)]
    return [tf.io.decode_image(data, channels=3) for data in files], files


def post(server, request):
    """The server's answer to a REST request."""
    address = f"http://localhost:{server.rest_port}/v1/models/{server.name}:predict"
    with urllib.request.urlopen(address, json.dumps(request).encode(), timeout=60) as reply:
        return json.load(reply)


def ask(server, inputs, signature=""):
    """{output name: array} of a gRPC request; raises grpc.RpcError."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = server.name, signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        outputs = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60).outputs
    return {name: tf.make_ndarray(proto) for name, proto in outputs.items()}


def run_readme(text, server, folder, picture):
    """Runs a detector's README as it stands, photo.jpg in `folder`: (row of the REST answer, gRPC's stdout)."""
    (folder / "photo.jpg").write_bytes(picture)
    text = text.replace("localhost:8501", f"localhost:{server.rest_port}")
    text = text.replace("localhost:8500", f"localhost:{server.grpc_port}")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    shell = next(block for block in blocks if "curl" in block)
    code = next(block for block in blocks if "import grpc" in block)
    (folder / "client.py").write_text("\n".join(line[4:] for line in code.splitlines()))
    reply = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, timeout=60, check=True)
    (row,) = json.loads(reply.stdout)["predictions"]
    reply = subprocess.run([sys.executable, "client.py"], cwd=folder, capture_output=True, text=True, timeout=120,
                           check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    return row, reply.stdout


def saved_model_cli(*commands):
    """The stdout of several saved_model_cli commands that run side by side."""
    program = pathlib.Path(sys.executable).with_name("saved_model_cli")
    processes = [subprocess.Popen([program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}) for command in commands]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors[-2000:]
    return [output for output, _ in outputs]
