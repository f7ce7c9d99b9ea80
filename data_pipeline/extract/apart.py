"""Extraction in a process apart, under limits: one document may hang a parser, eat the memory or crash the interpreter.

What such a document costs is the process, which is replaced, and nothing else. The limit of time is of the processor's
seconds, not of the clock's, so a busy machine drops nothing that an idle one keeps.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import NamedTuple

from conf.exits import DataError
from conf.processes import starter
from data_pipeline.batched import batched
from data_pipeline.document import Record
from data_pipeline.extract.errors import UnreadableError
from data_pipeline.extract.plain import Extracted, read

# What parsers of unknown quality read. Decoding and repair of the other forms take time in proportion to the text.
UNTRUSTED = ("html", "docstrings")
SECONDS, MEMORY = 10.0, 1 << 30
# Handed over at a time: enough to outweigh the hand-over.
BATCH_RECORDS, BATCH_BYTES = 64, 1 << 20
# A process that sleeps spends no processor time; after so many times the limit by the clock it is given up too.
PATIENCE = 20
START_SECONDS, STARTS = 300, 3
OUT_OF_MEMORY = 3  # exit code of the child
READY, TEXT, NOTHING, UNREADABLE = b"ready", b"t", b"n", b"u"  # how messages of the child begin


class Outcome(NamedTuple):
    """What became of a record: its text, None where it holds no document, or the reason that it is dropped."""

    extracted: Extracted | None
    reason: str = ""


@dataclass
class Apart:
    """Extracts in one child process, which starts when it is first needed and ends with this one, however that ends.

    seconds   of the processor that a record may take
    memory    bytes that the child may take, beyond what it has when nothing is read yet

    One for each process and thread. Any process may have one, a daemonic worker of a pool too.
    """

    seconds: float = SECONDS
    memory: int = MEMORY
    _child: _Child | None = field(default=None, init=False, repr=False)

    def read_all(self, records: Sequence[Record]) -> list[Outcome]:
        """What became of each record, in their order.

        Reasons are `unreadable`, `extract_timeout`, `extract_memory` and `extract_crash`. A record at which a child
        ended is tried again, alone in a fresh one, unless it used up its time: neither what others left in the memory
        nor somebody who killed the child costs a record.
        """
        outcomes: dict[int, Outcome] = {}
        try:
            apart = [number for number, record in enumerate(records) if record.form in UNTRUSTED]
            for batch in batched(apart, lambda number: len(records[number].content), BATCH_BYTES, BATCH_RECORDS):
                self._read_batch(records, batch, outcomes)
        except BaseException:
            self.close()  # else its late answers would be taken for those to other records
            raise
        return [outcomes[number] if number in outcomes else read_here(record) for number, record in enumerate(records)]

    def _read_batch(self, records: Sequence[Record], batch: Sequence[int], outcomes: dict[int, Outcome]) -> None:
        waiting = deque(batch)
        again = False  # whether the first that waits had its first try
        while waiting:
            asked = [waiting[0]] if again else list(waiting)  # alone: a child may end over what stands behind it, too
            try:
                child = self._running()
                child.ask([records[number] for number in asked])
                for number in asked:
                    outcomes[number] = child.answer(PATIENCE * self.seconds)
                    waiting.popleft()
                    again = False
            except _DeadError as dead:
                self.close()
                if again or dead.final:
                    outcomes[waiting.popleft()] = Outcome(None, dead.reason)
                    again = False
                else:
                    again = True

    def close(self) -> None:
        """End the child, if there is one; another starts when it is needed."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _running(self) -> _Child:
        """The child, ready to be asked. Raises DataError where none can be started."""
        for _ in range(STARTS):
            if self._child is None:
                self._child = _Child(self.seconds, self.memory)
            if self._child.ready():
                return self._child
            code = self._child.end()
            self._child = None
        raise DataError(
            f"the process that extracts text does not start (exit code {code}, {STARTS} times): "
            "what it printed above says why; is the extra curate installed?"
        )


