"""The image pool: a slow twin in Python, its distribution, the graph, checkpoints, two replicas."""

import numpy as np
import pytest
import tensorflow as tf

from common import training
from common.errors import UserError
from cyclegan.pool import ImagePool

SIDE = 2


def numbered(step, count):
    """{"a", "b"}: pictures whose value says step, place and domain."""
    return {domain: np.stack([np.full([SIDE, SIDE, 3], 1000 * step + 10 * place + number, np.float32)
                              for place in range(count)]) for number, domain in enumerate("ab")}


def asked(pool, fakes, strategy=None):
    """What a global batch of fakes gets back, put together from the replicas: {"a", "b"} [G]."""
    strategy = strategy or tf.distribute.get_strategy()
    count = strategy.num_replicas_in_sync
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: {domain: tf.constant(np.split(value, count)[context.replica_id_in_sync_group])
                         for domain, value in fakes.items()})
    function = pool.__dict__.setdefault("test_query", tf.function(
        lambda shares: strategy.run(pool.query, args=(shares,))))
    found = function(shares)
    parts = {domain: [part.numpy() for part in strategy.experimental_local_results(value)]
             for domain, value in found.items()}
    found = {domain: np.concatenate(value) for domain, value in parts.items()}
    for value in found.values():
        assert (np.ptp(value, axis=(1, 2, 3)) == 0).all()                  # no picture is put together from two
    return {domain: value[:, 0, 0, 0].astype(int) for domain, value in found.items()}


class SlowPool:
    """The reference's pool: a list of pictures for each place, which a number in 0..1 and a slot decide about."""

    def __init__(self, pool_size):
        self.pool_size = pool_size
        self.lists = {}

    def query(self, place, image, slot, swap):
        pictures = self.lists.setdefault(place, [])
        if len(pictures) < self.pool_size:
            pictures.append(image)
            return image
        if swap:
            old, pictures[slot] = pictures[slot], image
            return old
        return image


def test_equals_a_slow_pool_over_200_queries():
    pool, slow = ImagePool(15, SIDE, 3, seed=4), {domain: SlowPool(5) for domain in "ab"}
    for step in range(200):
        fakes = numbered(step, 3)
        found = asked(pool, fakes)
        for number, domain in enumerate("ab"):
            slots, swaps, _ = pool.draws(tf.constant(step, tf.int64), number)
            expected = [slow[domain].query(place, int(fakes[domain][place, 0, 0, 0]), int(slots[place]),
                                           bool(swaps[place])) for place in range(3)]
            assert found[domain].tolist() == expected
    kept = {domain: variable.numpy()[:, 0, 0, 0].astype(int).reshape(3, 5).tolist()
            for domain, variable in zip("ab", pool.variables)}
    assert kept == {domain: [slow[domain].lists[place] for place in range(3)] for domain in "ab"}


def test_draws_are_of_the_paper():
    """Nothing is swapped before the pool is full, then half; every slot as often; places and domains differ."""
    def draws(seed, domain):
        pool = ImagePool(20, SIDE, 4, seed)
        function = tf.function(lambda steps: tf.map_fn(
            lambda step: pool.draws(step, domain), steps, fn_output_signature=(tf.int64, tf.bool, tf.bool)))
        return [value.numpy() for value in function(tf.range(4000, dtype=tf.int64))]

    slots, swapped, kept = draws(1, 0)                                     # [4000, 4]
    assert (slots[:5] == np.arange(5)[:, None]).all() and kept[:5].all() and not swapped[:5].any()
    slots, swapped = slots[5:], swapped[5:]
    assert (kept[5:] == swapped).all()
    # 15,980 draws: five deviations of a share of 0.5 are 0.02, of a share of 0.2 they are 0.016.
    assert abs(swapped.mean() - 0.5) < 0.02
    shares = np.bincount(slots.ravel(), minlength=5) / slots.size
    assert len(shares) == 5 and np.abs(shares - 0.2).max() < 0.016
    assert abs(np.mean(slots[swapped] == 0) - 0.2) < 0.023                 # slot and swap are independent
    for one in range(4):
        for other in range(one):
            assert abs(np.mean(swapped[:, one] == swapped[:, other]) - 0.5) < 0.04
    for other in (draws(1, 1), draws(2, 0)):                               # another domain, another seed
        assert abs(np.mean(swapped == other[1][5:]) - 0.5) < 0.02


def test_is_in_the_graph():
    """Traced once, no Python behind it, and no operation reads the whole pool."""
    pool = ImagePool(6, SIDE, 2)
    traces = []

    @tf.function
    def query(fakes):
        traces.append(1)
        return pool.query(fakes)

    fakes = {domain: tf.constant(value) for domain, value in numbered(0, 2).items()}
    for _ in range(5):
        query(fakes)
    assert len(traces) == 1
    operations = query.get_concrete_function(fakes).graph.get_operations()
    assert not any("Py" in operation.type for operation in operations)
    assert not any(output.shape.rank and output.shape[0] == 6 for operation in operations
                   for output in operation.outputs)


