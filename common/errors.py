"""The one exception for mistakes that the person at the keyboard can mend."""

import re


class UserError(Exception):
    """Says what must hold, what came, and what to do; `cli.run` prints it as one line without a traceback."""


def original(error):
    """The `UserError` that a Python function in a dataset raised, out of TensorFlow's error about it; one for a picture
    that the dataset could not decode; or None.
    """
    found = re.search(r"UserError: ([^\n]+)\nTraceback", error.message)
    if found:
        return UserError(found[1])
    found = re.search(r"([^\n{}]+)\n\t \[\[(?:\{\{function_node \S+\}\})?\{\{node [^}]*\bDecode(?:Image|Jpeg|Png)\b",
                      error.message)
    if not found:
        return None
    return UserError(f"A picture of the records must be whole, and cannot be decoded ({found[1].strip(' .')}). Build the "
                     "records again; preprocess.py --check names all such pictures.")
