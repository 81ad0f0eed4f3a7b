"""Errors that a user can put right."""


class InputError(ValueError):
    """The input or the usage is wrong.

    The message is one line that names the file, line or option and the remedy; the command line prints
    it without a traceback and leaves with exit status 2.
    """


class NoSuchPartError(InputError):
    """A data set that has parts (train, test) has no such one."""


class NonFiniteLossError(InputError):
    """Training met a loss that is NaN or infinite and stopped before it could spoil the weights."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind when it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
