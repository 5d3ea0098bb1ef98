"""The one exception for mistakes that the person at the keyboard can mend."""


class UserError(Exception):
    """Says what must hold, what came, and what to do; `cli.run` prints it as one line without a traceback."""
