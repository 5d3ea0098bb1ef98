"""From texts to tf-idf rows: the vocabulary, learnt from training texts alone, and the formulas, in the graph.

Article, "The input: representing natural language numerically": Tokenizer(num_words=10000) and texts_to_matrix
(mode="tfidf"). `Tokenizer` is gone from Keras 3; `keras.layers.TextVectorization` counts the words here, in the
input pipeline, in prediction and in the exported graph, and `rows` does the rest.

A row has one column per word, the most frequent first; column 0 stands for all other words and stays 0 (in the
article it is Tokenizer's unused index 0), so that 10,000 columns are 9,999 words. Of a text in which word w occurs
c times (c > 0), in a training set of N texts of which n hold w:

    article     (1 + log c) * log(1 + N / (1 + n))      what Tokenizer computes
    normalized  the same, divided by the row's length   (default)

The length of a raw row grows with the text, and so do the logits; divided by it, long and short texts weigh the
same. On R8 that is worth three quarters of a point of accuracy (README.md).

TextVectorization(output_mode="tf_idf") has c in place of 1 + log c. scikit-learn's TfidfVectorizer has
log((1 + N) / (1 + n)) + 1 in place of log(1 + N / (1 + n)), and c unless sublinear_tf=True; it normalizes by
default.

B texts, V columns.
"""

import collections
import heapq
import json
import pathlib
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from common import files
from common.errors import UserError

KINDS = ("normalized", "article")
FILE = "vocabulary.json"
CAPACITY = 1_000_000  # different words counted at a time; more are cut to half of it, the rarest first

# Tokenizer's filters: what stands between words.
_BETWEEN_WORDS = r'[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\t\n]'


class Vocabulary(NamedTuple):
    """What is learnt from the training texts; memory and file do not depend on how many there were."""

    words: list  # of V - 1 str at most, the most frequent first; word i belongs to column i + 1
    document_counts: list  # int, in how many texts each stands
    documents: int  # how many texts there were

    def idf(self, columns):
        """float32 [columns]: log(1 + N / (1 + n)) of each word, 0 for column 0 and behind the last word."""
        found = np.zeros(columns, np.float32)
        counts = np.asarray(self.document_counts, np.float64)
        found[1:len(counts) + 1] = np.log(1 + self.documents / (1 + counts))
        return found


def standardize(texts):
    """Lower case, and a space for each of Tokenizer's filters; string [B] -> string [B], UTF-8."""
    return tf.strings.regex_replace(tf.strings.lower(texts, encoding="utf-8"), _BETWEEN_WORDS, " ")


def learn(batches, columns, *, capacity=CAPACITY):
    """The `Vocabulary` of string tensors [B]: the columns - 1 words that occur most often.

    Equally frequent words are in descending order, as in TextVectorization.adapt. No text is kept. With more than
    `capacity` different words the rarest are forgotten on the way, and count from 0 when they come again.
    Raises UserError when there is no word at all.
    """
    totals, document_counts, documents = collections.Counter(), collections.Counter(), 0
    for texts in batches:
        words = tf.strings.split(standardize(texts))
        flat, edges = words.flat_values.numpy().tolist(), words.row_splits.numpy().tolist()
        totals.update(flat)
        for first, last in zip(edges, edges[1:]):
            document_counts.update(set(flat[first:last]))
        documents += len(edges) - 1
        if len(totals) > capacity:
            totals = collections.Counter(dict(_most_frequent(totals, capacity // 2)))
            document_counts = collections.Counter({word: document_counts[word] for word in totals})
    if not totals:
        raise UserError(f"The training texts must hold words, and the {documents} that came hold none. Look at "
                        "--text_columns of preprocess.")
    kept = [word for word, _ in _most_frequent(totals, columns - 1)]
    return Vocabulary([word.decode() for word in kept], [document_counts[word] for word in kept], documents)


def _most_frequent(totals, count):
    return heapq.nlargest(count, totals.items(), key=lambda item: (item[1], item[0]))


def vectorization(vocabulary, columns):
    """The TextVectorization from string [B] to counts [B, V]; column 0 counts the words it does not know.

    Keras makes its lookup table where this is called: within a tf.Graph it is part of that graph.
    """
    layer = keras.layers.TextVectorization(
        max_tokens=columns, standardize=standardize, split="whitespace", output_mode="count",
        pad_to_max_tokens=True, vocabulary=vocabulary.words)
    # Outside of a graph a table leaves None in this list, of which freezing a network would complain.
    initializers = tf.compat.v1.get_collection_ref(tf.compat.v1.GraphKeys.TABLE_INITIALIZERS)
    initializers[:] = [initializer for initializer in initializers if initializer is not None]
    return layer


def rows(counts, idf, kind):
    """tf-idf rows float32 [B, V] of word counts [B, V]; idf [V]; kind as in KINDS. No known word: all zeros."""
    counts = tf.cast(counts, tf.float32)
    found = tf.where(counts > 0, 1 + tf.math.log(tf.maximum(counts, 1)), 0.0) * idf
    if kind == "normalized":
        found = tf.math.divide_no_nan(found, tf.norm(found, axis=-1, keepdims=True))
    return found


def make_vectorize(vocabulary, columns, kind):
    """The function from string [B] to tf-idf rows float32 [B, V]."""
    count, idf = vectorization(vocabulary, columns), tf.constant(vocabulary.idf(columns))

    def vectorize(texts):
        return rows(count(texts), idf, kind)

    return vectorize


def save(folder, vocabulary):
    """Writes vocabulary.json into a run folder, whole or not at all."""
    files.write_text(pathlib.Path(folder) / FILE, json.dumps(vocabulary._asdict()) + "\n")


def load(folder):
    """The `Vocabulary` of a run folder. Raises UserError where it is missing or damaged."""
    path = pathlib.Path(folder) / FILE
    advice = "Put back a copy of it, or train with another --run."
    try:
        found = Vocabulary(**json.loads(path.read_text(encoding="utf-8")))
        sound = len(found.words) == len(found.document_counts) > 0 and len(set(found.words)) == len(found.words)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} must be the vocabulary that train.py wrote ({files.reason(error)}). "
                        f"{advice}") from None
    if not sound:
        raise UserError(f"{path} must hold different words with a count for each, and does not. {advice}")
    return found
