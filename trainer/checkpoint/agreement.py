"""What one process cannot do, none goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from conf.exits import ConfigError, DataError
from trainer.backend import Backend

Answer = TypeVar("Answer")


def on_all(backend: Backend, action: Callable[[], Answer]) -> Answer:
    """What an action gives on this process, once it worked on all, which call this together.

    Where it failed with an OSError, a DataError or a ConfigError, each raises: this process its own error, as a
    DataError if storage did not answer, and the others one that says so.
    """
    failure: Exception | None = None
    try:
        answer = action()
    except OSError as error:
        failure = DataError(f"{error}: start again once the storage answers")
        failure.__cause__ = error
    except (ConfigError, DataError) as error:
        failure = error
    wrong, lost = backend.agree([isinstance(failure, ConfigError), isinstance(failure, DataError)])
    if failure is not None:
        raise failure
    if wrong:
        raise ConfigError("another process refused to start: see what it said")
    if lost:
        raise DataError("another process could not read or write the checkpoints: see what it said")
    return answer
