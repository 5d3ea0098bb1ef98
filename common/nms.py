"""Non-maximum suppression in the graph: batched, per class, multi-label, exactly the greedy algorithm.

Shape letters: B batch, N boxes, C classes, M detections kept, K candidates.
"""

import tensorflow as tf

from common import boxes

BLOCK = 192  # candidates that one round decides; the result does not depend on it
PREFIX = 5 * BLOCK  # candidates sorted at first, since they mostly fill the detections; neither on this


def nms(boxes_xyxy, scores, *, score_threshold, iou_threshold, max_detections, class_agnostic=False,
        candidates=None, candidates_per_class=None):
    """Greedy suppression of every picture: the best candidate is kept, then the best that it leaves, ...

    A candidate is a pair (box, class) with score > score_threshold, so one box may be kept for several
    classes. It is dropped when its IoU with a kept candidate of the same class is > iou_threshold. A score
    that is NaN and a box with a coordinate that is not finite are never kept.

    boxes_xyxy: [B, N, 4], any unit. scores: [B, N, C]. B and N may be unknown, and 0.
    class_agnostic: a box stands only for its best class, and suppresses boxes of every class.
    candidates: only so many of a picture's best candidates are looked at; None for all.
    candidates_per_class: of each class only so many best candidates are looked at (SSD: 400); None for all.

    Returns {"boxes": [B, M, 4], "scores": [B, M], "classes": [B, M] int32, "num": [B] int32} with
    M = max_detections: best score first, of equal scores the lower (box, class) index first; the unused rest
    is boxes 0, scores 0, classes -1. Raises ValueError for candidates_per_class together with class_agnostic.
    """
    if class_agnostic and candidates_per_class is not None:
        raise ValueError("candidates_per_class has no meaning with class_agnostic=True; use candidates")
    boxes_xyxy, scores = tf.cast(boxes_xyxy, tf.float32), tf.cast(scores, tf.float32)
    if class_agnostic:
        chosen = _best_class_of_each_box(scores, score_threshold)
    elif candidates_per_class is not None:
        chosen = _best_of_each_class(scores, score_threshold, candidates_per_class)
    else:
        chosen = _above_threshold(scores, score_threshold)
    box, label, score = chosen  # [K] of the whole batch, ascending by (picture, box, class)
    corners = tf.reshape(boxes_xyxy, [-1, 4])  # [B * N, 4]
    batch, num_boxes = tf.unstack(tf.shape(scores, out_type=tf.int64)[:2])
    group = tf.zeros_like(label) if class_agnostic else label

    def one_picture(first, last):
        mine = score[first:last]
        limit = tf.size(mine) if candidates is None else tf.minimum(tf.size(mine), candidates)

        def best(k):
            # top_k puts the lower index first among equals, so that a longer list continues a shorter.
            return first + tf.math.top_k(mine, k).indices

        kept = _suppress(best, limit, corners, box, group, iou_threshold, max_detections)
        return tf.pad(kept, [[0, max_detections - tf.size(kept)]], constant_values=-1)

    if scores.shape[0] == 1:  # a loop over pictures costs a tenth of the whole
        kept = one_picture(0, tf.size(box))[tf.newaxis]  # [B, M]
    else:
        # picture i has candidates borders[i]:[i + 1]
        borders = tf.searchsorted(box, tf.range(batch + 1) * num_boxes)
        kept = tf.map_fn(lambda border: one_picture(*border), (borders[:-1], borders[1:]),
                         fn_output_signature=tf.TensorSpec([max_detections], tf.int32))
    place = tf.where(kept >= 0)  # [sum of num, (picture, rank)]
    kept_flat = tf.gather_nd(kept, place)

    def spread(values, *shape):
        shape = [max_detections, *shape]
        return tf.ensure_shape(tf.scatter_nd(place, values, tf.stack([batch, *shape])), [None, *shape])

    return {
        "boxes": spread(tf.gather(corners, tf.gather(box, kept_flat)), 4),
        "scores": spread(tf.gather(score, kept_flat)),
        "classes": spread(tf.gather(label, kept_flat) + 1) - 1,
        "num": tf.reduce_sum(tf.cast(kept >= 0, tf.int32), axis=1),
    }


