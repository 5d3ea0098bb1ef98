"""Training as a whole: the step against PyTorch, replicas, resuming with the pool, averages, rates, mistakes."""

import csv
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import optimizers, records, training
from common.errors import UserError
from cyclegan import evaluate, features, train
from cyclegan import model as models
from cyclegan.model import discriminators, generators
from cyclegan.pool import ImagePool
from tests.cyclegan.domains import write_records

SMALL = {"image_size": 16, "num_blocks": 1, "filters": 4, "batch_size": 2, "epochs": 2, "pool_size": 4,
         "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module", autouse=True)
def quick_judge():
    """A judge that has seen two batches: what it says is not tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "train_judge", functools.partial(features.train_judge, steps=2))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 8 reddish and 5 bluish pictures for training, 3 and 2 for testing."""
    rng = np.random.default_rng(0)

    def pictures(count, channel):
        images = rng.integers(0, 120, [count, 20, 24, 3])
        images[..., channel] += 120
        return images.astype(np.uint8)

    return write_records(tmp_path_factory.mktemp("records"), {
        "trainA": pictures(8, 0), "trainB": pictures(5, 2), "testA": pictures(3, 0), "testB": pictures(2, 2)})


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, records.read_manifest(folder))


def stored(run, step):
    """{name: array} of everything in a checkpoint."""
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / f"ckpt-{step}"))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()
            if "OBJECT_GRAPH" not in key and "save_counter" not in key}


def rows_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Shown:
    """Stands in for the pool: shows the discriminators the same pictures whatever was made, and keeps that."""

    def __init__(self, pictures):
        self.pictures = {domain: tf.constant(value) for domain, value in pictures.items()}
        self.asked = {domain: tf.Variable(tf.zeros_like(value)) for domain, value in pictures.items()}

    def query(self, fakes):
        for domain, value in fakes.items():
            self.asked[domain].assign(value)
        return self.pictures


