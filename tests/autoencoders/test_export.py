"""The exported autoencoder as a server loads it: session, gRPC, REST, the README's requests; and `predict`."""

import base64
import json
import pathlib
import re
import urllib.error
import urllib.request

import cv2
import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from autoencoders import export as autoencoder_export
from autoencoders import predict, sources
from autoencoders.model import build, code_of, probs
from common import export, training
from common.errors import UserError
from tests import serving
from tests.common.test_media import png_bomb

RNG = np.random.default_rng(3)


def config_of(name, shape=(28, 28, 1), latent_dim=None):
    model = build(name, shape, latent_dim)
    code = int(np.prod(model.get_layer("decoder").input_shape[1:]))
    return {"article": "autoencoders", "model": name, "image_shape": list(shape), "latent_dim": code,
            "labels": ["0", "1"],
            "noise": 0.0}


def random_model(config):
    keras.utils.set_random_seed(1)
    return build(config["model"], config["image_shape"], config["latent_dim"])


def expected_of(model, images):
    found = model(images, training=False)
    return {"pictures": probs(found["logits"]).numpy(), "code": code_of(found).numpy(),
            **({"log_var": found["log_var"].numpy()} if "log_var" in found else {})}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """(model, folder of versions) of a variational autoencoder."""
    config = config_of("conv_vae")
    model, out = random_model(config), tmp_path_factory.mktemp("serving") / "autoencoder"
    assert autoencoder_export.export_bundle(model, config, out) == out / "1"
    return model, out


@pytest.fixture(scope="module")
def server(bundle):
    with serving.Server("autoencoder", bundle[1]) as running:
        yield running


@pytest.mark.parametrize("name, shape", [("dense", (28, 28, 1)), ("conv", (20, 30, 3)), ("vae", (5, 7, 1))])
def test_every_signature_gives_what_keras_gives(tmp_path, name, shape):
    config = config_of(name, shape)
    model = random_model(config)
    version = autoencoder_export.export_bundle(model, config, tmp_path / "out")
    images = RNG.uniform(size=(3, *shape)).astype(np.float32)
    expected = expected_of(model, images)
    with export.Session(version) as session:
        assert set(session.signatures) == {"serving_default", "encoder", "decoder", "reconstruct", "image_bytes"}
        found = {each: session.run(each, {"images": images})
                 for each in ("serving_default", "reconstruct", "encoder")}
        found["decoder"] = session.run("decoder", {"code": expected["code"]})
    for each, names in (("serving_default", {"pictures", "code"}), ("reconstruct", {"pictures", "code"}),
                        ("encoder", {"code"} | ({"log_var"} & set(expected))), ("decoder", {"pictures"})):
        assert set(found[each]) == names
        for output in names:  # float32, sums in another order
            np.testing.assert_allclose(found[each][output], expected[output], rtol=1e-4, atol=1e-5, err_msg=each)