def _above_threshold(scores, score_threshold):
    """(box index into [B * N] int64, class int32, score), each [K], of all scores > score_threshold."""
    rows = tf.reshape(scores, [-1, tf.shape(scores)[2]])  # [B * N, C]
    # Most boxes have no candidate: finding boxes first is twice as fast as tf.where over all scores.
    box = tf.where(tf.reduce_any(rows > score_threshold, axis=1))[:, 0]  # NaN > anything is false
    rows = tf.gather(rows, box)
    indices = tf.where(rows > score_threshold)  # [K, (row, class)]
    return tf.gather(box, indices[:, 0]), tf.cast(indices[:, 1], tf.int32), tf.gather_nd(rows, indices)


def _best_class_of_each_box(scores, score_threshold):
    """The same of only the best class of each box, the lower class of equals."""
    scores = tf.reshape(scores, [-1, tf.shape(scores)[2]])
    scores = tf.where(scores > score_threshold, scores, -float("inf"))  # no NaN
    best = tf.reduce_max(scores, axis=1)
    box = tf.where(best > score_threshold)[:, 0]
    return box, tf.argmax(tf.gather(scores, box), axis=1, output_type=tf.int32), tf.gather(best, box)


def _best_of_each_class(scores, score_threshold, per_class):
    """The same of only the `per_class` best boxes of each picture and class."""
    _, num_boxes, num_classes = tf.unstack(tf.shape(scores, out_type=tf.int64))
    flat = tf.reshape(scores, [-1])
    scores = tf.where(scores > score_threshold, scores, -float("inf"))  # no NaN
    scores = tf.transpose(scores, [0, 2, 1])  # [B, C, N]
    best = tf.math.top_k(scores, tf.minimum(per_class, tf.cast(num_boxes, tf.int32)))
    where = tf.where(best.values > score_threshold)  # [K, (picture, class, rank)]
    box = where[:, 0] * num_boxes + tf.cast(tf.gather_nd(best.indices, where), tf.int64)
    index = tf.sort(box * num_classes + where[:, 1])
    return index // num_classes, tf.cast(index % num_classes, tf.int32), tf.gather(flat, index)


def _suppress(best, limit, corners, box, group, iou_threshold, max_detections):
    """Indices [<= M] int32 of the candidates kept, best first, out of best(limit); best(k) are the k best.

    Blocks of candidates, best first, are decided at once: keep <- finite and not overlapped by a kept one of
    the same group and better rank, repeated until it stands still. By induction over the rank the i-th
    candidate is final after i rounds, so what stands still is the greedy result; a few rounds do.
    """
    def unfinished(order, start, kept):
        return (start < limit) & (tf.size(kept) < max_detections)

    def decide_block(order, start, kept):
        order = tf.cond(start < tf.size(order), lambda: order, lambda: best(limit))
        num_kept = tf.size(kept)
        pool = tf.concat([kept, order[start:start + BLOCK]], axis=0)
        pool_corners, pool_group = tf.gather(corners, tf.gather(box, pool)), tf.gather(group, pool)
        rank = tf.range(tf.size(pool))
        # Few candidates share a group, so the IoU is taken of pairs and not of everything with everything.
        rivals = pool_group[:, tf.newaxis] == pool_group[num_kept:]  # [pool, block]
        rivals &= rank[:, tf.newaxis] < rank[num_kept:]
        better, worse = tf.unstack(tf.where(rivals), axis=1)
        worse += tf.cast(num_kept, tf.int64)
        overlap = boxes.iou_paired(tf.gather(pool_corners, better), tf.gather(pool_corners, worse))
        beats = tf.where(overlap > iou_threshold)[:, 0]
        better, worse = tf.gather(better, beats), tf.gather(worse, beats)
        finite = tf.cast(tf.reduce_all(tf.math.is_finite(pool_corners), axis=1), tf.float32)

        def settle(_, keep):  # 1 or 0
            beaten = tf.math.unsorted_segment_sum(tf.gather(keep, better), worse, tf.size(pool))
            return keep, tf.nn.relu(finite - beaten)

        _, keep = tf.while_loop(lambda before, keep: tf.reduce_any(before != keep), settle,
                                settle(finite, finite),
                                shape_invariants=(tf.TensorShape([None]),) * 2)
        return order, start + BLOCK, tf.gather(pool, tf.where(keep > 0.0)[:, 0])[:max_detections]

    loop = (best(tf.minimum(limit, PREFIX)), tf.constant(0), tf.zeros([0], tf.int32))
    shapes = (tf.TensorShape([None]), tf.TensorShape([]), tf.TensorShape([None]))
    return tf.while_loop(unfinished, decide_block, loop, shape_invariants=shapes)[2]
