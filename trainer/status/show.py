"""A status in words, tables and bars, 80 columns wide."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.report.goodput import ACTIVITIES, Ledger, Line
from trainer.report.terminal import in_words
from trainer.status.recorded import Status

_COLOURS = {
    "starting": "cyan", "running": "green", "ended": "green", "stopped": "yellow", "idle": "dim", "died": "red",
    "hung": "red", "diverged": "red",
}  # fmt: skip
_BAR = 20  # columns
_INCIDENTS = 8
_SILENT = 60.0  # seconds without a sign of life from which on it is worth saying


def show_all(console: Console, runs: Sequence[Status]) -> None:
    """A line for each run, and below them what went wrong."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for title in ("step", "loss", "tok/s", "goodput", "saved", "tries", "incid."):
        table.add_column(title, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.run_id,
            Text(run.state, _COLOURS[run.state]),
            f"{run.step}/{'?' if run.steps is None else run.steps}" if run.attempts else "-",
            _or_dash(run.loss, ".3f"),
            "-" if run.tokens_per_second is None else _short(run.tokens_per_second),
            _or_dash(run.ledger.goodput, ".0%"),
            "-" if run.checkpoint is None else f"{run.checkpoint} {_age(run.saved)}",
            str(run.attempts),
            str(len(run.incidents)),
        )
    console.print(table)
    for run in runs:
        if run.cause:
            console.print(f"{run.run_id} {run.state}: {_brief(run.cause)}", highlight=False, markup=False)


def show_one(console: Console, run: Status) -> None:
    """One run: what it does, where its time went, what went wrong, what to do."""

    def say(words: str | Text) -> None:
        console.print(words, highlight=False, markup=False)

    on = f", attempt {run.attempts} on {run.processes} {run.device} process(es)" if run.processes else ""
    say(Text.assemble(run.run_id, " ", (run.state, _COLOURS[run.state]), on))
    if run.cause:
        say(f"  {_brief(run.cause, 480)}")
    if run.silent is not None and run.state == "running" and run.silent > _SILENT:
        say(f"  no sign of life for {_age(run.silent)}")
    facts = [f"step {run.step}" + (f" of {run.steps}" if run.steps is not None else "")]
    facts += [] if run.loss is None else [f"loss {run.loss:.3f}"]
    facts += [] if run.tokens_per_second is None else [f"{run.tokens_per_second:,.0f} tokens/s"]
    saved = "no checkpoint" if run.checkpoint is None else f"checkpoint of step {run.checkpoint}, {_age(run.saved)} old"
    say("  ".join(facts))
    say(f"{saved}, in {run.path}")
    if run.ledger.wall:
        say(f"\nWhere {_clock(run.ledger.wall)} went, {run.ledger.goodput:.1%} of it into steps")
        console.print(_time_table(run.ledger))
    if run.incidents:
        say(f"\nIncidents, the newest of {len(run.incidents)} first")
        incidents = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
        for event in run.incidents[:_INCIDENTS]:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
            incidents.add_row(when, f"attempt {event['attempt']}", Text(_brief(_words(event), 240)))
        console.print(incidents)
    say(f"\nNext: {_next(run)}")


def _time_table(ledger: Ledger) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(width=_BAR)
    for activity, seconds in ledger.seconds.items():
        if seconds or activity == "step":
            share = seconds / ledger.wall
            bar = "#" * round(_BAR * share)
            table.add_row(activity, f"{share:.1%}", _clock(seconds), bar, ACTIVITIES.get(activity, ""))
    return table


def _words(event: Line) -> str:
    """What an event says. One of another version, or of no training process, is shown as it is."""
    try:
        return in_words(event["event"], event)
    except (KeyError, ValueError, TypeError):
        left_out = ("time", "attempt", "event", "at_step", "spent")
        facts = (f"{key}={value}" for key, value in event.items() if key not in left_out)
        return f"{event['event']}: {', '.join(facts)}"


def _next(run: Status) -> str:
    again = "from the beginning" if run.checkpoint is None else f"from step {run.checkpoint}"
    undone = run.step - (run.checkpoint or 0)
    twice = f"; {undone} step(s) are done again" if undone > 0 else ""
    return {
        "starting": "wait for its first step",
        "running": f"`kill` its process with SIGTERM to stop it: it saves first. `tail -f {run.path}/metrics.jsonl`",
        "ended": f"`gemcutter evaluate run={run.run_id}`, `gemcutter export run={run.run_id}`, or train on with steps=",
        "stopped": f"start the same command again: it goes on {again}",
        "died": f"start the same command again: it goes on {again}{twice}",
        "hung": f"look at the stacks its event names; then start the same command again: it goes on {again}{twice}",
        "diverged": f"`gemcutter explain {run.run_id} --step N` says what was in a step, `gemcutter skip "
        f"{run.run_id} --steps A-B` passes over them; then start again, {again}",
        "idle": f"`gemcutter train run_id={run.run_id} ...`, or init_from={run.run_id} where it holds imported weights",
    }[run.state]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _brief(text: str, longest: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def _short(number: float) -> str:
    """Three digits: 874, 12.3k, 4.56M"""
    for unit in ("", "k", "M"):
        if number < 999.5 or unit == "M":
            break
        number /= 1000
    return f"{number:.{0 if not unit or number >= 99.95 else 1}f}{unit}"


def _age(seconds: float | None) -> str:
    """One unit: 12s, 5m, 3h, 2d"""
    seconds = seconds or 0.0
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _clock(seconds: float) -> str:
    """h:mm:ss, and below a minute seconds"""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