def test_goes_on_from_a_checkpoint_and_on_other_replicas(two_replicas, tmp_path):
    """Two replicas fill it and save; one goes on: what each gets is what one replica got all the way."""
    whole = ImagePool(12, SIDE, 4, seed=7)
    with two_replicas.scope():
        halves = ImagePool(12, SIDE, 4, seed=7)
    for step in range(12):
        fakes = numbered(step, 4)
        expected, found = asked(whole, fakes), asked(halves, fakes, two_replicas)
        for domain in "ab":
            np.testing.assert_array_equal(found[domain], expected[domain])
    for variable, twin in zip(halves.variables, whole.variables):
        for copy in two_replicas.experimental_local_results(variable):
            np.testing.assert_array_equal(copy.numpy(), twin.numpy())
    training.Checkpoints(tmp_path, {"pool": halves.variables}).save(12)
    again = ImagePool(12, SIDE, 4, seed=7)
    assert training.Checkpoints(tmp_path, {"pool": again.variables}).restore() == 12
    earlier = False
    for step in range(12, 24):
        fakes = numbered(step, 4)
        expected, found = asked(whole, fakes), asked(again, fakes)
        for domain in "ab":
            np.testing.assert_array_equal(found[domain], expected[domain])
            earlier |= (found[domain] < 12_000).any()
    assert earlier                                                         # pictures from before the checkpoint


@pytest.mark.parametrize("pool_size, global_batch_size, lane", [
    (50, 1, 50), (50, 2, 25), (50, 16, 4), (50, 64, 1), (3, 2, 2), (0, 16, 0)])
def test_holds_the_papers_pictures_in_all(pool_size, global_batch_size, lane):
    """50 of a domain whatever the batch, rounded up to as many for each place: 16 times 4 are 64."""
    pool = ImagePool(pool_size, SIDE, global_batch_size)
    shapes = [variable.shape for variable in pool.variables[:-1]]
    assert shapes == [(global_batch_size * lane, SIDE, SIDE, 3)] * (2 if lane else 0)


def test_half_are_earlier_ones_of_the_last_steps():
    """16 places, 50 in all: half of what comes back is earlier, drawn from the last pictures that were kept."""
    pool, earlier, ages = ImagePool(50, SIDE, 16, seed=3), [], []
    for step in range(300):
        found = asked(pool, numbered(step, 16))["b"]
        place = found % 1000 // 10
        assert (place == np.arange(16)).all()                              # each place has pictures of its own
        if step >= 4:
            earlier.append(found // 1000 < step)
            ages += list((step - found // 1000)[earlier[-1]])
    # 4,736 draws: five deviations of a share of 0.5 are 0.036. A slot is written again after 2 x 4 steps on average.
    assert abs(np.mean(earlier) - 0.5) < 0.036 and abs(np.mean(ages) - 8) < 0.8


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_older_checkpoint_with_a_pool_for_each_place(replicas, two_replicas, tmp_path, capsys):
    """Its pool had 5 pictures for each of 4 places; this one has 2, and takes the first two of each."""
    older = ImagePool(20, SIDE, 4, seed=7)
    for step in range(9):
        asked(older, numbered(step, 4))
    training.Checkpoints(tmp_path, {"pool": older.variables}).save(9)
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        pool = ImagePool(5, SIDE, 4, seed=7)
    assert training.Checkpoints(tmp_path, {"pool": pool.variables}, older={"pool": pool.cut}).restore() == 9
    assert "pool/images_a is [20, 2, 2, 3], as an older version kept it; [8, 2, 2, 3] of it" in capsys.readouterr().err
    for variable, twin in zip(pool.variables, older.variables):
        expected = twin.numpy()
        if expected.ndim:
            expected = expected[[0, 1, 5, 6, 10, 11, 15, 16]]
        for copy in strategy.experimental_local_results(variable):
            np.testing.assert_array_equal(copy.numpy(), expected)
    with pytest.raises(UserError, match="images_a is .20, 2, 2, 3. in .*, but .28, 2, 2, 3. in this model"):
        larger = ImagePool(28, SIDE, 4)
        training.Checkpoints(tmp_path, {"pool": larger.variables}, older={"pool": larger.cut}).restore()


@pytest.mark.parametrize("pool_size", [0, 1])
def test_small_pools(pool_size):
    """0 gives back what came; 1 gives back what came or the one before that was kept."""
    pool, kept, swaps = ImagePool(pool_size, SIDE, 1), None, 0
    for step in range(20):
        new = 1000 * step
        found = int(asked(pool, numbered(step, 1))["a"][0])
        assert found in ((new,) if not pool_size or kept is None else (new, kept))
        swaps += found == kept
        if kept is None or found == kept:
            kept = new
    assert (swaps > 0) == bool(pool_size)
    assert len(pool.variables) == (3 if pool_size else 1)
