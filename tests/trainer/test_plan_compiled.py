"""What is said of a step as the TPU compiler laid it out, whatever that was; needs none of its packages."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from conf.compose import compose
from trainer.plan.planned import on_hardware, plan_of
from trainer.plan.show_compiled import compiled_as_json, show_compiled
from trainer.plan.tpu.compiled import CompiledPlan
from trainer.plan.tpu.compiler import PAIR, Compiled
from trainer.plan.tpu.memory import Buffer
from trainer.plan.tpu.traffic import Traffic

GIB = 2**30
OVERRIDES = ("model=gemma_2b", "hardware=v5e-16", "micro_batch=2", "tokens_per_step=65536", "remat=block")
LAID_OUT = Compiled(
    fits=True, refusal="", hbm_bytes=6 * GIB, limit_bytes=16 * GIB - 258 * 2**20, argument_bytes=2 * GIB,
    output_bytes=0, temporary_bytes=4 * GIB, donated=44,
    traffic={"all-gather": Traffic(7, 90, 10**9, 15 * 10**9), "reduce-scatter": Traffic(3, 36, 10**9, 8 * 10**9)},
    exchanges=[], buffers=[Buffer(3 * GIB, "temporary", "bf16[18,2,2048,16384]", "fusion.7", 4, "call.9/dot.12")],
    versions=PAIR, topology="v5e:4x4", chips=16, seconds=1.5,
)  # fmt: skip


def shown(*overrides: str, **changes: object) -> tuple[CompiledPlan, str]:
    job = on_hardware(compose("plan", [*OVERRIDES, *overrides]))
    found = CompiledPlan(plan_of(job), dataclasses.replace(LAID_OUT, **changes))
    console = Console(width=120, record=True, file=io.StringIO())
    show_compiled(console, job, found, [])
    return found, " ".join(console.export_text().split())


def test_memory_traffic_and_time_are_held_together() -> None:
    found, text = shown()
    assert found.fits
    assert found.ratio == pytest.approx(23e9 / (15 / 16 * 2_506_434_560 * 8))
    assert found.time is not None
    assert found.time.overlapped == pytest.approx(23e9 / 200e9)
    assert found.time.step == found.time.compute  # of all parts the longest
    for words in ("44 results take their place", "all over the least", "1.22", "bound by compute", "in 1.5 s"):
        assert words in text


def test_exchanges_between_slices_share_the_network_of_their_slice() -> None:
    between = {"all-reduce between slices": Traffic(2, 2, 10**9, 10**9)}
    found, text = shown("mesh.replica=2", "mesh.fsdp=16", "tokens_per_step=131072", traffic=between)
    assert found.time is not None
    assert found.time.overlapped == pytest.approx(10**9 / (6.4e12 / 8 / 256))
    assert "exchanges over links and network" in text


def test_what_cannot_be_counted_is_not_counted_as_nothing() -> None:
    unresolved = LAID_OUT.traffic | {"collective-permute": Traffic(2, None, None, None)}
    found, text = shown(traffic=unresolved)
    assert found.ratio is None
    assert "how often some of the exchanges run cannot be told" in text
    assert found.time is not None  # a lower bound from those that can
    assert found.time.overlapped == pytest.approx(23e9 / 200e9)
    assert compiled_as_json(found)["received_bytes"] is None


def test_an_average_lies_beside_the_step() -> None:
    plain, _ = shown(hbm_bytes=LAID_OUT.limit_bytes - GIB // 4)
    averaged, text = shown("optim.ema=0.99", hbm_bytes=LAID_OUT.limit_bytes - GIB // 4)
    assert plain.fits
    assert averaged.beside == pytest.approx(4 * 2_506_434_560 / 16, rel=1e-3)
    assert not averaged.fits
    assert "of the weights, beside the step" in text


def test_what_does_not_fit_names_what_is_largest() -> None:
    _, text = shown(fits=False, hbm_bytes=20 * GIB)
    assert "does not fit, says libtpu 0.0.21 for v5e:4x4" in text
    assert "bf16[18,2,2048,16384] │ dot, and at other times 4 more" in text


def test_a_refusal_before_anything_is_laid_out_is_told() -> None:
    nothing = dict.fromkeys(("argument_bytes", "output_bytes", "temporary_bytes"))
    found, text = shown(fits=False, refusal="Ran out of memory in memory space vmem", hbm_bytes=None, traffic={},
                        buffers=[], **nothing)  # fmt: skip
    assert (found.fits, found.hbm, found.ratio, found.time, found.mfu) == (False, None, None, None, None)
    assert "not known" in text
    assert "Ran out of memory in memory space vmem" in text
    assert "exchanges" not in text
