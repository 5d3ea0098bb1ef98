"""Damaged, foreign and unwritable checkpoints, and the weights that evaluation loads."""

import json
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints, files, training
from common.errors import UserError
from tests.common import toy


def state(units=3, value=0.0):
    """(model, optimizer, items) of a small model whose kernel is filled with `value`."""
    model = toy.small_model(units)
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    model.weights[0].assign(tf.fill(model.weights[0].shape, value))
    return model, optimizer, {"model": model, "optimizer": optimizer}


@pytest.fixture
def saved(tmp_path):
    """A run folder with checkpoints of the steps 1, 2, 3, whose kernels are 1, 2, 3."""
    model, _, items = state()
    several = training.Checkpoints(tmp_path / "checkpoints", items)
    for step in (1, 2, 3):
        model.weights[0].assign(tf.fill(model.weights[0].shape, float(step)))
        several.save(step)
    return tmp_path


def restored(folder, **options):
    """(restored step, value of the kernel)"""
    model, _, items = state(**options)
    step = training.Checkpoints(folder / "checkpoints", items).restore()
    return step, float(model.weights[0][0, 0])


def test_nothing_to_restore(tmp_path):
    assert restored(tmp_path, value=7.0) == (0, 7.0)


def test_newest_is_restored_and_old_ones_are_removed(saved):
    assert restored(saved) == (3, 3.0)
    model, _, items = state()
    several = training.Checkpoints(saved / "checkpoints", items, keep=2)
    several.restore()
    several.save(4)
    assert {path.stem for path in (saved / "checkpoints").glob("*.index")} == {"ckpt-3", "ckpt-4"}
    assert tf.train.latest_checkpoint(saved / "checkpoints") == str(saved / "checkpoints" / "ckpt-4")


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, delete, empty])
@pytest.mark.parametrize("name", ["data-00000-of-00001", "index"])
def test_damaged_checkpoint_falls_back(saved, capfd, name, damage):
    """The older one is used, the damaged one named; the next save removes it."""
    damage(saved / "checkpoints" / f"ckpt-3.{name}")
    model, _, items = state()
    several = training.Checkpoints(saved / "checkpoints", items)
    assert several.restore() == 2
    assert float(model.weights[0][0, 0]) == 2.0
    assert f"{saved}/checkpoints/ckpt-3 is damaged" in capfd.readouterr().err
    step = training.load_weights(saved, model, "last")  # 3 where the damage is in the optimizer's part
    assert step == float(model.weights[0][0, 0]) >= 2
    several.save(3)
    assert restored(saved) == (3, float(step))


def test_every_flipped_byte_is_noticed_or_harmless(saved):
    """A flip anywhere in either file: the step before, or this step with the right values."""
    for name in ("ckpt-3.index", "ckpt-3.data-00000-of-00001"):
        path = saved / "checkpoints" / name
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 25)):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1:])
            assert restored(saved) in ((2, 2.0), (3, 3.0)), (name, position)
        path.write_bytes(whole)


def test_garbage_in_the_checkpoint_file(saved):
    (saved / "checkpoints" / "checkpoint").write_text("\0garbage")
    assert restored(saved) == (3, 3.0)


def test_never_silently_from_zero(saved):
    for path in (saved / "checkpoints").glob("ckpt-*.index"):
        path.write_text("garbage")
    with pytest.raises(UserError, match="none of them can be read"):
        restored(saved)
    with pytest.raises(UserError, match="none of them can be read"):
        training.load_weights(saved, toy.small_model())


def test_killed_in_the_very_first_save(saved, capfd):
    """Data without an index, and no other checkpoint: the run starts, and says what it found."""
    for path in (saved / "checkpoints").glob("ckpt-*.index"):
        path.unlink()
    with pytest.raises(UserError, match="none of them can be read"):  # several were not lost in one save
        restored(saved)
    for step in (2, 3):
        (saved / "checkpoints" / f"ckpt-{step}.data-00000-of-00001").unlink()
    assert restored(saved) == (0, 0.0)
    assert "ckpt-1 is damaged (ckpt-1.index is missing)" in capfd.readouterr().err


