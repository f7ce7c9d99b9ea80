"""Promises of `profile.steps`: a trace per process of just those steps, and no loss that is changed by it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch.profiler import profile

from trainer.report.goodput import goodput


def trace(file: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(file.read_text())["traceEvents"] if event.get("ph") == "X"]


def marks(events: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Name of each step to when it began and ended."""
    return {
        event["name"]: (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith("step ")
    }


def test_each_process_traces_just_the_steps_asked_for(shared_lab, pair) -> None:
    run = shared_lab.train("traced", "profile.steps=[10,12]", processes=2)
    files = sorted((run.folder / "profiles").iterdir())
    assert [file.name for file in files] == [f"steps-10-12.attempt-1.rank-{rank}.pt.trace.json" for rank in (0, 1)]
    for file in files:
        events = trace(file)
        steps = marks(events)
        assert list(steps) == ["step 10", "step 11", "step 12"]
        updates = [event for event in events if event["name"].startswith("Optimizer.step#")]
        assert len(updates) == 3
        for update, (began, ended) in zip(sorted(updates, key=lambda event: event["ts"]), steps.values(), strict=True):
            assert began < update["ts"] < update["ts"] + update["dur"] < ended
        products = [event["ts"] for event in events if event["name"] == "aten::mm"]
        for began, ended in steps.values():
            # forward and twice that backward: two layers of seven matrices, and the loss
            assert sum(began < ts < ended for ts in products) >= 3 * 15
        assert all(steps["step 10"][0] < ts < steps["step 12"][1] for ts in products)
    event = next(event for event in run.events if event["event"] == "profile")
    assert (event["first"], event["last"]) == (10, 12)
    assert [Path(shared_lab.folder, file) for file in event["files"]] == files
    assert "trace of steps 10 to 12" in run.said
    assert run.column("loss") == pair.column("loss")
    assert run.column("grad_norm") == pair.column("grad_norm")


def test_a_resume_within_the_steps_traces_what_is_left(inside, lab) -> None:
    same = "optim.schedule=constant"  # the learning rate of a step must not depend on `steps`
    assert inside("plain", same, "steps=7")[0] == 0
    for steps in (5, 7):
        lab.train("halves", same, f"steps={steps}", "profile.steps=[4,6]")
    found = {file.name: list(marks(trace(file))) for file in (lab.folder / "runs/halves/profiles").iterdir()}
    assert found == {
        "steps-4-5.attempt-1.rank-0.pt.trace.json": ["step 4", "step 5"],
        "steps-6-6.attempt-2.rank-0.pt.trace.json": ["step 6"],
    }
    assert lab.run("halves").column("loss") == lab.run("plain").column("loss")


def test_the_trace_is_kept_with_the_run_in_wandb(lab) -> None:
    run = lab.train("kept", "tracker=offline", "steps=3", "profile.steps=[2,3]")
    (record,) = run.folder.glob("wandb/offline-run-*/run-kept.wandb")
    assert b"steps-2-3.attempt-1-kept" in record.read_bytes()
    assert b"steps-2-3.attempt-1.rank-0.pt.trace.json" in record.read_bytes()


def test_an_attempt_that_fails_writes_no_trace(inside, lab) -> None:
    wild = ("optim.peak_lr=1e38", "optim.warmup_steps=0")
    assert inside("wild", *wild, "profile.steps=[1,20]")[0] == 77
    assert not (lab.folder / "runs/wild/profiles").exists()


def test_steps_beyond_the_end_trace_nothing(inside, lab) -> None:
    assert inside("short", "steps=2", "profile.steps=[3,4]")[0] == 0
    assert not (lab.folder / "runs/short/profiles").exists()


def test_the_writing_of_a_trace_is_no_step(inside, lab, monkeypatch) -> None:
    seconds, export = 2.0, profile.export_chrome_trace

    def slowly(self: profile, path: str) -> None:
        time.sleep(seconds)
        export(self, path)

    monkeypatch.setattr(profile, "export_chrome_trace", slowly)
    assert inside("slow", "steps=4", "profile.steps=[2,2]")[0] == 0
    run = lab.run("slow")
    spent = goodput(run.ledger, run.lines).seconds
    assert spent["other"] >= seconds
    assert spent["step"] < sum(run.column("step_seconds")) + seconds / 2
