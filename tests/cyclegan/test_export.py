"""The exported generators as a server loads them: session, gRPC, REST, the README's requests, broken pictures."""

import base64
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.error

import cv2
import grpc
import numpy as np
import pytest
import tensorflow as tf

from common import export
from common.errors import UserError
from cyclegan import export as cyclegan_export
from cyclegan import predict
from tests import serving
from tests.common.test_media import png_bomb
from tests.cyclegan import small

write = cyclegan_export.write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """({"a2b", "b2a"}, folder of versions)."""
    generators, out = predict.split(small.both_generators()), tmp_path_factory.mktemp("serving") / "horse2zebra"
    assert cyclegan_export.export_bundle(generators, small.CONFIG, out) == out / "1"
    return generators, out


@pytest.fixture(scope="module")
def server(bundle):
    with serving.Server("horse2zebra", bundle[1]) as running:
        yield running


def keras_picture(generator, image):
    """float32 [H, W, 3] in 0..1 of a picture uint8, from the Keras model."""
    height, width = image.shape[:2]
    padding = [(0, -height % 4), (0, -width % 4), (0, 0)]
    images = np.pad(np.asarray(image), padding, "reflect")[None].astype(np.float32) / 255
    return generator(images * 2 - 1, training=False).numpy()[0, :height, :width] / 2 + 0.5