def read_here(record: Record) -> Outcome:
    """What became of the record, read in this process."""
    try:
        return Outcome(read(record))
    except UnreadableError:
        return Outcome(None, "unreadable")


def of_this_process(seconds: float = SECONDS, memory: int = MEMORY) -> Apart:
    """The one of this process with these limits, for functions that pools call: it stays between calls."""
    return _of_process(os.getpid(), seconds, memory)


@functools.cache
def _of_process(process: int, seconds: float, memory: int) -> Apart:
    apart = Apart(seconds, memory)
    # A fork of ours inherits this, and has no right to our child.
    atexit.register(lambda: apart.close() if os.getpid() == process else None)
    return apart


class _DeadError(Exception):
    """The child is gone.

    reason   what the record that it was at is dropped as, if it is
    final    whether the same would come of it again
    """

    def __init__(self, code: int, reason: str = "") -> None:
        self.final = code == -signal.SIGPROF
        reasons = {
            -signal.SIGPROF: "extract_timeout",
            OUT_OF_MEMORY: "extract_memory",
            -signal.SIGKILL: "extract_memory",  # most likely the kernel's choice when memory is short
        }
        self.reason = reason or reasons.get(code, "extract_crash")
        super().__init__(self.reason)


class _Child:
    """A process that runs `child.py`, and the connection to it."""

    def __init__(self, seconds: float, memory: int) -> None:
        self._connection, theirs = Pipe()
        with closing(theirs):
            path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "data_pipeline.extract.child",
                    *map(str, (theirs.fileno(), seconds, memory)),
                ],
                env=os.environ | starter() | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._ready = False

    def ready(self) -> bool:
        """Wait until it can be asked; whether it lives."""
        if not self._ready:
            try:
                self._ready = self._connection.poll(START_SECONDS) and self._connection.recv_bytes() == READY
            except (EOFError, OSError):
                return False
        return self._ready

    def ask(self, records: Sequence[Record]) -> None:
        try:
            self._connection.send_bytes(packed(records))
        except OSError as error:
            raise _DeadError(self.end()) from error

    def answer(self, seconds: float) -> Outcome:
        """The outcome of the next record. Raises _DeadError where there comes none."""
        try:
            if not self._connection.poll(seconds):
                raise _DeadError(self.end(), "extract_timeout")
            message = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _DeadError(self._process.wait()) from error
        kind, body = message[:1], message[1:]
        if kind == TEXT:
            extractor, _, text = body.partition(b"\0")
            return Outcome(Extracted(text.decode(), extractor.decode()))
        return Outcome(None, "unreadable" if kind == UNREADABLE else "")

    def end(self) -> int:
        """End it; its exit code."""
        self._process.kill()
        self._connection.close()
        return self._process.wait()


def packed(records: Sequence[Record]) -> bytes:
    """Records as one message: the length of a JSON list of what they are, the list, and their contents."""
    contents = [
        record.content.encode("utf-8", "surrogatepass") if isinstance(record.content, str) else record.content
        for record in records
    ]
    head = json.dumps(
        [
            (record.form, record.charset, isinstance(record.content, str), len(content))
            for record, content in zip(records, contents, strict=True)
        ]
    ).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *contents])


def unpacked(message: bytes) -> Iterator[Record]:
    """What `packed` packed; only what extraction looks at."""
    start = 4 + int.from_bytes(message[:4], "little")
    for form, charset, is_text, length in json.loads(message[4:start]):
        content = message[start : start + length]
        yield Record(content.decode("utf-8", "surrogatepass") if is_text else content, form, "", charset=charset)
        start += length


def answer_of(outcome: Outcome) -> bytes:
    """An outcome as a message."""
    if outcome.extracted is None:
        return UNREADABLE if outcome.reason else NOTHING
    return TEXT + outcome.extracted.extractor.encode() + b"\0" + outcome.extracted.text.encode()
