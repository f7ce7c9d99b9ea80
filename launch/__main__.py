"""`gemcutter <job> [group=option ...] [key=value ...]`: the door of every job and every plain command.

Only what a command needs is imported, so that `gemcutter --help` answers at once.
"""

from __future__ import annotations

import difflib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from conf.exits import CONFIG, DONE, ERRORS, STOPPED
from conf.processes import ignore, speak_on, stop_signals
from conf.schema import JOBS

HELP = """\
gemcutter: pretrains Gemma models, from raw text to an evaluated checkpoint

usage: gemcutter <job> [group=option ...] [key=value ...]
       gemcutter <command> [arguments]

jobs (overrides as in Hydra; add --help for the configuration groups, --cfg job to print the result, -m to sweep)
  curate      raw documents -> filtered, deduplicated, scrubbed text and a data card
  tokenize    curated text -> SentencePiece model and token shards
  train       token shards -> checkpoints; run it again to resume
  evaluate    score a checkpoint: benchmark tasks and bits per byte
  export      checkpoint -> weights for transformers, Keras or JAX
  import      such weights -> a run that others begin from, to score and export too
  plan        what training needs before anything is rented: memory, FLOPs, traffic, time
  demo        the whole road on this machine in minutes

commands
  explain     which documents were in a step of a run, and in which steps a document was
  skip        never feed a run these documents or steps again
  status      every run at a glance, or one with where its time went and what went wrong
  checkpoint  ls, verify or diff: the committed steps of a run, and whether every byte of them is whole
  sync        send to W&B what it lacks of a run
  config      every key with its type, default and meaning
  doctor      is this environment right, and if not what to do

examples
  gemcutter demo
  gemcutter train experiment=demo optim.peak_lr=1e-3 mesh.fsdp=2 model=tiny
  gemcutter plan model=gemma3_27b mesh.replica=16 mesh.fsdp=64 hardware=a3-mega
  gemcutter train -m optim.peak_lr=1e-3,2e-3 experiment=demo

exit codes: 0 done, 75 stopped and saved (start again), 76 hung, 77 diverged, 78 configuration, 79 data or storage
"""

OF_RUNS = ("explain", "skip", "status", "checkpoint", "sync")
COMMANDS = (*OF_RUNS, "config", "doctor")


def main(arguments: list[str] | None = None) -> int:
    """Run one job or command; returns its exit code."""
    speak_on()
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return _dispatch(name, rest)
    except ERRORS as error:
        print(f"gemcutter {name}: {error}", file=sys.stderr)
        return error.code
    except _Stopped:
        print(f"gemcutter {name}: stopped before anything was done, as asked", file=sys.stderr)
        return STOPPED


def _dispatch(name: str, rest: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE
    if name in JOBS:
        with _stopping_at_once():
            from launch.jobs import run_job

            return run_job(name, rest)
    if name in OF_RUNS:
        from launch.local import of_run

        return of_run(name, rest)
    if name == "config":
        from launch.config import print_keys

        return print_keys(rest)
    if name == "doctor":
        from launch.doctor import examine

        return examine()
    close = difflib.get_close_matches(name, [*JOBS, *COMMANDS], n=1)
    hint = f"did you mean {close[0]}?" if close else "gemcutter --help lists them."
    print(f"gemcutter: no job or command {name!r}; {hint}", file=sys.stderr)
    return CONFIG


class _Stopped(BaseException):
    """Asked to stop while no child was there to be asked; no `Exception`, which Hydra would take for one of a job."""


@contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Whoever asks for a stop ends this process with 75: while no child runs, there is nothing to save."""

    def stop(number: int, frame: FrameType | None) -> None:
        ignore()
        raise _Stopped

    previous = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is stop:  # else we were asked, and asking again must not change how we end
                signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