def test_leftovers_of_an_interrupted_save_are_removed(saved):
    leftover = saved / "checkpoints" / "ckpt-4_temp"
    leftover.mkdir()
    (leftover / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    temporary = saved / "checkpoints" / f"{files.PREFIX}1-best.weights.h5"
    temporary.write_bytes(b"half")
    assert restored(saved) == (3, 3.0)
    assert not leftover.exists()
    (saved / "config.json").write_text("{}")
    training.open_run(saved, {})
    assert not temporary.exists()


def test_other_number_of_classes_names_layer_and_shapes(saved):
    with pytest.raises(UserError, match=r"model/head/kernel is \[4, 3\] in .*ckpt-3, but \[4, 5\] in this"):
        restored(saved, units=5)
    with pytest.raises(UserError, match=r"head/kernel is \[4, 3\] in .*ckpt-3, model, but \[4, 5\] in this"):
        training.load_weights(saved, toy.small_model(5))
    with pytest.raises(UserError, match="Train first"):
        training.load_weights(saved / "nowhere", toy.small_model())


def test_any_other_structure_is_refused(saved):
    """A layer more, a layer less, another optimizer, a missing group."""
    inputs = keras.Input([4])
    x = keras.layers.Dense(3, name="head")(inputs)
    larger = keras.Model(inputs, keras.layers.Dense(3, name="top")(x))
    model, optimizer, items = state()
    sgd = keras.optimizers.SGD(0.1)
    sgd.build(model.trainable_variables)
    for others, words in (({"model": larger, "optimizer": optimizer}, "has no model/top/kernel"),
                          ({"model": model, "optimizer": sgd}, "has optimizer/head_"),
                          ({"model": model}, "has optimizer/"),
                          ({**items, "pool": tf.Variable([1.0])}, "has no pool/0")):
        with pytest.raises(UserError, match=words):
            training.Checkpoints(saved / "checkpoints", others).restore()


def test_unfinite_values_are_not_saved(saved):
    model, _, items = state()
    several = training.Checkpoints(saved / "checkpoints", items)
    several.restore()
    model.weights[1].assign([1.0, np.nan, 1.0])
    with pytest.raises(UserError, match="model/head/bias is not finite after step 4.*step 3 is kept"):
        several.save(4)
    assert restored(saved) == (3, 3.0)


@pytest.fixture
def full_disk():
    """A function that limits all files that this process writes to so many bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path, full_disk):
    """During a checkpoint, best weights, a JSON file: one line, the old one is kept, the next save works."""
    model, _, items = state(units=5000)
    several = training.Checkpoints(tmp_path / "checkpoints", items)
    best = tmp_path / "checkpoints" / "best.weights.h5"
    several.save(1)
    checkpoints.write_best(best, model, {"value": 0.0, "step": 1})
    files.write_json(tmp_path / "some.json", [1])
    before = sorted(tmp_path.rglob("*"))
    model.weights[0].assign(tf.ones_like(model.weights[0]))
    full_disk(20_000)
    with pytest.raises(UserError, match="ckpt-2 cannot be written.*step 1 is kept"):
        several.save(2)
    with pytest.raises(UserError, match="best.weights.h5 cannot be written"):
        checkpoints.write_best(best, model, {"value": 1.0, "step": 2})
    with pytest.raises(UserError, match="File too large.*is kept"):
        files.write_json(tmp_path / "some.json", [0] * 20_000)
    full_disk(None)
    assert sorted(tmp_path.rglob("*")) == before
    assert json.loads((tmp_path / "some.json").read_text()) == [1]
    assert restored(tmp_path, units=5000) == (1, 0.0)
    assert training.load_weights(tmp_path, toy.small_model(5000)) == 1
    several.save(2)
    assert restored(tmp_path, units=5000) == (2, 1.0)


def test_best_weights(saved, capfd):
    """Kept by value, loaded strictly, with the step; the last checkpoint stands in where there are none."""
    run = training.open_run(saved / "other", {})
    model, _, _ = state()
    assert training.load_weights(saved, model) == 3  # no best weights yet
    assert "last weights, step 3" in capfd.readouterr().err
    for value, step, expected in ((0.5, 10, True), (0.4, 20, False), (np.nan, 30, False), (0.6, 40, True)):
        model.weights[0].assign(tf.fill([4, 3], float(step)))
        assert run.save_best(model, value, step) is expected
    other = toy.small_model()
    assert training.load_weights(run.folder, other) == 40
    assert "best weights, step 40" in capfd.readouterr().err
    np.testing.assert_array_equal(other.weights[0], np.full([4, 3], 40.0))
    assert json.loads((run.folder / "checkpoints" / "best.json").read_text()) == {"value": 0.6, "step": 40}
    other.load_weights(run.folder / "checkpoints" / "best.weights.h5")  # an ordinary file of Keras
    with pytest.raises(UserError, match=r"head/kernel is \[4, 3\] in .*best.weights.h5, but \[4, 5\] in"):
        training.load_weights(run.folder, toy.small_model(5))
    cut(run.folder / "checkpoints" / "best.weights.h5")
    with pytest.raises(UserError, match="best.weights.h5"):
        training.load_weights(run.folder, toy.small_model())
    assert run.save_best(model, 0.1, 50) is True  # a damaged file is written anew
    assert "written anew" in capfd.readouterr().err


def test_averages_are_what_evaluation_loads(tmp_path):
    """From the last checkpoint, too, also where Keras puts the model's name before the path."""
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, name="head")], name="whole")
    average = training.ema_variables(model.trainable_variables)
    average[0].assign([[5.0], [6.0]])
    training.Checkpoints(tmp_path / "checkpoints", {"model": model, "ema": average}).save(1)
    training.load_weights(tmp_path, model, "last")
    np.testing.assert_array_equal(model.weights[0], [[5.0], [6.0]])


