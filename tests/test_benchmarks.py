"""The benchmarks run with today's code: each is imported, and those that are quick when small are run."""

import importlib
import pathlib
import types

import numpy as np
import pytest

from benchmarks import average_precision, heatmaps, nms, pipeline, pose_pipeline, target_encoding
from common import cli
from ssd import model as models

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_imported(name):
    if name.startswith("torch_"):
        pytest.importorskip("torch", reason="PyTorch is not installed")
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ and (name.startswith("torch_") or callable(module.main))


@pytest.mark.parametrize("name, arguments", [("train_step", (64, 2)), ("ssd_step", (2,)), ("hourglass_step", (2,))])
def test_steps_are_fed_with_what_the_losses_take(name, arguments):
    images, targets = importlib.import_module(f"benchmarks.{name}").batch(*arguments)
    assert len(images) == 2 and all(len(value) for value in targets.values())


def test_the_peer_of_yolov3_is_the_same_network():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    importlib.import_module("benchmarks.train_step").check_equal()


@pytest.mark.parametrize("name, kept, size", [("torch_yolov3", (), 64), ("torch_ssd", ("classes", "boxes"), 300)])
def test_peers_in_bfloat16_have_the_weights_of_the_others(name, kept, size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import torch_yolov3

    torch.manual_seed(0)
    net = importlib.import_module(f"benchmarks.{name}").build(4)
    images = np.random.default_rng(0).uniform(size=[1, size, size, 3]).astype(np.float32)
    with torch.inference_mode():
        expected, found = (torch_yolov3.inference(net, images, bfloat16=half, float32=kept)() for half in (False, True))
    for one, other in zip(expected, found, strict=True):
        assert (one - other.float()).abs().max() < 0.05 * one.abs().max()
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}


def run(monkeypatch, module, **values):
    monkeypatch.setattr(cli, "FLAGS", types.SimpleNamespace(**values))
    module.main([])


def test_heatmaps(monkeypatch, capsys):
    """Both sides must agree before they are timed."""
    monkeypatch.setattr(heatmaps, "medians", lambda calls, seconds: dict.fromkeys(calls, 1.0))
    run(monkeypatch, heatmaps, batch_size=2, seconds=0.1)
    assert "heatmaps to joints: ours" in capsys.readouterr().out


@pytest.mark.parametrize("module", [pipeline, pose_pipeline])
def test_pipelines(monkeypatch, capsys, module):
    monkeypatch.setattr(pipeline, "rate", lambda dataset, batch_size, seconds: float(len(next(iter(dataset))) > 0))
    run(monkeypatch, module, tfrecords=None, pictures=16, image_size=64, num_classes=20, batch_size=4, rounds=1,
        seconds=0.1)
    assert "1.00 of decoding alone" in capsys.readouterr().out


def test_target_encoding_agrees_with_its_twins():
    calls = target_encoding.candidates(3, models.anchors("vgg300"))
    for call in calls.values():
        call()
    assert {"ours", "NumPy"} <= set(calls)


def test_suppression_and_average_precision(monkeypatch, capsys):
    monkeypatch.setattr(nms, "BOXES", 200)
    monkeypatch.setattr(nms, "CLASSES", 5)
    monkeypatch.setattr(nms, "medians", lambda calls: [call() and 1.0 for call in calls])
    nms.main()
    for name, value in {"IMAGES": 20, "CLASSES": 4, "TRUTHS": 150}.items():
        monkeypatch.setattr(average_precision, name, value)
    average_precision.main()
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert all(float(row.split()[-1]) < 1e-6 for row in rows)
