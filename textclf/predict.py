"""The categories of texts, with probabilities: the three most likely ones of each.

    python -m textclf.predict --run runs/textclf/articles "Central bank raises rates" story.txt
    tail -f headlines.txt | python -m textclf.predict --run runs/textclf/articles --lines -

A word that names a file is read as a file, - is the standard input, anything else is the text itself.
"""

import codecs
import io
import json
import pathlib
import sys
import textwrap

import tensorflow as tf

from common import cli, files, training
from common.errors import UserError
from textclf import sources, tfidf
from textclf.model import probabilities, textclf

MAX_BYTES = 2**24  # of a file that is one text; as many characters of a line


def load_run(folder, which="best"):
    """(model, vectorize, config) of a run folder, with the weights of its best or last epoch. Raises UserError."""
    if not folder:
        raise UserError("--run must name a run folder, such as runs/textclf/articles.")
    config = training.read_config(folder)
    if config.get("article") != "textclf":
        raise UserError(f"{folder} must be a run of textclf, and is one of {config.get('article')}.")
    vectorize = tfidf.make_vectorize(tfidf.load(folder), config["vocabulary"], config["tfidf"])
    model = textclf(len(config["labels"]), config["vocabulary"], config["width"])
    training.load_weights(folder, model, which)
    return model, vectorize, config


def make_classify(model, vectorize):
    """The function from a list of str to (probabilities [B, C], whether a text has a known word [B])."""
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def classify(texts):
        rows = vectorize(texts)
        return probabilities(model(rows, training=False)), tf.reduce_any(rows > 0, axis=-1)

    return lambda texts: tuple(value.numpy() for value in classify(tf.constant(texts, tf.string)))


def read_texts(arguments, *, lines=False, encoding="utf-8", on_unreadable=lambda name, reason: None, stdin=None):
    """Yields (name, text) of words of the command line: texts, files, - for the standard input.

    lines: each line of files and of the standard input is a text of its own, read as it comes. What cannot be read
    goes to on_unreadable(name, reason), and the next is read.
    """
    for argument in arguments:
        is_file = argument == "-" or _exists(argument)
        if not is_file:
            if pathlib.PurePath(argument).suffix and not any(map(str.isspace, argument)):
                on_unreadable(argument, "no such file")  # one word with a suffix is no news
            else:
                yield "", argument
            continue
        name = "stdin" if argument == "-" else argument
        try:
            if argument == "-":
                yield from _read(stdin or sys.stdin.buffer, name, lines, encoding, on_unreadable)
            else:
                with open(argument, "rb") as file:
                    yield from _read(file, name, lines, encoding, on_unreadable)
        except OSError as error:
            on_unreadable(name, files.reason(error))
        except LookupError:
            raise UserError(f"--encoding must be one that Python knows; {encoding!r} came.") from None


def _exists(argument):
    try:
        return pathlib.Path(argument).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False


def _read(file, name, lines, encoding, on_unreadable):
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # what some editors put before the first word is no part of it
    if lines:
        yield from _read_lines(file, name, encoding, on_unreadable)
        return
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        on_unreadable(name, f"longer than {MAX_BYTES} bytes")
        return
    try:
        text = data.decode(encoding).strip()
    except UnicodeError:
        on_unreadable(name, f"is not {encoding.removesuffix('-sig')}")
        return
    if text:
        yield name, text
    else:
        on_unreadable(name, "holds no text")


def _read_lines(file, name, encoding, on_unreadable):
    """Each line of a binary file, as it comes; what is no text of the encoding is named, and the next is read."""
    number, found = 0, False
    stream = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="\n")
    try:
        while line := stream.readline(MAX_BYTES + 1):
            number, where = number + 1, f"{name}:{number + 1}"
            found = found or bool(line.strip())
            if len(line) > MAX_BYTES:
                on_unreadable(where, f"longer than {MAX_BYTES} characters")
                while line and not line.endswith("\n"):
                    line = stream.readline(MAX_BYTES + 1)
            elif sources.SURROGATE.search(line):
                on_unreadable(where, f"is not {encoding.removesuffix('-sig')}")
            elif line.strip():
                yield where, line.strip()
    except UnicodeError as error:  # of an encoding whose damage cannot be passed over, such as utf-16
        on_unreadable(f"{name}:{number + 1}", f"is not {encoding}, and cannot be read from there on ({error})")
        found = True
    finally:
        stream.detach()  # whoever has opened the file closes it
    if not found:
        on_unreadable(name, "holds no text")


def predict(texts, classify, labels, *, top=3, batch_size=1):
    """Yields {"name", "text", "known", "categories": [{"label", "probability"}]} of (name, text) pairs, in order.

    known: whether the text has a word of the vocabulary; without one the network knows nothing of it.
    """
    def answer(batch):
        probs, known = classify([text for _, text in batch])
        for (name, text), row, has_words in zip(batch, probs, known):
            best = row.argsort(kind="stable")[::-1][:top]
            yield {"name": name, "text": text, "known": bool(has_words),
                   "categories": [{"label": labels[i], "probability": round(float(row[i]), 5)} for i in best]}

    batch = []
    for pair in texts:
        batch.append(pair)
        if len(batch) == batch_size:
            yield from answer(batch)
            batch = []
    if batch:
        yield from answer(batch)


def describe(found):
    """One prediction as a line of text."""
    chances = ", ".join(f"{one['label']} {100 * one['probability']:.1f} %" for one in found["categories"])
    text = found["text"].replace("\x00", " ")
    shown = textwrap.shorten(text, 60, placeholder=" ...")
    note = "" if found["known"] else "  (no word of it is known)"
    return f"{chances}{note}  |  {found['name'] + ': ' if found['name'] else ''}{shown}"


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_integer("top", 3, "Categories shown of each text.", lower_bound=1)
    flags.DEFINE_bool("lines", False, "Each line of files and of the standard input is a text of its own.")
    flags.DEFINE_bool("json", False, "Print JSON lines.")
    flags.DEFINE_integer("batch_size", 1, "Texts per run of the network; more is faster, one answers at once.",
                         lower_bound=1)
    flags.DEFINE_string("encoding", "utf-8", "Of files and of the standard input.")


def main(args):
    flags = cli.FLAGS
    if not args:
        raise UserError('Say what to classify: "a text in quotation marks", files, or - for the standard input.')
    model, vectorize, config = load_run(flags.run, flags.which)
    count, unreadable = 0, []

    def on_unreadable(name, reason):
        unreadable.append(name)
        print(f"unreadable: {name}: {reason}", file=sys.stderr)

    texts = read_texts(args, lines=flags.lines, encoding=flags.encoding, on_unreadable=on_unreadable)
    for found in predict(texts, make_classify(model, vectorize), config["labels"], top=flags.top,
                         batch_size=flags.batch_size):
        print(json.dumps(found, ensure_ascii=False) if flags.json else describe(found), flush=True)
        count += 1
    if unreadable and not count:
        raise UserError(f"None of the {len(unreadable)} sources could be read; their names stand above.")


if __name__ == "__main__":
    cli.run(main, define_flags)
