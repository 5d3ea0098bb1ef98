"""The exported classifier as a server loads it: session, gRPC, REST, the README's requests."""

import base64
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from common import export
from common.errors import UserError
from tests import serving
from tests.textclf.small import CONFIG, LABELS, network
from textclf import export as textclf_export
from textclf import predict

TEXTS = ["The BANK, the profit!", "", "élan: ship?storm", "xyzzy"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    model, _, vocabulary, config = network()
    out = tmp_path_factory.mktemp("serving") / "news"
    assert textclf_export.export_bundle(model, vocabulary, config, out) == out / "1"
    return out


@pytest.fixture(scope="module")
def server(out):
    with serving.Server("news", out) as server:
        yield server


@pytest.fixture(scope="module")
def expected():
    """[{label: probability}] of TEXTS from the Keras model."""
    model, vectorize, *_ = network()
    return [dict(zip(LABELS, row)) for row in predict.make_classify(model, vectorize)(TEXTS)[0]]


def assert_same(labels, probabilities, expected):
    assert list(probabilities) == sorted(probabilities, reverse=True)
    found = dict(zip(labels, probabilities, strict=True))
    assert found == pytest.approx(expected, abs=1e-5) and max(found.values()) > 1.2 * min(found.values())


def test_strings_in_labels_and_probabilities_out(out, expected):
    with export.Session(out / "1") as session:
        found = session.run("serving_default", {"texts": np.array([text.encode() for text in TEXTS], object)})
        assert len(session.run("serving_default", {"texts": np.array([], object)})["labels"]) == 0
    assert found["probabilities"].dtype == np.float32 and found["labels"].shape == (4, len(LABELS))
    for labels, probabilities, row in zip(found["labels"], found["probabilities"], expected):
        assert_same([label.decode() for label in labels], probabilities, row)


def test_the_bundle_is_one_file_without_variables(out):
    saved = saved_model_pb2.SavedModel.FromString((out / "1" / "saved_model.pb").read_bytes())
    operations = {node.op for node in saved.meta_graphs[0].graph_def.node}
    assert "LookupTableFindV2" in operations and not [name for name in operations if "Variable" in name]
    assert not (out / "1" / "assets").exists()
    assert (out / "1" / "assets.extra" / "labels.txt").read_text("utf-8").split() == LABELS
    assert export.read_config(out / "1") == CONFIG


def test_grpc(server, expected):
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "news"

        def send(texts):
            request.inputs["texts"].CopyFrom(tf.make_tensor_proto(texts, tf.string))
            outputs = stub.Predict(request, timeout=60).outputs
            return [tf.make_ndarray(outputs[name]) for name in ("labels", "probabilities")]

        for labels, probabilities, row in zip(*send(TEXTS), expected):
            assert_same([label.decode() for label in labels], probabilities, row)
        for bad in (b"caf\xe9", b"\xff\xfe", b"cut \xc3"):
            with pytest.raises(grpc.RpcError) as error:
                send([TEXTS[0].encode(), bad])
            assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert len(send(TEXTS)[0]) == 4  # the server goes on


def test_rest(server, expected):
    def post(request):
        address = f"http://localhost:{server.rest_port}/v1/models/news:predict"
        with urllib.request.urlopen(address, json.dumps(request).encode(), timeout=60) as reply:
            return json.load(reply)

    for found, row in zip(post({"instances": TEXTS})["predictions"], expected):
        assert_same(found["labels"], found["probabilities"], row)
    assert post({"inputs": {"texts": TEXTS}})["outputs"]["labels"][0] == list(
        sorted(expected[0], key=expected[0].get, reverse=True))
    with pytest.raises(urllib.error.HTTPError) as error:
        post({"instances": [{"b64": base64.b64encode(b"caf\xe9").decode()}]})
    assert error.value.code == 400
    error.value.close()


def test_the_readme_works_as_it_stands(server, out, tmp_path):
    text = (out / "README.md").read_text("utf-8")
    text = text.replace("localhost:8501", f"localhost:{server.rest_port}")
    text = text.replace("localhost:8500", f"localhost:{server.grpc_port}")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    shell = next(block for block in blocks if "curl" in block)
    code = next(block for block in blocks if "import grpc" in block)
    (tmp_path / "client.py").write_text("\n".join(line[4:] for line in code.splitlines()))
    client = subprocess.Popen([sys.executable, tmp_path / "client.py"], stdout=subprocess.PIPE, text=True)
    reply = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60, check=True)
    rows = json.loads(reply.stdout)["predictions"]
    printed, _ = client.communicate(timeout=120)
    assert len(rows) == 2 and client.returncode == 0
    assert printed.split()[0] == rows[0]["labels"][0]


def test_a_bundle_of_other_weights_is_not_published(tmp_path, monkeypatch):
    model, _, vocabulary, config = network()
    other = network(seed=2)[0]
    write = textclf_export.write_bundle
    monkeypatch.setattr(textclf_export, "write_bundle", lambda folder, _, *rest: write(folder, other, *rest))
    with pytest.raises(UserError, match="probabilities must be those of the Keras model"):
        textclf_export.export_bundle(model, vocabulary, config, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
