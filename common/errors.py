"""The one exception for mistakes that the person at the keyboard can mend."""

import re


class UserError(Exception):
    """Says what must hold, what came, and what to do; `cli.run` prints it as one line without a traceback."""


def original(error):
    """The `UserError` that a Python function in a dataset raised, out of TensorFlow's error about it; or None."""
    found = re.search(r"UserError: ([^\n]+)\nTraceback", error.message)
    return UserError(found[1]) if found else None
