"""How a command ends: exit codes and lines, whatever TensorFlow's threads are at."""

import subprocess
import sys

import pytest
from absl import flags

from common import cli
from common.errors import UserError

# Children of a process that has imported TensorFlow and has not started it: programs of their own, that end as such.
PROGRAM = """
import os, pathlib, signal, sys, time
import tensorflow as tf
from common import cli, training
from tests.common import toy

WAYS = {
    "broken": {"broken_at": 100},
    "SIGINT": {"broken_at": -1, "kill_at": 5, "kill_with": signal.SIGINT},
    "SIGTERM": {"broken_at": -1, "kill_at": 5, "kill_with": signal.SIGTERM},
    "finished": {"broken_at": -1},
    "bug": {"broken_at": -1, "clip_norm": "no number"},
}
folder, children = pathlib.Path(sys.argv[1]), {}
for way in ["broken", *WAYS, "broken", "broken"]:
    name = f"{way} {len(children)}"
    child = os.fork()
    if not child:
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["toy"]
        cli.run(lambda _: toy.train(folder / f"run {name}", 20, save_every=100, **WAYS[way]), lambda: None)
    children[child] = name
end = time.monotonic() + 90
for child, name in children.items():
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """{way: [(exit code, what stood on stderr)]} of trainings whose threads are in Python functions all the time."""
    folder = tmp_path_factory.mktemp("ended")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in done.stdout.splitlines():
        way, number, code = line.split()
        found.setdefault(way, []).append((int(code), (folder / f"{way} {number}").read_text()))
    return found


@pytest.mark.parametrize("way, code, words", [
    ("broken", 2, "error: Example 100 is broken.\n"), ("SIGINT", 130, "saving a checkpoint"),
    ("SIGTERM", 143, "saving a checkpoint"), ("finished", 0, ""), ("bug", 1, "Traceback")])
def test_exit_codes_while_threads_of_tf_data_are_in_python(ended, way, code, words):
    """Python's own end would hang there, or abort the process with 134."""
    assert [found for found, _ in ended[way]] == [code] * (4 if way == "broken" else 1)
    for _, text in ended[way]:
        assert words in text and ("Traceback" in text) == (way == "bug")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_must_be_finite(value):
    """absl's bounds let nan through, and config.json cannot hold it: that was a traceback."""
    values = flags.FlagValues()
    flags.DEFINE_float("rate", 1.0, "", lower_bound=None if value == "-inf" else 0.0, flag_values=values)
    flags.DEFINE_integer("steps", 1, "", flag_values=values)
    values(["program"])
    cli.require_finite(values)
    values(["program", f"--rate={value}"])
    with pytest.raises(UserError, match=f"--rate must be a finite number; {value} came"):
        cli.require_finite(values)
