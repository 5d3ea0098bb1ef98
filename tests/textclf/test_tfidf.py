"""tf-idf against the article's Tokenizer, TextVectorization, scikit-learn, and numbers worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.feature_extraction.text import TfidfVectorizer

from common.errors import UserError
from textclf import demo, tfidf

NEWS = [demo.story(0, index)[0] for index in range(60)] + [
    "Oil, oil and OIL: prices-up! 3% (again)", "the bank's profit\tis the bank\nprofit", "?!"]
UNSEEN = ["oil xyzzy", "", "The match, the MATCH the plan", "xyzzy plugh"]


def vectorize(texts, columns, kind, fitted=NEWS):
    vocabulary = tfidf.learn([tf.constant(fitted)], columns)
    return tfidf.make_vectorize(vocabulary, columns, kind)(tf.constant(texts)).numpy(), vocabulary


def test_by_hand():
    found, vocabulary = vectorize(["b a a", "c"], 3, "article", ["a b a", "b", "b", "d"])
    assert (vocabulary.words, vocabulary.document_counts, vocabulary.documents) == (["b", "a"], [3, 1], 4)
    expected = [[0, np.log(1 + 4 / 4), (1 + np.log(2)) * np.log(1 + 4 / 2)], [0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    normalized, _ = vectorize(["b a a", "c"], 3, "normalized", ["a b a", "b", "b", "d"])
    np.testing.assert_allclose(normalized[0], expected[0] / np.linalg.norm(expected[0]), rtol=1e-6)
    np.testing.assert_array_equal(normalized[1], 0)  # no known word


def test_article_rows_are_those_of_its_tokenizer():
    """Tokenizer(num_words=V).texts_to_matrix(mode="tfidf"), kept for old code; its column 0 is empty."""
    tokenizer = tf.keras.preprocessing.text.Tokenizer(num_words=100_000)
    tokenizer.fit_on_texts(NEWS)
    columns = len(tokenizer.word_index) + 1
    tokenizer.num_words = columns
    expected = tokenizer.texts_to_matrix(NEWS + UNSEEN, mode="tfidf")
    found, vocabulary = vectorize(NEWS + UNSEEN, columns, "article")
    assert sorted(vocabulary.words) == sorted(tokenizer.word_index)
    assert not expected[:, 0].any() and not found[:, 0].any()
    order = [tokenizer.word_index[word] for word in vocabulary.words]
    np.testing.assert_allclose(found[:, 1:], expected[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [20, 5000])
def test_vocabulary_and_idf_are_those_of_text_vectorization(columns):
    """`adapt` on the same texts: the same words in the same order, ties included; the same idf."""
    layer = keras.layers.TextVectorization(max_tokens=columns, output_mode="tf_idf", standardize=tfidf.standardize,
                                           pad_to_max_tokens=True)
    layer.adapt(np.array(NEWS))
    # In batches of different sizes: the texts are counted as they come.
    vocabulary = tfidf.learn([tf.constant(NEWS[:7]), tf.constant(NEWS[7:])], columns)
    assert vocabulary.words == [str(word) for word in layer.get_vocabulary()[1:]]
    idf = vocabulary.idf(columns)
    counts = tfidf.vectorization(vocabulary, columns)(tf.constant(NEWS + UNSEEN)).numpy()
    theirs = layer(np.array(NEWS + UNSEEN))
    np.testing.assert_allclose(counts[:, 1:] * idf[1:], theirs[:, 1:], rtol=1e-5, atol=1e-6)


def test_scikit_learns_idf_differs_by_a_formula_and_nothing_else_does():
    """log((1 + N) / (1 + n)) + 1 there, log(1 + N / (1 + n)) here: e^(theirs - 1) - (e^ours - 1) = 1 / (1 + n)."""
    theirs = TfidfVectorizer(sublinear_tf=True, token_pattern=r"[^\s]+",
                             preprocessor=lambda text: tfidf.standardize([text]).numpy()[0].decode())
    theirs.fit(NEWS)
    columns = len(theirs.vocabulary_) + 1
    found, vocabulary = vectorize(NEWS + UNSEEN, columns, "normalized")
    order = [theirs.vocabulary_[word] for word in vocabulary.words]
    assert len(order) == columns - 1
    ours, n = vocabulary.idf(columns)[1:], np.array(vocabulary.document_counts)
    np.testing.assert_allclose(np.exp(theirs.idf_[order] - 1) - np.expm1(ours), 1 / (1 + n), rtol=1e-4)
    assert np.abs(theirs.transform(UNSEEN).toarray()[:, order] - found[-len(UNSEEN):, 1:]).max() > 0.01
    idf = np.empty(columns - 1)
    idf[order] = ours
    theirs.idf_ = idf  # with our idf the rows are the same: 1 + log c, and length 1
    np.testing.assert_allclose(found[:, 1:], theirs.transform(NEWS + UNSEEN).toarray()[:, order], atol=1e-6)


def test_unicode_and_bytes_that_are_no_utf8():
    found, vocabulary = vectorize(["ÉLAN élan", b"\xff\xfe"], 10, "article", ["Élan vital", "naïve—word"])
    assert set(vocabulary.words) == {"élan", "vital", "naïve—word"}
    assert found[0, 1:].max() > 0 and not found[1].any()


def test_rare_words_are_forgotten_rather_than_kept_in_memory():
    texts = [tf.constant([f"common word{number}" for number in range(start, start + 50)])
             for start in range(0, 500, 50)]
    vocabulary = tfidf.learn(texts, 20, capacity=60)
    assert vocabulary.words[0] == "common" and vocabulary.document_counts[0] == vocabulary.documents == 500
    with pytest.raises(UserError, match="must hold words, and the 2 that came hold none"):
        tfidf.learn([tf.constant(["", "?!"])], 20)


def test_saved_and_loaded(tmp_path):
    vocabulary = tfidf.learn([tf.constant(NEWS)], 50)
    tfidf.save(tmp_path, vocabulary)
    assert tfidf.load(tmp_path) == vocabulary
    path = tmp_path / "vocabulary.json"
    twice = '{"words": ["a", "a"], "document_counts": [1, 1], "documents": 2}'
    for content in (path.read_text()[:-20], twice, "[]", None):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError, match="vocabulary.json must.*Put back a copy"):
            tfidf.load(tmp_path)
