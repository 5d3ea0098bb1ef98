"""The image pool: a discriminator sees what the generators make now, and half of the time what they made before.

Article, "fake_pool_a2b.query(fake_a2b)"; paper, sec. 4, after Shrivastava et al., 2017. The article's pool is
Python ("we can't use this random image pool in graph mode") and is gone with the process. This one is variables:
in the graph, on the device, in the checkpoint.

Each place in the global batch has a lane of P pictures to itself, for each domain, and what is drawn for it
depends on (seed, step, domain, place) alone. So one replica does what two do; with one picture per replica P is
the article's pool size.

G global batch, b batch of a replica, P pool_size, S side.
"""

import tensorflow as tf


class ImagePool:
    """P earlier pictures [S, S, 3] for each place in the global batch and each domain.

    Make it in the strategy's scope. variables: what a checkpoint must hold. Every replica keeps the whole pool and
    makes the same changes to it.
    """

    DOMAINS = ("a", "b")

    def __init__(self, pool_size, image_size, global_batch_size, seed=0):
        self.pool_size = pool_size
        self.global_batch_size = global_batch_size
        self.seed = seed
        shape = [global_batch_size * pool_size, image_size, image_size, 3]
        self._images = {
            domain: tf.Variable(tf.zeros(shape), trainable=False, name=f"images_{domain}",
                                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for domain in self.DOMAINS if pool_size}
        self._queries = tf.Variable(0, dtype=tf.int64, trainable=False, name="queries",
                                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.variables = [*self._images.values(), self._queries]

    def query(self, fakes):
        """{"a", "b"}: for each of the replica's pictures [b, S, S, 3] the same or an earlier one.

        Call it once a step, in the replica context.

        A lane that is not full keeps the picture and gives it back. A full one gives half of the time a random one
        of its pictures, and keeps the new one in its place; else it gives the new one back.
        """
        if not self.pool_size:
            return fakes
        context = tf.distribute.get_replica_context()
        step = tf.identity(self._queries)
        chosen = {}
        for number, domain in enumerate(self.DOMAINS):
            new = fakes[domain]
            if context.num_replicas_in_sync > 1:
                new = context.all_gather(new, axis=0)                              # [G, S, S, 3]
            result = self._exchange(self._images[domain], new, *self.draws(step, number))
            per_replica = self.global_batch_size // context.num_replicas_in_sync
            chosen[domain] = result[context.replica_id_in_sync_group * per_replica:][:per_replica]
        self._queries.assign_add(1)
        return chosen

    def draws(self, step, domain):
        """(slot int64 [G], bool [G]: give the picture of that slot, bool [G]: keep the new one there).

        step: int64, the queries before this one. domain: 0 or 1.
        """
        key = tf.random.experimental.stateless_fold_in(tf.constant([self.seed, domain], tf.int64), step)
        uniform = tf.random.stateless_uniform([self.global_batch_size, 2], key)
        full = step >= self.pool_size
        random_slot = tf.cast(uniform[:, 0] * self.pool_size, tf.int64)
        slot = tf.where(full, tf.minimum(random_slot, self.pool_size - 1), tf.minimum(step, self.pool_size - 1))
        swapped = full & (uniform[:, 1] < 0.5)
        return slot, swapped, swapped | ~full

    def _exchange(self, images, new, slot, swapped, kept):
        rows = tf.range(self.global_batch_size, dtype=tf.int64) * self.pool_size + slot
        # The handle is that of the replica's own copy. Only G pictures are read and written, not the pool.
        old = tf.raw_ops.ResourceGather(resource=images.handle, indices=rows, dtype=tf.float32)
        swapped, kept = (mask[:, None, None, None] for mask in (swapped, kept))
        tf.raw_ops.ResourceScatterUpdate(resource=images.handle, indices=rows, updates=tf.where(kept, new, old))
        return tf.where(swapped, old, new)
