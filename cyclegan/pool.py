"""The image pool: a discriminator sees what the generators make now, and half of the time what they made before.

Article, "fake_pool_a2b.query(fake_a2b)"; paper, sec. 4, after Shrivastava et al., 2017. The article's pool is
Python ("we can't use this random image pool in graph mode") and is gone with the process. This one is variables:
in the graph, on the device, in the checkpoint.

The article's 50 pictures of a domain are dealt out to the places in the global batch: each has a lane of P to itself,
50 for one picture a step, 4 for sixteen (64 pictures in all, as every place gets the same number), and what is drawn
for it depends on (seed, step, domain, place) alone. So one replica does what two do.

G global batch, b batch of a replica, P = ceil(pool_size / G), S side.
"""

import tensorflow as tf


class ImagePool:
    """Earlier pictures [S, S, 3] of each domain, P for each place in the global batch.

    pool_size: pictures of a domain in all, rounded up to P for each place; 0 keeps none. Make it in the strategy's
    scope. variables: what a checkpoint must hold. Every replica keeps the whole pool and makes the same changes to it.
    """

    DOMAINS = ("a", "b")

    def __init__(self, pool_size, image_size, global_batch_size, seed=0):
        self.lane = -(-pool_size // global_batch_size)
        self.global_batch_size = global_batch_size
        self.seed = seed
        shape = [global_batch_size * self.lane, image_size, image_size, 3]
        self._images = {
            domain: tf.Variable(tf.zeros(shape), trainable=False, name=f"images_{domain}",
                                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for domain in self.DOMAINS if self.lane}
        self._queries = tf.Variable(0, dtype=tf.int64, trainable=False, name="queries",
                                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.variables = [*self._images.values(), self._queries]

    def cut(self, stored):
        """An array [G * more, S, S, 3] of an older pool with longer lanes, as this one has them: their first pictures.

        A lane is filled from its beginning, so that these have been written whenever this pool counts as full. An array
        that is anything else comes back as it is.
        """
        places = self.global_batch_size
        if stored.ndim != 4 or len(stored) % places or len(stored) < self.lane * places:
            return stored
        lanes = stored.reshape(places, -1, *stored.shape[1:])
        return lanes[:, :self.lane].reshape(-1, *stored.shape[1:])

    def query(self, fakes):
        """{"a", "b"}: for each of the replica's pictures [b, S, S, 3] the same or an earlier one.

        Call it once a step, in the replica context.

        A lane that is not full keeps the picture and gives it back. A full one gives half of the time a random one
        of its pictures, and keeps the new one in its place; else it gives the new one back.
        """
        if not self.lane:
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
        full = step >= self.lane
        random_slot = tf.cast(uniform[:, 0] * self.lane, tf.int64)
        slot = tf.where(full, tf.minimum(random_slot, self.lane - 1), tf.minimum(step, self.lane - 1))
        swapped = full & (uniform[:, 1] < 0.5)
        return slot, swapped, swapped | ~full

    def _exchange(self, images, new, slot, swapped, kept):
        rows = tf.range(self.global_batch_size, dtype=tf.int64) * self.lane + slot
        # The handle is that of the replica's own copy. Only G pictures are read and written, not the pool.
        old = tf.raw_ops.ResourceGather(resource=images.handle, indices=rows, dtype=tf.float32)
        swapped, kept = (mask[:, None, None, None] for mask in (swapped, kept))
        tf.raw_ops.ResourceScatterUpdate(resource=images.handle, indices=rows, updates=tf.where(kept, new, old))
        return tf.where(swapped, old, new)
