"""Promises of spikes: a strange step is left out; too many make the run go back and pass over their data; then it ends,
and says which documents they were."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import Job, Spike
from tests.trainer.poisoned import poison
from trainer import checkpoint
from trainer import train as training
from trainer.anomaly.spikes import Taken, limits
from trainer.backend.native import Native
from trainer.liveness.watch import Watch
from trainer.report import Stopwatch

LONG = ("steps=24", "optim.schedule=constant", "optim.warmup_steps=0", "optim.peak_lr=1e-3")
SPIKES = ("spike.sigmas=8", "spike.window=8")  # limits from step 6 on
BACK = ("checkpoint.every=4", "checkpoint.keep_last=10", "optim.max_skipped=3", "spike.margin=2")


def taken(step: int, loss: float = 3.0, grad_norm: float = 1.0, *, skipped: bool = False, stage: int = 1) -> Taken:
    return Taken(step, (stage, 12), loss, grad_norm, None, None, skipped)


def test_the_limit_is_above_what_steps_do_by_chance_and_below_a_spike() -> None:
    """Noise of 10 % that is normal in logarithms: 6 deviations are a factor of 1.8, and 128 steps tell them to 10 %."""
    draw = random.Random(3)
    recent = [taken(n, 3.0, math.exp(draw.gauss(0, 0.1))) for n in range(1, 129)]
    loss, grad_norm = limits(Spike(sigmas=6), recent, 130, (1, 12))
    assert math.exp(0.6 * 0.8) < grad_norm < math.exp(0.6 * 1.25)
    assert 3.0 < loss < 3.1  # where nothing varies, a few per cent
    spoilt = [*recent[:60], taken(61, 3.0, 100.0), *recent[61:]]
    assert limits(Spike(sigmas=6), spoilt, 130, (1, 12))[1] == pytest.approx(grad_norm, rel=0.05)


@pytest.mark.parametrize(
    ("recent", "step"),
    [
        ([], 1),
        ([taken(n) for n in range(1, 64)], 65),  # half a window is not there yet
        ([taken(n, stage=2) for n in range(1, 129)], 130),  # another mixture or batch size
        ([taken(n, skipped=True) for n in range(1, 129)], 130),
        ([taken(n) for n in range(1, 129)], 260),  # too long ago
    ],
)
def test_where_too_little_is_known_there_is_no_limit(recent: list[Taken], step: int) -> None:
    assert limits(Spike(sigmas=6), recent, step, (1, 12)) == (math.inf, math.inf)


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(0, 1e6), st.booleans()), min_size=20, max_size=40),
    st.integers(2, 16),
)
@settings(deadline=None)  # a busy machine is no fault
def test_the_step_before_has_no_part_in_a_limit(steps: list[tuple[float, float, bool]], window: int) -> None:
    """It may still be computed; and what is older than the window may be gone."""
    spike, every = Spike(sigmas=4, window=window), []
    for number, (loss, grad_norm, skipped) in enumerate(steps, 1):
        every.append(taken(number, loss, grad_norm, skipped=skipped))
    step = len(every) + 1
    assert limits(spike, every, step, (1, 12)) == limits(spike, every[-window - 1 : -1], step, (1, 12))


def test_without_a_limit_nothing_is_another_number(inside, lab, alone) -> None:
    """Also with one that no step reaches."""
    code, said = inside("unreached", "spike.sigmas=1000", "spike.window=4")
    assert code == 0, said
    run = lab.run("unreached")
    assert run.column("loss") == alone.column("loss")
    assert run.column("grad_norm") == alone.column("grad_norm")


@pytest.fixture
def train(inside, lab, monkeypatch):
    """Training in this process with some data poisoned. Gives (exit code, what it said, the run)."""

    def run(run_id: str, poisoned: str, *changes: str):
        with monkeypatch.context() as patch:
            if poisoned:
                poison(patch, poisoned)
            code, said = inside(run_id, *LONG, *changes)
        (lab.run(run_id).folder / ".lock").unlink(missing_ok=True)  # a lock ends with its process; this one goes on
        return code, said, lab.run(run_id)

    return run


@pytest.fixture
def ranks(lab):
    """The same on two processes."""

    def run(run_id: str, poisoned: str, *changes: str):
        lab.environment |= {"POISONED": poisoned}
        done = lab.end(run_id, *LONG, *changes, processes=2, work="tests.trainer.poisoned:as_rank")
        return done.code, done.said, done

    return run


def events(run, name: str) -> list[dict]:
    return [event for event in run.events if event["event"] == name]


@pytest.mark.parametrize("kind", ["steep", "high"])
def test_a_single_spike_is_left_out_and_the_run_goes_on(train, kind: str) -> None:
    code, said, run = train("one", f"12:{kind}", *SPIKES)
    assert code == 0, said
    assert [event["step"] for event in events(run, "skipped")] == [12]
    name = "grad_norm" if kind == "steep" else "loss"
    assert name in events(run, "skipped")[0]["wrong"]
    assert " above " in events(run, "skipped")[0]["wrong"]
    assert run.column("steps_skipped") == [0] * 11 + [1] * 13
    assert max(run.column("loss")[12:]) < run.column("loss")[0]
    assert events(run, "rollback") == []


def test_a_resume_has_the_same_limits(train) -> None:
    """Saved in the middle of a window, and two steps before a spike."""
    whole, parts = train("whole", "14:steep", *SPIKES), []
    for steps in (7, 12, 24):
        parts.append(train("parts", "14:steep", *SPIKES, f"steps={steps}"))
    assert [whole[0], *(code for code, _, _ in parts)] == [0] * 4
    for name in ("loss", "grad_norm", "steps_skipped"):
        assert parts[-1][2].column(name) == whole[2].column(name), name
    states = [checkpoint.find(run.folder / "checkpoints").state["recent"] for run in (whole[2], parts[-1][2])]
    assert states[0] == states[1]
    assert any(step["grad_norm_limit"] for step in states[0])


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bad_window_is_passed_over_and_the_run_is_as_if_it_had_never_had_it(
    lab, train, ranks, command, processes: int
) -> None:
    """Of what two processes do, and one, each run is held against one whose list had the window from the start."""
    start = train if processes == 1 else ranks
    code, said, run = start("bad", "14-16:steep", *SPIKES, *BACK)
    assert code == 0, said
    (back,) = events(run, "rollback")
    # The checkpoint of step 8 stands before the two steps of margin before step 14.
    assert (back["from_step"], back["to_step"], back["attempt"]) == (16, 8, 2)
    assert back["samples"] == [11 * 12, 16 * 12]
    assert "GOING BACK from step 16 to the checkpoint of step 8, passing over the data of steps 12 to 16" in said

    # The same list from step 8 on, which is as far as the other run comes before it gets the list.
    assert start("clean", "99:loss", *BACK, "steps=8")[0] == 0
    (lab.folder / "runs" / "clean" / "skip.jsonl").write_text((run.folder / "skip.jsonl").read_text())
    code, said, clean = start("clean", "99:loss", *SPIKES, *BACK)
    assert code == 0, said
    for name in ("loss", "grad_norm", "samples_done", "tokens_seen", "steps_skipped"):
        assert run.column(name) == clean.column(name), name
    ours, theirs = run.tensors(), clean.tensors()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert [line["attempt"] for line in run.metrics] == [1] * 8 + [2] * 16
    if processes == 1:
        code, listed, _ = command("skip", "bad", "--list")
        assert (code, "steps 12 to 16" in listed, "spike at step 14" in listed) == (0, True, True)


def test_a_run_that_went_back_goes_on_after_a_restart(train) -> None:
    """What was saved of the steps it left behind is gone, and the attempt after it has a number of its own."""
    code, said, run = train("restarted", "14-16:steep", *SPIKES, *BACK, "steps=18", "checkpoint.every=1")
    assert code == 0, said
    assert events(run, "rollback")[0]["to_step"] == 11
    code, said, run = train("restarted", "", *SPIKES, *BACK)
    assert code == 0, said
    assert [event["attempt"] for event in events(run, "start")] == [1, 3]
    assert run.metrics[-1]["step"] == 24
    assert run.column("samples_done")[10:12] == [11 * 12, 17 * 12]


def test_what_is_begun_with_the_first_step_begins_anew_when_a_run_goes_back(train, monkeypatch) -> None:
    """Further back than this process began: deadlines and traces; but what was compiled stays so."""
    keys = (*SPIKES, *BACK, "profile.steps=[11,13]")
    assert train("far", "", *keys, "steps=12")[0] == 0
    watches: list[Watch] = []
    settling: list[tuple[int, int]] = []
    begun: list[str] = []

    def watch(*arguments):
        watches.append(Watch(*arguments))
        return watches[0]

    def limits_of(job, run, *arguments):
        settling.extend([(run.attempt, run.step)] if watches[0]._settling() else [])
        return limits_on_device(job, run, *arguments)

    class Noted(Stopwatch):
        def begin(self, activity: str) -> None:
            begun.append(activity)
            super().begin(activity)

    limits_on_device, native = training.limits_on_device, Native.__init__

    def compiling(self: Native, *arguments) -> None:
        native(self, *arguments)
        self.compiles = True

    monkeypatch.setattr(Native, "__init__", compiling)
    for name, value in {"Watch": watch, "limits_on_device": limits_of, "Stopwatch": Noted}.items():
        monkeypatch.setattr(training, name, value)
    code, said, run = train("far", "14-16:steep", *keys)
    assert code == 0, said
    assert events(run, "rollback")[0]["to_step"] == 8
    assert settling == [(2, 12), (2, 13), (2, 14), (3, 8), (3, 9), (3, 10)]
    assert "compile" in begun[: begun.index("start")]
    assert "compile" not in begun[begun.index("start") :]
    assert {file.name for file in (run.folder / "profiles").iterdir()} == {
        f"steps-{steps}.rank-0.pt.trace.json" for steps in ("11-12.attempt-1", "13-13.attempt-2", "11-13.attempt-3")
    }


def test_most_of_many_steps_are_too_many_even_if_some_are_not(train) -> None:
    """What a spike that was let through leaves behind: losses that stay high, though not each."""
    code, said, run = train("most", "13-14:high,16-17:high", *SPIKES, *BACK)
    assert code == 0, said
    (back,) = events(run, "rollback")
    assert "as one of 4 among the last 6 (more than optim.max_skipped=3)" in back["why"]
    assert back["samples"] == [10 * 12, 17 * 12]


@pytest.mark.parametrize("processes", [1, 2])
def test_trouble_that_returns_ends_the_run_and_names_its_documents(train, ranks, command, processes: int) -> None:
    start = train if processes == 1 else ranks
    code, said, run = start("again", "14-99:steep", *SPIKES, *BACK, "spike.rollbacks=2")
    assert code == 77, said
    first, second = events(run, "rollback")
    assert (first["to_step"], second["to_step"]) == (8, 4)  # each time further back
    assert events(run, "end") == []
    texts = sorted((run.folder / "incidents").glob("*.txt"), key=lambda path: path.stem.partition(".")[2])
    assert len(texts) == 3
    text = texts[-1].read_text()
    document = json.loads(texts[-1].with_suffix(".json").read_text())
    assert document["kind"] == "spike"
    assert [event["to_step"] for event in document["rollbacks"]] == [8, 4]
    assert "the run ends: the run went back 2 times here already (spike.rollbacks=2)" in text

    # The documents are those that `explain` finds in the steps that were skipped.
    bad = [step for step in document["steps"] if step["skipped"]]
    assert len(bad) == 3
    assert all(step["grad_norm"] > step["grad_norm_limit"] for step in bad)
    expected = set()
    for step in bad:
        _, told, _ = command("explain", "again", "--step", step["step"], "--json")
        expected |= {json.loads(line)["document"] for line in told.splitlines()}
    assert {part["document"] for part in document["documents"]} == expected
    assert document["documents"][0]["url"] == f"https://example.org/{document['documents'][0]['document']}"
    assert str(texts[-1].relative_to(run.folder.parent.parent)) in said
    assert document["documents"][0]["document"] in said
    assert document["documents"][0]["document"] in text
    assert "`gemcutter skip again --steps " in said


@pytest.mark.parametrize(
    ("changes", "why"),
    [(("checkpoint.every=100",), "no checkpoint stands before them"), (("spike.rollbacks=0",), "(spike.rollbacks=0)")],
)
def test_where_there_is_no_way_back_it_ends_at_once(train, changes: tuple[str, ...], why: str) -> None:
    code, said, run = train("nowhere", "6-20:loss", *BACK, *changes)
    assert code == 77
    assert "step 8 of nowhere has loss=inf" in said
    assert "as the last of 3 steps in a row (optim.max_skipped=3): nothing of it was saved" in said
    assert why in said
    assert [path.suffix for path in sorted((run.folder / "incidents").iterdir())] == [".json", ".txt"]


def test_what_is_not_finite_goes_back_too(train) -> None:
    code, said, run = train("none", "14-16:gradient", *BACK)
    assert code == 0, said
    assert [event["to_step"] for event in events(run, "rollback")] == [8]
    assert run.metrics[-1]["step"] == 24


def test_defaults_look_for_no_spikes() -> None:
    assert Job().spike.sigmas is None