def encode(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pixels_in_pixels_out(bundle, server):
    generators, _ = bundle
    pictures = np.stack([small.picture(30, 41, seed) for seed in range(2)])
    images = pictures.astype(np.float32) / 255
    for signature, way in (("", "a2b"), ("a2b", "a2b"), ("b2a", "b2a")):
        found = serving.ask(server, {"images": images}, signature)["pictures"]
        expected = np.stack([keras_picture(generators[way], picture) for picture in pictures])
        np.testing.assert_allclose(found, expected, atol=1e-4)  # float32 in another order
    rows = serving.post(server, {"signature_name": "b2a", "instances": [{"images": images[0].tolist()}]})
    np.testing.assert_allclose(rows["predictions"][0], expected[0], atol=1e-4)


def test_files_of_several_sizes_in_one_request(bundle, server):
    generators, _ = bundle
    pictures, files = serving.example_pictures(np.random.default_rng(0))
    for way in predict.DIRECTIONS:
        found = serving.ask(server, {"image_bytes": np.array(files, object)}, f"{way}_bytes")["png_bytes"]
        for data, picture in zip(found, pictures, strict=True):
            expected = keras_picture(generators[way], picture.numpy()) * 255
            assert data.startswith(b"\x89PNG")
            assert np.abs(decode(data) - expected).max() <= 0.51  # rounded to whole colours


def test_bad_pictures_are_refused_and_the_server_goes_on(server, monkeypatch):
    """Fault 40."""
    good = encode(small.picture(9, 12))
    bomb = png_bomb(4096, 2048)  # more than the bundle's own limit
    for bad in (b"no picture", good[:30], bomb):
        encoded = [{"image_bytes": {"b64": base64.b64encode(data).decode()}} for data in (good, bad)]
        with pytest.raises(urllib.error.HTTPError) as error:
            serving.post(server, {"signature_name": "b2a_bytes", "instances": encoded})
        assert error.value.code == 400
        (answer,) = serving.post(server, {"signature_name": "b2a_bytes", "instances": encoded[:1]})["predictions"]
        assert decode(base64.b64decode(answer["b64"])).shape == (9, 12, 3)
    for shape in ((1, 0, 5, 3), (1, 4096, 2048, 3)):
        with pytest.raises(grpc.RpcError) as error:
            serving.ask(server, {"images": tf.make_tensor_proto(0.5, tf.float32, shape)
                                 if 0 not in shape else np.zeros(shape, np.float32)}, "a2b")
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_requests_of_the_readme(bundle, server, tmp_path):
    """As they stand there, in the folder where it stands."""
    generators, out = bundle
    text = (out / "README.md").read_text("utf-8")
    assert "a2b makes zebra of horse" in text
    text = text.replace("localhost:8501", f"localhost:{server.rest_port}")
    text = text.replace("localhost:8500", f"localhost:{server.grpc_port}")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    shell = next(block for block in blocks if "curl" in block)
    code = next(block for block in blocks if "import grpc" in block)
    (out / "1" / "client.py").write_text("\n".join(line[4:] for line in code.splitlines()))
    (tmp_path / "1").symlink_to(out / "1")
    reply = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    subprocess.run([sys.executable, "1/client.py"], cwd=tmp_path, timeout=120, check=True,
                   env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    (answer,) = json.loads(reply.stdout)["predictions"]
    example = tf.io.decode_jpeg((out / "1" / "assets.extra" / "example.jpg").read_bytes()).numpy()
    expected = keras_picture(generators["a2b"], example) * 255
    for data in (base64.b64decode(answer["b64"]), (tmp_path / "translated.png").read_bytes()):
        assert np.abs(decode(data) - expected).max() <= 0.51


def test_weights_are_in_the_bundle_once(bundle):
    """Five signatures, of which three and two have a network in common."""
    generators, out = bundle
    size = (out / "1" / "saved_model.pb").stat().st_size
    graph = tf.compat.v1.GraphDef()
    with export.Session(out / "1") as session:
        graph = session._session.graph.as_graph_def()
    held = sum(node.ByteSize() for node in graph.node if node.op == "Const" and node.ByteSize() > 4000)
    weights = sum(4 * generators[way].count_params() for way in predict.DIRECTIONS)
    assert held < 1.05 * weights < size


def test_predict_from_a_bundle(bundle):
    generators, out = bundle
    infer, config = predict.bundle_network(out, "b2a")
    image = small.picture(23, 37)
    found, _ = predict.make_translate(infer)(image)
    assert np.abs(found - keras_picture(generators["b2a"], image) * 255).max() <= 0.51
    assert config == {"article": "cyclegan", "precision": "float32",
                      **{key: small.CONFIG[key] for key in predict.KEYS}}
    with pytest.raises(UserError, match="picture of 2048 x 2049 is more than the bundle .* takes. Give --size 2048"):
        infer(np.zeros([2049, 2048, 3], np.float32))


def test_a_bundle_that_differs_is_not_published(bundle, tmp_path, monkeypatch):
    generators, _ = bundle
    other = {"a2b": generators["a2b"], "b2a": generators["a2b"]}
    monkeypatch.setattr(cyclegan_export, "write_bundle", lambda folder, _, config: write(folder, other, config))
    with pytest.raises(UserError, match="pictures of b2a must be those of the Keras model.*differ by"):
        cyclegan_export.export_bundle(generators, small.CONFIG, tmp_path / "out")
    assert not export.versions(tmp_path / "out")


def test_command_in_bfloat16(tmp_path):
    generators = small.write_run(tmp_path / "run")
    command = [sys.executable, "-m", "cyclegan.export", "--run", tmp_path / "run", "--out", tmp_path / "out",
               "--precision", "bfloat16"]
    process = subprocess.run(command, cwd=pathlib.Path(__file__).parents[2], text=True, capture_output=True,
                             timeout=240, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert process.returncode == 0, process.stderr[-2000:]
    assert "loaded and checked as a server loads it" in process.stdout
    image = small.picture(40, 52)
    with export.Session(tmp_path / "out" / "1") as session:
        found = session.run("a2b", {"images": image[None].astype(np.float32) / 255})["pictures"][0]
        kinds = {node.attr["T"].type for node in session._session.graph.as_graph_def().node if node.op == "Conv2D"}
    assert kinds == {tf.bfloat16.as_datatype_enum}
    assert 1e-4 < np.abs(found - keras_picture(generators["a2b"], image)).mean() < 0.01
