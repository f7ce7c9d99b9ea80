"""The process that `apart.py` starts: extracts what it is sent, under limits that the kernel keeps."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

from conf.processes import deafen, end_with
from data_pipeline.document import Record
from data_pipeline.extract.apart import OUT_OF_MEMORY, READY, Outcome, answer_of, unpacked
from data_pipeline.extract.errors import ParserMemoryError, UnreadableError
from data_pipeline.extract.plain import read

# Loaded before the first record, whose time and memory they are not.
LIBRARIES = (
    "ftfy",
    "resiliparse.extract.html2text",
    "resiliparse.parse.encoding",
    "resiliparse.parse.html",
    "trafilatura",
    "justext",
)


def main(connection: int, seconds: float, memory: int) -> None:
    end_with()
    deafen()  # whoever started us answers stop signals; we end with the connection
    # The kernel ends us when the time of a record is used up, wherever we are then.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    logging.disable()  # what libraries say of single pages: what became of them is counted
    for name in LIBRARIES:
        importlib.import_module(name)
    most = _address_space() + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(connection) as parent, suppress(EOFError, ConnectionError):
        parent.send_bytes(READY)
        while True:
            for record in unpacked(parent.recv_bytes()):
                signal.setitimer(signal.ITIMER_PROF, seconds)
                answer = answer_of(_outcome(record))
                signal.setitimer(signal.ITIMER_PROF, 0)
                parent.send_bytes(answer)


def _outcome(record: Record) -> Outcome:
    try:
        return Outcome(read(record))
    except ParserMemoryError as error:
        raise MemoryError from error
    except UnreadableError:
        return Outcome(None, "unreadable")


def _address_space() -> int:
    """Bytes of address space that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
