"""A trained news classifier as a bundle that TensorFlow Serving takes as it is: strings in, categories out.

    python -m textclf.export --run runs/textclf/articles --out serving/textclf

Signature (B batch, C categories):
serving_default  texts string [B], UTF-8 -> labels string [B, C] and probabilities float32 [B, C], the most likely
                 first. Bytes that are not UTF-8 fail their whole request with INVALID_ARGUMENT.

TextVectorization's lookup table is made in the bundle's own graph and filled when the bundle is loaded, from
constants of the graph: no file beside it is needed.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

from common import cli, export, folding
from common.errors import UserError
from textclf import predict, tfidf
from textclf.model import probabilities

TOLERANCE = 1e-5  # of probabilities, from those of the Keras model: rounding in another order
# For warm-up and the check: words of many categories, capitals and punctuation, a text without a known word, no
# text.
EXAMPLES = ("The bank's profit rose, shareholders said; oil and grain prices fell.", "Élan! ??? xyzzy", "",
            "minister rejects budget - doctors warn of new trial. " * 20)
BROKEN = b"caf\xe9"  # Latin-1


def signatures(vocabulary, config):
    """{signature name: export.Signature} as above."""
    labels = tf.constant(config["labels"]).numpy()
    idf = vocabulary.idf(config["vocabulary"])

    def read(texts):
        whole = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="strict")
        # Made here, so that the table belongs to the graph that is being built.
        counts = tfidf.vectorization(vocabulary, config["vocabulary"])(whole)
        return (tfidf.rows(counts, idf, config["tfidf"]),)

    def ranked(logits):
        values, classes = tf.math.top_k(probabilities(logits[0]), len(labels))
        return {"labels": tf.gather(labels, classes), "probabilities": values}

    texts = tf.TensorSpec([None], tf.string, "texts")
    return {"serving_default": export.Signature(texts, read, ranked, tables=True)}


def write_bundle(folder, model, vocabulary, config):
    """Writes the bundle of a Keras model, not checked and not published: see `export_bundle`."""
    network = folding.freeze(model, tf.TensorSpec([None, config["vocabulary"]], tf.float32, "rows"))
    kept = {key: config[key] for key in ("article", "vocabulary", "width", "tfidf", "labels")}
    extra = {"labels.txt": "\n".join(config["labels"]) + "\n", "config.json": json.dumps(kept, indent=2) + "\n"}
    requests = [("serving_default", {"texts": np.array([text.encode() for text in EXAMPLES], object)})]
    export.save(folder, network, signatures(vocabulary, config), requests=requests, extra=extra)


def check_equal(session, model, vocabulary, config):
    """Raises UserError unless a bundle in an `export.Session` gives what the Keras model gives."""
    vectorize = tfidf.make_vectorize(vocabulary, config["vocabulary"], config["tfidf"])
    expected, _ = predict.make_classify(model, vectorize)(list(EXAMPLES))
    served = session.run("serving_default", {"texts": np.array([text.encode() for text in EXAMPLES], object)})
    ids = {label.encode(): number for number, label in enumerate(config["labels"])}
    for row, labels, values in zip(expected, served["labels"], served["probabilities"]):
        difference = np.abs(row[[ids[label] for label in labels]] - values).max()
        if len(set(labels)) != len(ids) or not difference <= TOLERANCE:
            raise UserError(f"Exported probabilities must be those of the Keras model to {TOLERANCE}, and differ "
                            f"by {difference:.2g}. Check the run with textclf.evaluate, then export again.")


def export_bundle(model, vocabulary, config, out):
    """Writes, checks and publishes the next version of a bundle in the folder `out`; returns its path."""
    def check(folder):
        export.check_bundle(folder, lambda session: check_equal(session, model, vocabulary, config), broken=BROKEN)

    return export.publish(out, lambda folder: write_bundle(folder, model, vocabulary, config), check,
                          lambda version: readme(pathlib.Path(out), version, config))


def readme(out, version, config):
    """The README.md beside the versions: how to serve and the exact requests."""
    name = out.resolve().name
    labels = ", ".join(config["labels"][:20]) + (", ..." if len(config["labels"]) > 20 else "")
    return README.format(name=name, number=version.name, words=config["vocabulary"], tfidf=config["tfidf"],
                         classes=len(config["labels"]), labels=labels, serve=export.serve_command(name, out),
                         api=export.SERVING_API)


README = """\
# {name}: news classifier for TensorFlow Serving

Version {number}, {tfidf} tf-idf of {words} columns, {classes} categories: {labels}.

    {serve}

A new version in this folder is loaded as soon as it has its number.

## Texts in, categories out

Texts of any length in UTF-8; other bytes fail their whole request with INVALID_ARGUMENT (HTTP 400).

    curl -s -d '{{"instances": ["Central bank raises rates", "Storm floods the coast"]}}' \\
      http://localhost:8501/v1/models/{name}:predict

Answer, an entry of `predictions` per text: `labels`, the most likely first, and their `probabilities`.

    # pip install "{api}"
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel("localhost:8500"))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "{name}"
    request.inputs["texts"].CopyFrom(tf.make_tensor_proto(["Central bank raises rates"]))
    outputs = stub.Predict(request, timeout=60).outputs
    print(tf.make_ndarray(outputs["labels"])[0, 0].decode(), tf.make_ndarray(outputs["probabilities"])[0, 0])

A text without a word of the vocabulary gets the probabilities of an empty text.
"""


def define_flags():
    cli.define_run_flag()
    cli.flags.DEFINE_string("out", None, "Folder of the bundle's versions, e.g. serving/textclf.")
    cli.flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.out:
        raise UserError("--out must name the folder of the bundle, e.g. --out serving/textclf")
    model, _, config = predict.load_run(flags.run, flags.which)
    version = export_bundle(model, tfidf.load(flags.run), config, flags.out)
    print(f"{version}: loaded and checked as a server loads it.")
    print(f"{pathlib.Path(flags.out) / 'README.md'} says how to serve and ask it.")


if __name__ == "__main__":
    cli.run(main, define_flags)