def test_files_of_any_size_are_resized(bundle):
    model, out = bundle
    digit = cv2.GaussianBlur(RNG.integers(0, 256, (28, 28), np.uint8), (0, 0), 2)
    files = [cv2.imencode(".png", digit)[1].tobytes(),
             cv2.imencode(".png", np.repeat(np.repeat(digit, 3, axis=0), 3, axis=1))[1].tobytes(),
             cv2.imencode(".jpg", cv2.cvtColor(digit, cv2.COLOR_GRAY2BGR),
                          [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()]
    expected = expected_of(model, digit[None, ..., None].astype(np.float32) / 255)
    with export.Session(out / "1") as session:
        found = session.run("image_bytes", {"image_bytes": np.array(files, object)})
    # Gray from three equal channels: rounding; the JPEG is off by a step or two of 255.
    for i, tolerance in enumerate((1e-4, 1e-4, 2e-2)):
        np.testing.assert_allclose(found["pictures"][i], expected["pictures"][0], atol=tolerance)
        np.testing.assert_allclose(found["code"][i], expected["code"][0], atol=tolerance)


@pytest.mark.parametrize("size", [(56, 84), (31, 45), (9, 11), (90, 12), (28, 28)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_bundle_reads_files_as_the_records_are_built(tmp_path, size, channels):
    """Transparent, larger, smaller, and larger on one side: what `sources` makes of a file, to a level of 255."""
    rgba = cv2.GaussianBlur(RNG.integers(0, 256, (*size, 4), np.uint8), (0, 0), 1)
    rgba[..., 3] = RNG.choice(np.array([0, 100, 255], np.uint8), size)
    cv2.imwrite(str(tmp_path / "a.png"), rgba)
    expected = sources.fit(sources.read_picture(tmp_path / "a.png"), (28, 28, channels))
    found = autoencoder_export.read(tf.constant((tmp_path / "a.png").read_bytes()), (28, 28, channels))
    assert np.abs(found.numpy() * 255 - expected.astype(float)).max() < 1.01
    assert expected.std() > 10 and sources.read_picture(tmp_path / "a.png", on_white=False).mean() < 140


def test_grpc_and_rest(bundle, server):
    model, _ = bundle
    images = RNG.uniform(size=(2, 28, 28, 1)).astype(np.float32)
    expected = expected_of(model, images)
    channel = grpc.insecure_channel(f"localhost:{server.grpc_port}")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "autoencoder"
    request.model_spec.signature_name = "encoder"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    outputs = stub.Predict(request, timeout=60).outputs
    np.testing.assert_allclose(tf.make_ndarray(outputs["code"]), expected["code"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tf.make_ndarray(outputs["log_var"]), expected["log_var"], rtol=1e-4, atol=1e-5)

    answer = post(server, {"signature_name": "decoder", "instances": [{"code": row}
                                                                      for row in expected["code"].tolist()]})
    pictures = answer["predictions"]
    np.testing.assert_allclose([each["pictures"] if isinstance(each, dict) else each for each in pictures],
                               expected["pictures"], atol=1e-4)


def post(server, body):
    url = f"http://localhost:{server.rest_port}/v1/models/autoencoder:predict"
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_bad_pictures_are_refused_and_the_server_goes_on(server):
    """Fault 40."""
    good = cv2.imencode(".png", np.zeros([9, 9], np.uint8))[1].tobytes()
    for bad in (b"no picture", good[:30], png_bomb(12_000, 12_000)):
        encoded = [{"image_bytes": {"b64": base64.b64encode(data).decode()}} for data in (good, bad)]
        body = {"signature_name": "image_bytes", "instances": encoded}
        with pytest.raises(urllib.error.HTTPError) as error:
            post(server, body)
        assert error.value.code == 400
        body["instances"].pop()
        assert len(post(server, body)["predictions"]) == 1


def test_requests_of_the_readme(bundle, server, monkeypatch, capsys):
    """The gRPC lines as they stand there, and the body of the first curl."""
    model, out = bundle
    text = (out / "README.md").read_text("utf-8")
    monkeypatch.chdir(out)
    code = text[text.index("    import grpc"):].replace("\n    ", "\n").strip()
    code = code.replace("localhost:8500", f"localhost:{server.grpc_port}")
    exec(compile(code, "README.md", "exec"), {})
    assert "(1, 28, 28, 1)" in capsys.readouterr().out
    body = json.loads(re.search(r"curl -s -d '(.*)' ", text)[1])
    answer = post(server, body)["predictions"][0]
    expected = probs(model.get_layer("decoder")(np.zeros([1, 2], np.float32))).numpy()[0]
    np.testing.assert_allclose(answer["pictures"] if isinstance(answer, dict) else answer, expected, atol=1e-4)


def test_a_bundle_that_differs_is_not_published(tmp_path, monkeypatch):
    config = config_of("vae")
    model = random_model(config)
    other = build("vae")  # other random weights
    monkeypatch.setattr(autoencoder_export, "write_bundle", lambda folder, model, config:
                        write(folder, other, config))
    with pytest.raises(UserError, match="must give the .* of the Keras model, and differs by"):
        autoencoder_export.export_bundle(model, config, tmp_path / "out")
    assert not export.versions(tmp_path / "out")


write = autoencoder_export.write_bundle


# predict


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(model, run folder) of a variational autoencoder with random weights."""
    folder = tmp_path_factory.mktemp("runs") / "vae"
    config = config_of("vae", latent_dim=3)
    model = random_model(config)
    opened = training.open_run(folder, config)
    opened.save_best(model, 1.0, 1)
    return model, folder


def pictures_in(folder):
    """A 28 x 28 gray PNG, a large JPEG in colour, a GIF and what is none; returns the first."""
    folder.mkdir()
    digit = RNG.integers(0, 256, (28, 28), np.uint8)
    cv2.imwrite(str(folder / "digit.png"), digit)
    cv2.imwrite(str(folder / "large.jpg"), RNG.integers(0, 256, (90, 60, 3), np.uint8))
    (folder / "other").mkdir()
    cv2.imwrite(str(folder / "other" / "digit.png"), 255 - digit)
    (folder / "bad.png").write_bytes(b"no picture")
    return digit


def test_predict_writes_pairs_and_codes(run, tmp_path):
    model, folder = run
    digit, said = pictures_in(tmp_path / "in"), []
    loaded, config = predict.load_run(folder)
    result = predict.predict([str(tmp_path / "in"), str(tmp_path / "in" / "other"), "missing.png"],
                             predict.make_reconstruct(loaded), config, tmp_path / "out", report=said.append)
    assert result["pictures"] == 3 and result["exact"] == 0 and len(said) == len(result["unreadable"])
    # The folder may be named too, for the folder in it.
    bad = {str(tmp_path / "in" / "bad.png"), "missing.png"}
    assert bad <= set(result["unreadable"]) <= bad | {str(tmp_path / "in")}
    lines = [json.loads(line) for line in (tmp_path / "out" / "codes.jsonl").read_text().splitlines()]
    assert [pathlib.Path(line["file"]).name for line in lines] == ["digit.png", "large.jpg", "digit.png"]
    assert [line["drawn"] for line in lines] == ["digit.png", "large.png", "digit_2.png"]
    assert (lines[1]["width"], lines[1]["height"]) == (60, 90)
    expected = expected_of(model, digit[None, ..., None].astype(np.float32) / 255)
    np.testing.assert_allclose(lines[0]["code"], expected["code"][0], rtol=1e-4)
    np.testing.assert_allclose(lines[0]["log_var"], expected["log_var"][0], rtol=1e-4, atol=1e-6)
    mse = np.mean((expected["pictures"][0] - digit[..., None] / 255) ** 2)
    assert lines[0]["psnr"] == pytest.approx(-10 * np.log10(mse), abs=2e-3)
    pair = cv2.imread(str(tmp_path / "out" / "digit.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(pair[:56:2, :56:2], digit)                     # above: in, enlarged twice
    np.testing.assert_allclose(pair[58::2, :56:2], expected["pictures"][0, ..., 0] * 255, atol=0.51)


def test_predict_lays_pictures_on_white(tmp_path):
    rgba = RNG.integers(0, 256, (30, 30, 4), np.uint8)
    cv2.imwrite(str(tmp_path / "clear.png"), rgba)
    config, seen = config_of("dense"), []
    model = random_model(config)

    def reconstruct(pictures):
        seen.append(pictures)
        return predict.make_reconstruct(model)(pictures)

    predict.predict([str(tmp_path / "clear.png")], reconstruct, config, tmp_path / "out")
    np.testing.assert_array_equal(seen[0][0], sources.fit(sources.read_picture(tmp_path / "clear.png"), (28, 28, 1)))
    assert seen[0].mean() > 150  # half white, half the mean of all colours


def test_predict_inverts_and_adds_noise(run, tmp_path):
    _, folder = run
    digit = pictures_in(tmp_path / "in")
    loaded, config = predict.load_run(folder)
    files = [str(tmp_path / "in" / "other" / "digit.png")]
    predict.predict(files, predict.make_reconstruct(loaded), config, tmp_path / "out", invert=True)
    pair = cv2.imread(str(tmp_path / "out" / "digit.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(pair[:56:2, :56:2], digit)
    found = predict.make_reconstruct(loaded, noise=0.3)(np.full([4, 28, 28, 1], 127, np.uint8))
    assert found["inputs"].std() == pytest.approx(0.28, abs=0.03) and found["inputs"].max() <= 1
    np.testing.assert_allclose(found["pictures"], expected_of(loaded, found["inputs"])["pictures"], atol=1e-5)
