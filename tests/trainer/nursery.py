"""Training in copies of a process that has imported all that it needs, which saves the seconds of importing it.

    python -m tests.trainer.nursery

Takes lines of JSON: `folder`, `environment`, `log` (the file that gets what is said), `processes`, `work` (a function's
name) and `arguments`, which it finds in `sys.argv`. Answers each with the exit code, as `trainer.elastic` would give
it. What needs signals, a launcher or a command line is started as users start it.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

LONGEST = 120.0  # seconds of a run
_LOADED = (
    "trainer.train", "conf.compose", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch._dynamo",
    "tests.trainer.poisoned",
)  # fmt: skip


class Nursery:
    """The process, for those who want runs."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-P", "-m", "tests.trainer.nursery"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, **wanted: Any) -> int:
        """Run it to its end; gives the exit code."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def train() -> None:
    """`python -m trainer ARGUMENTS`, but for signals."""
    from trainer.__main__ import main

    sys.exit(main(sys.argv[1], sys.argv[2:]))


def bear(wanted: dict[str, Any]) -> None:
    """Become the run, or the parent of its processes."""
    from tests.trainer.forked import exit_code

    os.setsid()
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    work = resolve_name(wanted["work"])
    sys.argv = [wanted["work"], *wanted["arguments"]]
    if wanted["processes"] == 1:
        work()
    else:
        sys.exit(exit_code(wanted["processes"], work))


def main() -> None:
    for module in _LOADED:
        importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    for line in sys.stdin:
        wanted = json.loads(line)
        run = fork.Process(target=bear, args=(wanted,))
        run.start()
        run.join(LONGEST)
        if run.exitcode is None:
            assert run.pid is not None
            os.killpg(run.pid, signal.SIGKILL)
            run.join()
            with Path(wanted["log"]).open("a") as log:
                log.write(f"killed after {LONGEST} s\n")
        assert run.exitcode is not None
        print(run.exitcode if run.exitcode >= 0 else 128 - run.exitcode, flush=True)


if __name__ == "__main__":
    main()
