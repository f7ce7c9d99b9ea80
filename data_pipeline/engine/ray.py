"""Tasks on a Ray cluster that exists already: KubeRay, Ray on Slurm or on TPU VMs. The only file that knows Ray.

Files go through a folder that all nodes see; through Ray go only the descriptions of tasks.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.exits import ConfigError, DataError
from data_pipeline.engine.stage import MOST_DEATHS, shown

_ROOMS = ("conf", "data_pipeline")
_ANSWER_SECONDS = 10.0
_AHEAD = 2  # tasks for each core of the cluster that wait at Ray for their turn


@dataclass
class Ray:
    """The cluster at an address ("auto": the one that this machine belongs to).

    As a context it stays connected from one list of tasks to the next. A connection that this process has to Ray
    already is used, and left open.
    """

    address: str

    def __enter__(self) -> Ray:
        self._connected = contextlib.ExitStack()
        self._connected.enter_context(self._connection())
        return self

    def __exit__(self, *_: object) -> None:
        self._connected.close()

    def run(self, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        """See `Engine.run`. The cluster may grow and shrink meanwhile."""
        with self._connection() as ray:
            yield from self._run(ray, work, tasks)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        try:
            import ray
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise  # the package is there, but broken: its own message says more
            raise ConfigError(
                "curation on a Ray cluster needs the package ray, which is not installed: pip install 'gemcutter[ray]'"
            ) from None
        if ray.is_initialized():
            yield ray
            return
        self._connect(ray)
        try:
            yield ray
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        here = Path(__file__).parents[2]
        try:
            _knock(self.address)
            ray.init(
                self.address,
                runtime_env={"py_modules": [str(here / room) for room in _ROOMS]},
                log_to_driver=False,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.address}: no Ray cluster answers there ({error}): start one (`ray start --head`), or correct "
                "the address"
            ) from error

    def _run(self, ray: Any, work: Callable[[tuple[int, Any]], int], tasks: Sequence[tuple[int, Any]]) -> Iterator[int]:
        remote = ray.remote(num_cpus=1, max_retries=MOST_DEATHS - 1)(work_on)
        under_way: dict[Any, tuple[int, Any]] = {}
        waiting = iter(tasks)
        try:
            while True:
                room = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))) - len(under_way)
                for _, task in zip(range(room), waiting, strict=False):
                    under_way[remote.remote(work, task)] = task
                if not under_way:
                    return
                done, _ = ray.wait(list(under_way), num_returns=1)
                for reference in done:
                    task = under_way.pop(reference)
                    yield _result(ray, reference, task)
        finally:
            for reference in under_way:
                ray.cancel(reference, force=True)


def _knock(address: str) -> None:
    """Raise OSError where nothing listens there: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()


def work_on(work: Callable[[tuple[int, Any]], int], task: tuple[int, Any]) -> int:
    """What runs on the cluster."""
    return work(task)


def _result(ray: Any, reference: Any, task: tuple[int, Any]) -> int:
    try:
        number: int = ray.get(reference)
        return number
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as it was raised there
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.OutOfMemoryError,
    ) as error:
        raise DataError(
            f"{shown(task)} ended {MOST_DEATHS} Ray workers or nodes, most likely for want of memory "
            f"({type(error).__name__}): give them more, or take out what it reads"
        ) from error
    except ray.exceptions.RayError as error:
        raise DataError(
            f"{shown(task)} was not done, as Ray failed ({type(error).__name__}: {error}): look into its "
            "logs, then start again"
        ) from error
