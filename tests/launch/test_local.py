"""Jobs on this machine: processes follow the mesh, signals reach the child, its exit code comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from conf import compose, hardware, schema
from conf.exits import ConfigError
from conf.processes import STOP_SIGNALS
from launch import local


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        ([], 1),
        (["mesh.fsdp=2"], 2),
        (["mesh.fsdp=2", "mesh.replica=2"], 4),
        (["mesh.replica=2"], 2),
        (["launch.processes=4"], 4),
        (["launch.processes=4", "mesh.replica=2"], 4),
        (["mesh=hsdp"], 8),
    ],
)
def test_processes_follow_the_mesh(overrides: list[str], processes: int) -> None:
    assert local.training_processes(compose.compose("train", ["backend=cpu", *overrides])) == processes


@pytest.mark.parametrize(
    ("overrides", "processes"), [([], 8), (["mesh.replica=2"], 8), (["launch.processes=4", "mesh.fsdp=4"], 4)]
)
def test_one_process_per_gpu(monkeypatch: pytest.MonkeyPatch, overrides: list[str], processes: int) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: 8)
    assert local.training_processes(compose.compose("train", overrides)) == processes


def test_mesh_that_does_not_fit_the_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "visible_gpus", lambda: 8)
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=4 does not match the number of GPUs=8: set mesh\.fsdp=-1"):
        local.training_processes(compose.compose("train", ["mesh.fsdp=4"]))


@pytest.mark.parametrize("overrides", [[], ["mesh.fsdp=4"], ["mesh.fsdp=64", "mesh.tensor=4", "micro_batch=1"]])
def test_one_process_drives_all_chips_of_a_host(overrides: list[str]) -> None:
    """Whatever the mesh, whose axes are of the chips of all hosts."""
    job = compose.compose("train", ["backend=xla", "tokens_per_step=1048576", *overrides])
    assert local.training_processes(job) == 1
    assert local.command("train", 1, overrides, job.launch)[3:5] == ["trainer.elastic", "1"]


def test_a_host_with_chips_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    job = compose.compose("train", ["mesh.fsdp=4"])
    assert local.training_processes(job) == 4
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert local.training_processes(job) == 1
    monkeypatch.delenv("PJRT_DEVICE")
    monkeypatch.setattr(hardware, "tpu_chips", lambda: 4)
    assert local.training_processes(job) == 1
    assert local.training_processes(compose.compose("train", ["backend=cpu", "mesh.fsdp=2"])) == 2


def test_what_does_not_run_on_chips_is_refused_where_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "tpu_chips", lambda: 4)
    with pytest.raises(ConfigError, match=r"backend=auto is xla: compile=true is for torch\.compile"):
        local.training_processes(compose.compose("train", ["compile=true"]))


def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.visible_gpus() == 0


def test_command_of_one_process_and_of_many() -> None:
    python = [sys.executable, "-P", "-m"]
    here = schema.Launch()
    assert local.command("train", 1, ["steps=2"], here) == [*python, "trainer.elastic", "1", "train", "steps=2"]
    assert local.command("train", 4, ["mesh.fsdp=4"], here) == [*python, "trainer.elastic", "4", "train", "mesh.fsdp=4"]
    assert local.command("evaluate", 1, ["steps=2"], here) == [*python, "trainer", "evaluate", "steps=2"]
    assert local.command("curate", 1, [], here) == [*python, "data_pipeline", "curate"]


def test_each_of_several_hosts_starts_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["backend=cpu", "launch.nodes=2", "launch.rendezvous=node-0:29400"]
    job = compose.compose("train", [*keys, "mesh.fsdp=4"])
    assert local.training_processes(job) == 2
    hosts = ["--nodes=2", "--rendezvous=node-0:29400"]
    assert local.command("train", 2, [], job.launch)[3:] == ["trainer.elastic", *hosts, "2", "train"]
    assert local.training_processes(compose.compose("train", [*keys, "launch.processes=4"])) == 4
    monkeypatch.setattr(local, "visible_gpus", lambda: 8)
    assert local.training_processes(compose.compose("train", [*keys[1:], "micro_batch=2"])) == 8


def test_cores_are_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, str] = {}
    monkeypatch.setattr(local, "call_while", lambda stopping, arguments, environment: started.update(environment) or 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    for processes in (1, 2, 4):
        overrides = ["backend=cpu", f"mesh.fsdp={processes}"]
        local.run("train", compose.compose("train", overrides), overrides)
        assert int(started["OMP_NUM_THREADS"]) == max(1, cores // processes)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    local.run("train", compose.compose("train", ["backend=cpu"]), [])
    assert started["OMP_NUM_THREADS"] == "7"  # what the user says holds


@pytest.mark.parametrize("code", [0, 1, 75, 77, 78, 79])
def test_exit_code_is_handed_through(code: int) -> None:
    assert local.call([sys.executable, "-c", f"raise SystemExit({code})"], dict(os.environ)) == code


def test_death_by_signal_is_told_as_a_shell_tells_it() -> None:
    suicide = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert local.call([sys.executable, "-c", suicide], dict(os.environ)) == 128 + signal.SIGKILL


def test_handlers_are_given_back() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    local.call([sys.executable, "-c", ""], dict(os.environ))
    assert {number: signal.getsignal(number) for number in before} == before


CHILD = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.{name}, save)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.{name}])  # a child begins with these blocked
print("ready", flush=True)
time.sleep(60)
"""
LAUNCHER = (
    "import os, sys; from launch.local import call; sys.exit(call([sys.executable, '-c', sys.argv[1]], os.environ))"
)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP"])
def test_stop_signal_reaches_the_child_and_its_code_comes_back(name: str) -> None:
    command = [sys.executable, "-c", LAUNCHER, CHILD.format(name=name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        launcher.send_signal(signal.Signals[name])
        assert launcher.stdout.read() == "saved\n"
        assert launcher.wait(timeout=30) == 75
