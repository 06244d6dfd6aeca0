"""The one exception and the one warning that a user is meant to read."""

BAD_INPUT = 2  # exit code of the command line


class Pard2Error(Exception):
    """Bad input or a bad environment, told in one line that names the way out.

    The command line prints the message without a traceback and exits with code 2.
    """


class Pard2Warning(UserWarning):
    """What goes on, but perhaps not as it was meant.

    The command line prints it as a note; Python's `warnings` decide elsewhere.
    """


def first_line(error: BaseException) -> str:
    """What another library's exception says in its first line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