def test_names_do_not_depend_on_what_the_process_made_before():
    """Seed generators and optimizers are numbered by process; the names in a checkpoint are not."""
    first, second = [
        {f"{group}/{name}" for group, item in state()[2].items() for name in training.named_variables(item)}
        for _ in range(2)]
    assert first == second
    assert "model/seed_generator/state" in first and "optimizer/iteration" in first
    model = toy.small_model()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    optimizer.build(model.trainable_variables)
    names = training.named_variables(optimizer)
    assert len(names) == len(optimizer.variables) and "dynamic_scale" in names


def test_two_replicas_to_one_and_back(two_replicas, tmp_path):
    """Saved with two, restored with one, and the other way: equal; so are the copies on both replicas."""
    one = tf.distribute.MirroredStrategy(["CPU:0"])
    for number, (source, target) in enumerate(((two_replicas, one), (one, two_replicas))):
        training.set_seed(number)
        first = toy.Toy(source)
        for batch in training.distribute(source, toy.dataset, toy.BATCH):
            first.step(batch)
            if int(first.count.numpy()) == 3:
                break
        folder = tmp_path / str(number)
        training.Checkpoints(folder, first.items()).save(3)
        second = toy.Toy(target)
        assert training.Checkpoints(folder, second.items()).restore() == 3
        values, others = first.values(), second.values()
        for name in values:
            np.testing.assert_array_equal(values[name], others[name], err_msg=name)
        for each, strategy in ((first, source), (second, target)):
            for variable in each.model.variables + each.ema:
                held = variable.value if isinstance(variable, keras.Variable) else variable
                copies = [copy.numpy() for copy in strategy.experimental_local_results(held)]
                assert all(np.array_equal(copy, copies[0]) for copy in copies), variable
