"""Linear classifiers of scikit-learn on a record set of textclf: `python -m benchmarks.text_linear --tfrecords
r8`.

TfidfVectorizer with its defaults, fitted on the training texts, then logistic regression and a linear support
vector machine; accuracy on the test texts, and the seconds that fitting took. What the article's network is to be
held against.
"""

import argparse
import time

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from common import records
from textclf import preprocess


def load(folder, split):
    """(texts, labels) of a split."""
    texts, labels = [], []
    for batch in records.dataset(folder, split, epochs=1).batch(1024):
        example = preprocess.parse(batch["record"])
        texts += [text.decode() for text in example["text"].numpy()]
        labels += example["label"].numpy().tolist()
    return texts, labels


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tfrecords", default="r8")
    folder = records.resolve(parser.parse_args().tfrecords, kind=preprocess.KIND)
    (train_texts, train_labels), (test_texts, test_labels) = load(folder, "train"), load(folder, "test")
    vectorizer = TfidfVectorizer()
    train_rows, test_rows = vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts)
    print(f"{len(train_texts)} training texts, {len(test_texts)} test texts, {train_rows.shape[1]} words")
    for classifier in (LogisticRegression(max_iter=1000), LinearSVC()):
        start = time.perf_counter()
        classifier.fit(train_rows, train_labels)
        seconds = time.perf_counter() - start
        accuracy = 100 * classifier.score(test_rows, test_labels)
        print(f"{type(classifier).__name__:20} {accuracy:.2f} %  {seconds:.1f} s")


if __name__ == "__main__":
    main()
