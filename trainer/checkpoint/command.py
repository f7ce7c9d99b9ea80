"""`gemcutter checkpoint ls|verify|diff`: the committed steps of a run, in each place where it keeps them, whether every
byte of them is whole, and what changed from one to another. Changes nothing.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from conf.exits import DATA, DONE, ConfigError
from trainer.arguments import Arguments
from trainer.checkpoint.committed import (
    COMMIT,
    QUARANTINE,
    BrokenError,
    Committed,
    committed_steps,
    files_by_step,
    find,
    is_committed,
    opened,
    quarantined,
    step_name,
)
from trainer.checkpoint.newest import newest, not_committed, steps_of
from trainer.checkpoint.store import Patient, patient
from trainer.run_directory import checkpoint_places, existing_run, flat, read_config


def look(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    parser = Arguments(prog="gemcutter checkpoint", description=" ".join(__doc__.split(": ", 1)[1].split()))
    what = parser.add_subparsers(required=True, dest="what", metavar="ls|verify|diff")
    listed = what.add_parser("ls", help="every step, committed or not")
    verified = what.add_parser("verify", help="read every byte of committed steps; exit code 79 where one is wrong")
    verified.add_argument("--step", type=int, help="only this step")
    compared = what.add_parser("diff", help="what differs between two steps of a run, or of two runs")
    for each in (listed, verified, compared):
        each.add_argument("run", help="run id or run directory")
    compared.add_argument("other", nargs="?", help="another run (default: the same)")
    compared.add_argument(
        "--steps", type=int, nargs=2, metavar=("A", "B"), help="which (default: the last two, or of two runs the last)"
    )
    compared.add_argument("--all", action="store_true", help="show tensors that are equal, too")
    chosen = parser.parse_args(arguments)
    # What is read by a program is not broken into lines.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if chosen.what == "ls":
        return max(_list(store, console) for store in _stores(chosen.run))
    if chosen.what == "verify":
        return _verify(_stores(chosen.run), chosen.step, console)
    return _compare(chosen.run, chosen.other, chosen.steps, chosen.all, console)


def _stores(run: str) -> list[Patient]:
    path = existing_run(run)
    return [patient(place) for place in checkpoint_places(path, read_config(path))]


def _list(store: Patient, console: Console) -> int:
    table = Table("step", "", "attempt", "committed at", "bytes", "tensors", "tokens", "what is wrong")
    for column in (0, 4, 5, 6):
        table.columns[column].justify = "right"
    for step, files in files_by_step(store).items():
        folder, named = store.within(step_name(step)), ""
        if is_committed(store, step, files):
            try:
                found = opened(store, step)
                named, size = found.attempt, sum(file["bytes"] for file in found.files.values())
                tokens = f"{found.state.get('tokens_seen', 0):,}"
                table.add_row(
                    str(step), "committed", named, _clock(found.time), f"{size:,}", str(len(found.tensors)), tokens, ""
                )
            except BrokenError as broken:
                table.add_row(str(step), "[bold red]BROKEN[/]", "", "", "", "", "", _within(store, broken.reason))
        for attempt in sorted({name.split("/")[0] for name in files if "/" in name} - {named}):
            own = [name for name in files if name.startswith(f"{attempt}/")]
            size = sum(folder.size(name) or 0 for name in own)
            if f"{attempt}/{QUARANTINE}" in own:
                said = quarantined(folder, f"{attempt}/{QUARANTINE}")
                at, why = _clock(said["time"]), _within(store, said["reason"])
                table.add_row(str(step), "[bold red]quarantined[/]", attempt, "", f"{size:,}", "", "", f"{why} ({at})")
            elif COMMIT not in files or named:
                table.add_row(str(step), "unfinished", attempt, "", f"{size:,}", "", "", "")
    console.print(f"checkpoints in {store}")
    console.print(table if table.row_count else "there are none")
    return DONE


def _verify(stores: list[Patient], step: int | None, console: Console) -> int:
    if step is None:
        return max(_verify_steps(store, committed_steps(store), console) for store in stores)
    have = [store for store in stores if step in committed_steps(store)]
    if not have:
        raise not_committed(stores, step)
    return max(_verify_steps(store, [step], console) for store in have)


def _verify_steps(store: Patient, steps: list[int], console: Console) -> int:
    table, broken = Table("step", "attempt", "files", "bytes", "verdict"), 0
    for each in steps:
        try:
            found = find(store, each)
            assert found is not None
            faults = {name: fault for name in found.files if (fault := found.fault(name))}
            said = [_within(store, found.broken(name, fault).reason) for name, fault in faults.items()]
            size = f"{sum(file['bytes'] for file in found.files.values()):,}"
            about = [found.attempt, str(len(found.files)), size]
        except BrokenError as error:
            said, about = [_within(store, error.reason)], ["", "", ""]
        broken += bool(said)
        table.add_row(str(each), *about, f"[bold red]BROKEN[/]: {'; '.join(said)}" if said else "every byte as written")
    console.print(f"checkpoints in {store}")
    console.print(table if steps else "there are none")
    return DATA if broken else DONE


def _compare(run: str, other: str | None, steps: list[int] | None, everything: bool, console: Console) -> int:
    first, second = _stores(run), _stores(other or run)
    if steps is None:
        have = steps_of(first)
        steps = [*have[-1:], *steps_of(second)[-1:]] if other else have[-2:]
    if len(steps) != 2:
        where = " or ".join(map(str, first))
        raise ConfigError(f"there are no two steps to compare in {where}: name them, or another run")
    pair = [newest(stores, step, every_byte=True) for stores, step in zip((first, second), steps, strict=True)]
    a, b = (found for found in pair if found is not None)
    names = [f"{found.payload}" for found in (a, b)]
    console.print(f"a: {names[0]}\nb: {names[1]}")
    if other:
        _print_differences("configuration", _config(run), _config(other), console)
    _print_differences("state", a.state, b.state, console)
    _print_tensors(a, b, everything, console)
    return DONE


def _config(run: str) -> dict[str, Any]:
    config: dict[str, Any] = read_config(existing_run(run))["config"]
    return config


def _print_differences(what: str, a: dict[str, Any], b: dict[str, Any], console: Console) -> None:
    before, after = flat(a), flat(b)
    table = Table(what, "a", "b")
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            shown = [_short(values[key]) if key in values else "-" for values in (before, after)]
            table.add_row(key, *shown)
    console.print(table if table.row_count else f"the {what} is the same")


def _print_tensors(a: Committed, b: Committed, everything: bool, console: Console) -> None:
    from trainer.checkpoint.parts import difference  # torch, which takes seconds to import

    table, equal = Table("tensor", "shape", "", "largest difference"), 0
    table.columns[3].justify = "right"
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        ours, theirs = a.tensors.get(name), b.tensors.get(name)
        if ours is None or theirs is None:
            table.add_row(name, str((ours or theirs or {})["shape"]), f"only in {'a' if ours else 'b'}", "")
        elif ours != theirs:
            table.add_row(name, str(ours["shape"]), f"in b {theirs['dtype']} of {theirs['shape']}", "")
        else:
            same, most = difference(a, b, name)
            equal += same
            if everything or not same:
                table.add_row(name, str(ours["shape"]), "equal" if same else "differs", f"{most:.3g}")
    if table.row_count:
        console.print(table)
    console.print(f"{equal} of {len(a.tensors.keys() | b.tensors.keys())} tensors are equal, bit for bit")


def _within(store: Patient, reason: str) -> str:
    """A reason that names a file by its place in the store."""
    return reason.removeprefix(f"{store}/")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _clock(seconds: float | None) -> str:
    return "unknown" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