def pictures(count, size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {side: rng.uniform(-1, 1, [count, size, size, 3]).astype(np.float32) for side in "ab"}


def networks():
    """Both generators and both discriminators, with weights that make every layer matter."""
    model, judges = generators(1, 4), discriminators(4)
    rng = np.random.default_rng(1)
    for weight in [*model.weights, *judges.weights]:
        weight.assign(np.asarray(weight) + rng.normal(0, 0.1, weight.shape))
    return model, judges


def step_of(model, judges, generator_optimizer, discriminator_optimizer, pool, count, **options):
    generator_optimizer.build(model.trainable_variables)
    discriminator_optimizer.build(judges.trainable_variables)
    options = {"cycle_weight": 10.0, "identity_weight": 5.0, "global_batch_size": count, **options}
    return train.make_train_step(model, judges, generator_optimizer, discriminator_optimizer, pool,
                                 tf.distribute.get_strategy(), **options)


@pytest.mark.parametrize("kind", ["pool", "loss scale"])
def test_a_step_is_that_of_pytorch(kind):
    """Parts, gradients of all four networks and pictures made, against the article's six passes in PyTorch.

    SGD at a rate of 1 takes the gradient itself off the weights. In one case the discriminators see other pictures
    than were made; in the other both optimizers scale their loss by 2**15 and back.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.cyclegan import torch_oracle

    model, judges = networks()
    real, shown = pictures(2), pictures(2, seed=5)
    twins = torch_oracle.weights_of(model), torch_oracle.weights_of(judges)
    shown = {side: torch_oracle.pictures(value) for side, value in shown.items()} if kind == "pool" else None
    expected, generator_total, discriminator_total = torch_oracle.step(
        *twins, *(torch_oracle.pictures(real[side]) for side in "ab"), num_blocks=1, shown=shown)

    pool = Shown(pictures(2, seed=5)) if kind == "pool" else ImagePool(0, 16, 2)
    made = [keras.optimizers.SGD(1.0) for _ in range(2)]
    if kind == "loss scale":
        made = [keras.mixed_precision.LossScaleOptimizer(optimizer) for optimizer in made]
    train_step = step_of(model, judges, *made, pool, 2)
    parts = train_step(iter([real]))

    assert list(parts) == list(expected)
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(value.item(), rel=1e-4), name
    for ours, twin, total in ((model, twins[0], generator_total), (judges, twins[1], discriminator_total)):
        gradients = torch.autograd.grad(total, list(twin.values()))
        weights = training.named_variables(ours).values()
        for weight, (name, before), gradient in zip(weights, twin.items(), gradients):
            found, gradient = before.detach().numpy() - weight.numpy(), gradient.numpy()
            # Float32 through four networks, one behind the other.
            np.testing.assert_allclose(found, gradient, rtol=2e-3, atol=1e-3 * np.abs(gradient).max() + 1e-6,
                                       err_msg=name)
    if kind == "pool":
        weights = torch_oracle.part(twins[0], "generator_a2b")
        fake_b = torch_oracle.generator(weights, torch_oracle.pictures(real["a"]), 1)
        np.testing.assert_allclose(pool.asked["b"], fake_b.detach().permute(0, 2, 3, 1), atol=1e-4)


def test_adam_of_both_is_pytorchs():
    """Four steps with the optimizers of `make_optimizer`, beta_1 0.5, on a rate that falls in the second half."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.cyclegan import torch_oracle

    model, judges = networks()
    twins = torch_oracle.weights_of(model), torch_oracle.weights_of(judges)
    config = {"schedule": "linear", "learning_rate": 2e-4, "precision": "float32"}
    made = [train.make_optimizer(config, 4) for _ in range(2)]
    train_step = step_of(model, judges, *made, ImagePool(0, 16, 1), 1)
    theirs = [torch.optim.Adam(twin.values(), lr=2e-4, betas=(0.5, 0.999), eps=1e-7) for twin in twins]
    start = [weight.numpy() for weight in [*model.weights, *judges.weights]]
    batches = [pictures(1, seed=seed) for seed in range(4)]
    dataset = iter(tf.data.Dataset.from_tensor_slices({side: [batch[side] for batch in batches] for side in "ab"}))
    for rate, batch in zip((2e-4, 2e-4, 2e-4, 1e-4), batches):
        train_step(dataset)
        a, b = (torch_oracle.pictures(batch[side]) for side in "ab")
        _, *totals = torch_oracle.step(*twins, a, b, num_blocks=1)
        gradients = [torch.autograd.grad(total, list(twin.values())) for twin, total in zip(twins, totals)]
        for twin, optimizer, each in zip(twins, theirs, gradients):
            for weight, gradient in zip(twin.values(), each):
                weight.grad = gradient
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    expected = [weight.detach().numpy() for twin in twins for weight in twin.values()]
    found = [weight.numpy() for weight in [*model.weights, *judges.weights]]
    errors = np.concatenate([np.abs(one - other).ravel() for one, other in zip(found, expected)])
    changes = np.concatenate([np.abs(one - other).ravel() for one, other in zip(found, start)])
    # Adam divides by the size of a gradient: where that is hardly above the rounding, the step is anything.
    assert np.median(changes) > 1e-4 and np.median(errors) < 1e-6 and np.mean(errors > 2e-5) < 5e-3


def test_nothing_is_computed_for_networks_that_do_not_learn():
    """In the step that runs each convolution has as many gradients of its kernel as times it was used to learn.

    Without the identity, which is then not computed either; the cycle is what it is.
    """
    model, judges = networks()
    train_step = step_of(model, judges, keras.optimizers.SGD(), keras.optimizers.SGD(), ImagePool(2, 16, 2), 2,
                         identity_weight=0.0)
    batches = iter(tf.data.Dataset.from_tensors(pictures(2)).repeat())
    graph = train_step.get_concrete_function(batches).graph
    needed, open_ = set(), [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while open_:
        operation = open_.pop()
        if operation not in needed:
            needed.add(operation)
            open_ += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    kinds = [operation.type for operation in needed]
    # 8 kernels of a generator, each in two passes; 5 of a discriminator, once on real and shown pictures together.
    assert kinds.count("Conv2DBackpropFilter") == 2 * 8 * 2 + 2 * 5

    found = model(pictures(2))
    cycled = model({"a": found["b2a"], "b": found["a2b"]})
    parts = train_step(batches)
    assert list(parts) == ["gan_a2b", "gan_b2a", "cycle_a", "cycle_b", "discriminator_a", "discriminator_b"]
    for side, way in (("a", "b2a"), ("b", "a2b")):
        expected = np.abs(cycled[way] - pictures(2)[side]).mean()
        assert float(parts[f"cycle_{side}"]) == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def plain_sgd(monkeypatch):
    """SGD in place of Adam, whose steps hide a wrong factor and blow up the rounding of gradients near zero.

    Its steps are small, and larger weights in front of the normalisations make the network less steep: of half a
    million ReLUs rounding tips one over every few steps, and the gradient of all that is before it jumps.
    """
    def make_optimizer(config, total_steps):
        return optimizers.SGD(5e-5, momentum=0.5)

    monkeypatch.setattr(train, "make_optimizer", make_optimizer)
    monkeypatch.setattr(models, "normal", lambda: keras.initializers.RandomNormal(0.0, 0.1))


def test_two_replicas_equal_one(folder, tmp_path, two_replicas, plain_sgd):
    """Faults 14 and 20, with the pool full from step 1: weights, slots, pool; then one goes on for two."""
    values = {"pool_size": 1, "limit": 2, "augment": True, "eval_every": 4}
    whole, part = config_of(folder, **values, epochs=4), config_of(folder, **values, epochs=3)
    metrics = train.train(tmp_path / "one", whole, tf.distribute.get_strategy())
    assert train.train(tmp_path / "two", part, two_replicas)["val_cycle_a"] > 0
    one, two = (stored(tmp_path / name, 3) for name in ("one", "two"))
    assert one.keys() == two.keys() and int(one["pool/queries/.ATTRIBUTES/VARIABLE_VALUE"]) == 3
    assert sum(name.startswith("pool/images") for name in one) == 2
    training.set_seed(0)
    before = training.named_variables(generators(1, 4))
    changes = [np.abs(one[f"model/{name.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE"] - weight.numpy()).max()
               for name, weight in before.items()]
    assert np.median(changes) > 1e-4
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-5, err_msg=name)

    again = train.train(tmp_path / "two", whole, tf.distribute.get_strategy())
    assert again == pytest.approx(metrics, rel=1e-3)                       # of pictures rounded to bytes
    one, two = (stored(tmp_path / name, 4) for name in ("one", "two"))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    pool = ImagePool(1, 16, 2, seed=0)
    swaps = [pool.draws(tf.constant(step, tf.int64), number)[1].numpy() for step in range(4) for number in (0, 1)]
    assert np.any(swaps[2:6]) and np.any(swaps[6:])                        # earlier pictures were shown


KILLED = """
import functools, os, pathlib, signal, sys, json
sys.path.insert(0, {root!r})
import tensorflow as tf
from cyclegan import features, train
from common import training
features.train_judge = functools.partial(features.train_judge, steps=2)
taken = training.Log.step
def step(self, number, *args, **kwargs):
    taken(self, number, *args, **kwargs)
    if number == {at}:
        os.kill(os.getpid(), signal.{signal})
training.Log.step = step
config = json.loads(pathlib.Path({config!r}).read_text())
train.train({run!r}, config, tf.distribute.get_strategy())
"""


def run_until(number, name, config, run, tmp_path):
    """The exit code of a process that trains until it gets the signal `name` behind step `number`."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    script = KILLED.format(root=str(pathlib.Path(train.__file__).parents[1]), config=str(file), run=str(run),
                           at=number, signal=name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    return done.returncode, done.stderr.decode()[-2000:]


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path):
    """Fault 13: kill -9 behind step 5, when the pool has been full for three; two optimizers."""
    config = config_of(folder)
    code, said = run_until(5, "SIGKILL", config, tmp_path / "killed", tmp_path)
    assert code == -signal.SIGKILL, said
    saved = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("*.index"))
    assert saved == ["ckpt-2.index", "ckpt-4.index"]
    for name in ("killed", "whole"):
        train.train(tmp_path / name, config, tf.distribute.get_strategy())
    killed, whole = (stored(tmp_path / name, 8) for name in ("killed", "whole"))
    assert killed.keys() == whole.keys() and np.ptp(whole["pool/images_a/.ATTRIBUTES/VARIABLE_VALUE"]) > 0
    for key, value in whole.items():
        np.testing.assert_array_equal(killed[key], value, err_msg=key)


def test_an_epoch_is_the_longer_side_and_its_means_are_its_own(folder, tmp_path, monkeypatch):
    """Every part of both sides starts anew in every epoch (the article's code forgot four of ten); 8 and 5
    pictures in batches of 2 are 4 steps; validation where it is due, pictures after every epoch."""
    steps, taken = [], training.Log.step

    def step(self, number, parts, **kwargs):
        steps.append({name: float(part) for name, part in parts.items()})
        taken(self, number, parts, **kwargs)

    monkeypatch.setattr(training.Log, "step", step)
    metrics = train.train(tmp_path / "run", config_of(folder, epochs=3), tf.distribute.get_strategy())
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == ["4", "8", "12"] and len(steps) == 12 and len(steps[0]) == 8
    for number, row in enumerate(rows):
        for name in steps[0]:
            mean = np.mean([parts[name] for parts in steps[4 * number:4 * number + 4]])
            assert float(row[name]) == pytest.approx(mean, rel=1e-6), name
    assert [bool(row["score"]) for row in rows] == [False, True, True]
    assert metrics["score"] == float(rows[-1]["score"])
    drawn = sorted(path.name for path in (tmp_path / "run" / "samples").glob("epoch*"))
    assert drawn == ["epoch_0001.png", "epoch_0002.png", "epoch_0003.png"]
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert best["value"] == min(float(row["score"]) for row in rows[1:])
    assert train.train(tmp_path / "run", config_of(folder, epochs=3), tf.distribute.get_strategy()) == {}


def test_pairs_are_not_fixed(folder):
    """Each side in an order of its own, and the shorter one starts anew: no picture of A keeps its partner."""
    config = config_of(folder, batch_size=1, limit=4)
    partners = {}
    for step, batch in zip(range(16), training_batches(folder, config)):
        a, b = (batch[side].numpy().tobytes() for side in "ab")
        partners.setdefault(a, []).append(b)
    assert [len(found) for found in partners.values()] == [4, 4, 4, 4]
    assert len({b for found in partners.values() for b in found}) == 4
    assert all(len(set(found)) > 1 for found in partners.values())


def training_batches(folder, config, start_step=0):
    return train.training_batches(folder, config, tf.distribute.get_strategy(), start_step)


def test_rates_of_both_optimizers():
    """LinearDecay: 2e-4 for half of the steps, then evenly to zero behind the last."""
    config = {**train.DEFAULTS}
    optimizer = train.make_optimizer(config, 200)
    assert (optimizer.beta_1, optimizer.beta_2) == (0.5, 0.999)
    found = []
    for step in (0, 100, 150, 199, 200):
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    assert found == pytest.approx([2e-4, 2e-4, 1e-4, 2e-6, 0], rel=1e-4)
    scaled = train.make_optimizer({**config, "precision": "mixed_float16"}, 200)
    assert isinstance(scaled, keras.mixed_precision.LossScaleOptimizer)


def test_half_precision_trains_and_keeps_float32_weights(folder, tmp_path):
    """--limit too: it trains on the first pictures alone, validates on them, and the cycle gets better."""
    config = config_of(folder, precision="mixed_float16", limit=4, epochs=12, eval_every=12, learning_rate=2e-3)
    try:
        metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    finally:
        training.set_precision("float32")
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 12 and rows[-1]["step"] == "24"
    assert float(rows[-1]["cycle_a"]) < 0.9 * float(rows[0]["cycle_a"])
    assert all(np.isfinite(value) for value in metrics.values())
    values = stored(tmp_path / "run", 24)
    assert all(value.dtype != np.float16 for value in values.values())
    assert sum("optimizer/" in name and "scale" in name for name in values) == 2


def test_nan_stops_training_and_names_the_part(folder, tmp_path):
    config = config_of(folder, learning_rate=1e30, schedule="constant", epochs=20, eval_every=20)
    message = r"Loss part \w+_\w+ is .* at step \d+.*lower --learning_rate"
    with pytest.raises(training.NonFiniteLoss, match=message):
        train.train(tmp_path / "run", config, tf.distribute.get_strategy())


@pytest.mark.parametrize("values, message", [
    ({"image_size": 30}, "--image_size must be a multiple of 4; 30 came"),
    ({"cycle_weight": -1.0}, "--cycle_weight must be a number from 0; -1.0 came"),
    ({"identity_weight": float("nan")}, "--identity_weight must be a number from 0; nan came"),
    ({"batch_size": 3}, "multiple of the 2 replicas"),
    ({"features": "nowhere"}, "--features must be judge, inception"),
])
def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas, values, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(tmp_path / "run", config_of(folder, **values), two_replicas)
    assert "\n" not in str(error.value)


def test_a_run_of_other_networks_is_not_overwritten(folder, tmp_path):
    training.open_run(tmp_path / "run", config_of(folder), train.IDENTITY)
    for values, message in (({"filters": 8}, "filters = 4, but 8 was asked for"),
                            ({"upsample": "resize"}, 'upsample = "transpose", but "resize" was asked for'),
                            ({"pool_size": 3}, "pool_size = 4, but 3 was asked for")):
        with pytest.raises(UserError, match=message):
            train.train(tmp_path / "run", config_of(folder, **values), tf.distribute.get_strategy())
    config = config_of(folder, num_blocks=None)
    assert config["num_blocks"] == 6 and config["labels"] == ["cat", "dog"]
    assert set(train.IDENTITY) <= set(config) and {"learning_rate", "epochs"}.isdisjoint(train.IDENTITY)


def test_round_trip_by_hand():
    """Sent 0, 1, 2: 0 comes back and is taken for the target; 1 comes back and is not; 2 comes back as 0."""
    images = np.zeros([3, 8, 8, 3], np.uint8)
    images[1, :4], images[2, :, 4:] = 200, 90
    found = {"a2b": {"images": images, "cycled": (images[[0, 1, 0]] + 20).astype(np.uint8),
                     "logit/translated": np.array([2.0, -1.0, 3.0])},
             "b2a": {"images": images, "cycled": images, "logit/translated": np.array([2.0, -1.0, -3.0])}}
    assert evaluate.round_trip(found, "a2b").tolist() == [True, False, False]
    assert evaluate.round_trip(found, "b2a").tolist() == [False, True, True]
