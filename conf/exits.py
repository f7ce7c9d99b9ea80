"""Exit codes of every command, and the errors that carry them.

A scheduler reads the code to decide whether a restart can help, so a code is a promise and never changes its meaning.
"""

DONE = 0
STOPPED = 75  # stopped on request and saved: start me again
HANG = 76
DIVERGED = 77  # the loss is not a number, or state was silently corrupted
CONFIG = 78  # a restart meets the same error: never restart
DATA = 79  # data or storage failed


class ConfigError(Exception):
    """What the user asked for cannot be done: the message names the value, its origin and the remedy."""

    code = CONFIG


class DataError(Exception):
    """Data or storage is missing, broken or not what its manifest says."""

    code = DATA


class DivergedError(Exception):
    """Training produced a loss or a gradient that is not a finite number."""

    code = DIVERGED


ERRORS = (ConfigError, DataError, DivergedError)
