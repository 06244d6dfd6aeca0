"""The one exception that a user is meant to read."""


class Pard2Error(Exception):
    """Bad input or a bad environment, told in one line that names the way out.

    The command line prints the message without a traceback and exits with code 2.
    """
