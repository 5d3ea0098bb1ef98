"""The commands of the README as a user runs them: in a folder of their own, from a shell."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from common import splits

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Returns a function that starts `python -m <words>` for each of its arguments, all at once."""
    folder = tmp_path_factory.mktemp("user")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def run(*commands, stdin=None):
        processes = [subprocess.Popen([sys.executable, "-m", *words], cwd=folder, text=True, stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      env={**os.environ, "PYTHONPATH": paths}) for words in commands]
        outputs = [process.communicate(stdin, timeout=300) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs)]

    run.folder = folder
    return run


def test_all_commands(shell):
    (shell.folder / "articles.csv").write_text("".join(
        f"{word} story {number}\\, {word}s,{word}\n" for number in range(30) for word in ("sport", "trade")))
    (code, out, errors), (bad_code, _, bad), (refused_code, _, refused) = shell(
        ["textclf.preprocess", "--dataset=articles", "--source=articles.csv"], ["textclf.train"],
        ["textclf.preprocess", "--dataset=demo", "--header", "--encoding=latin-1"])
    assert code == 0, errors[-3000:]
    held_out = [splits.fraction(f"{word} story {number}, {word}s") for number in range(30)
                for word in ("sport", "trade")]
    tested = sum(where < 0.1 for where in held_out)
    assert "sport" in out and out.splitlines()[3].split() == [
        "all", str(sum(where >= 0.2 for where in held_out)), str(sum(0.1 <= where < 0.2 for where in held_out)),
        str(tested)] and "tfrecords/articles" in out
    assert refused_code == 2 and "--header and --encoding must say how to read a source" in refused
    assert bad_code == 2 and "Traceback" not in bad and "error: Give either --tfrecords NAME" in bad

    [(code, out, errors)] = shell(["textclf.train", "--tfrecords=articles", "--vocabulary=50", "--width=8",
                                   "--batch_size=8", "--epochs=10", "--eval_every=10", "--learning_rate=0.02"])
    assert code == 0, errors[-3000:]
    run = shell.folder / "runs" / "textclf" / "articles"
    assert "accuracy 100.00 %" in out and "samples/confusion.png" in out and "texts/s" in errors
    config = json.loads((run / "config.json").read_text())
    assert config["labels"] == ["sport", "trade"] and config["vocabulary"] == 50
    assert (run / "vocabulary.json").exists() and list((run / "logs").glob("events*"))

    done = shell(["textclf.evaluate", f"--run={run}", "--split=test"],
                 ["textclf.predict", f"--run={run}", "--lines", "--json", "sports in the city", "-"],
                 ["textclf.export", f"--run={run}", "--out=serving/news"], stdin="trades fall\n")
    for code, _, errors in done:
        assert code == 0, errors[-3000:]
    (_, evaluated, _), (_, predicted, _), (_, exported, _) = done
    assert f"accuracy 100.00 % of {tested} texts (always " in evaluated
    assert "agrees with the category of every text" in evaluated
    names = {path.name for path in (run / "evaluation").iterdir()}
    assert names == {"test.json", "test_confusion.png", "test_reliability.png", "test_disagreements.csv",
                     "test_disagreements.txt"}
    rows = [json.loads(line) for line in predicted.splitlines()]
    assert [row["categories"][0]["label"] for row in rows] == ["sport", "trade"] and rows[1]["name"] == "stdin:1"
    assert "serving/news/1" in exported and (shell.folder / "serving/news/1/saved_model.pb").exists()
