"""What the TPU compiler makes of small programs for slices that are not attached, against what follows by hand.

Runs in .venv-tpu with PJRT_DEVICE=CPU and CPU_NUM_DEVICES=4 (make test-tpu). Each compile takes under a second.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_xla
import torch_xla.distributed.spmd as xs
import torch_xla.runtime as xr

from conf.exits import ConfigError
from conf.hardware import Hardware, find
from trainer.plan.tpu.compiler import Compiled, CompilerFailed, Program, compile_program
from trainer.plan.tpu.traffic import Traffic

pytestmark = pytest.mark.xla


def slice_of(name: str) -> Hardware:
    hardware = find(name)
    assert hardware is not None
    return hardware


def compiled(text: str, name: str = "v5e-4", *, donated: dict[int, int] | None = None, **options: object) -> Compiled:
    return compile_program(Program(text, donated or {}), slice_of(name), **{"cache": None, **options})


def sharded(chips: int, *tiles: int) -> str:
    """Attributes of an annotation as torch_xla writes it on an operation."""
    devices = ",".join(map(str, range(chips)))
    tiling = ",".join(map(str, tiles))
    return f'custom_call_target="Sharding", sharding={{devices=[{tiling}]{devices}}}'


def step(chips: int, rows: int, width: int, hidden: int) -> str:
    """A matrix sharded over all chips: used as bf16, and changed by its gradient in fp32."""
    w, x, y = f"f32[{width},{hidden}]", f"bf16[{rows},{width}]", f"bf16[{rows},{hidden}]"
    by_rows = sharded(chips, chips, 1)
    layout = f"{{({w}{{1,0}}, {x}{{1,0}}, {y}{{1,0}})->({y}{{1,0}}, {w}{{1,0}})}}"
    return f"""HloModule step, entry_computation_layout={layout}

ENTRY %main (w: {w}, x: {x}, g: {y}) -> ({y}, {w}) {{
  %w0 = {w}{{1,0}} parameter(0)
  %w = {w}{{1,0}} custom-call(%w0), {by_rows}
  %x0 = {x}{{1,0}} parameter(1)
  %x = {x}{{1,0}} custom-call(%x0), {by_rows}
  %g0 = {y}{{1,0}} parameter(2)
  %g = {y}{{1,0}} custom-call(%g0), {by_rows}
  %wb0 = bf16[{width},{hidden}]{{1,0}} convert(%w)
  %wb = bf16[{width},{hidden}]{{1,0}} custom-call(%wb0), {by_rows}
  %y = {y}{{1,0}} dot(%x, %wb), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %ys = {y}{{1,0}} custom-call(%y), {by_rows}
  %dw = {w}{{1,0}} dot(%x, %g), lhs_contracting_dims={{0}}, rhs_contracting_dims={{0}}
  %dws = {w}{{1,0}} custom-call(%dw), {by_rows}
  %new = {w}{{1,0}} subtract(%w, %dws)
  ROOT %t = ({y}{{1,0}}, {w}{{1,0}}) tuple(%ys, %new)
}}
"""


LOOP_LAYOUT = "{(f32[1024,1024]{1,0}, f32[3,1024,512]{2,1,0})->(f32[1024,1024]{1,0})}"
LOOP = f"""HloModule loop, entry_computation_layout={LOOP_LAYOUT}

%body (s: (s32[], f32[1024,1024], f32[3,1024,512])) -> (s32[], f32[1024,1024], f32[3,1024,512]) {{
  %s = (s32[], f32[1024,1024]{{1,0}}, f32[3,1024,512]{{2,1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %sum = f32[1024,1024]{{1,0}} get-tuple-element(%s), index=1
  %xs = f32[3,1024,512]{{2,1,0}} get-tuple-element(%s), index=2
  %zero = s32[] constant(0)
  %x3 = f32[1,1024,512]{{2,1,0}} dynamic-slice(%xs, %i, %zero, %zero), dynamic_slice_sizes={{1,1024,512}}
  %x0 = f32[1024,512]{{1,0}} reshape(%x3)
  %x = f32[1024,512]{{1,0}} custom-call(%x0), {sharded(4, 1, 4)}
  %p = f32[1024,1024]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}
  %ps = f32[1024,1024]{{1,0}} custom-call(%p), custom_call_target="Sharding", sharding={{replicated}}
  %t0 = f32[1024,1024]{{1,0}} tanh(%ps)
  %next = f32[1024,1024]{{1,0}} add(%sum, %t0)
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  ROOT %r = (s32[], f32[1024,1024]{{1,0}}, f32[3,1024,512]{{2,1,0}}) tuple(%j, %next, %xs)
}}

%goes_on (s: (s32[], f32[1024,1024], f32[3,1024,512])) -> pred[] {{
  %s = (s32[], f32[1024,1024]{{1,0}}, f32[3,1024,512]{{2,1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(3)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (w: f32[1024,1024], xs: f32[3,1024,512]) -> (f32[1024,1024]) {{
  %w = f32[1024,1024]{{1,0}} parameter(0)
  %xs0 = f32[3,1024,512]{{2,1,0}} parameter(1)
  %xs = f32[3,1024,512]{{2,1,0}} custom-call(%xs0), {sharded(4, 1, 1, 4)}
  %zero = s32[] constant(0)
  %start = (s32[], f32[1024,1024]{{1,0}}, f32[3,1024,512]{{2,1,0}}) tuple(%zero, %w, %xs)
  %end = (s32[], f32[1024,1024]{{1,0}}, f32[3,1024,512]{{2,1,0}}) while(%start), condition=%goes_on, body=%body
  %sum = f32[1024,1024]{{1,0}} get-tuple-element(%end), index=1
  ROOT %r = (f32[1024,1024]{{1,0}}) tuple(%sum)
}}
"""
TILE = 4096  # bytes


def negated(size: int) -> str:
    """A program of so many bytes on each chip, and as many that it gives."""
    shape = f"f32[{size // TILE},8,128]"
    return f"""HloModule negated, entry_computation_layout={{({shape}{{2,1,0}})->{shape}{{2,1,0}}}}

ENTRY %main (p: {shape}) -> {shape} {{
  %p = {shape}{{2,1,0}} parameter(0)
  ROOT %n = {shape}{{2,1,0}} negate(%p)
}}
"""


def test_traffic_and_memory_of_a_sharded_step() -> None:
    chips, rows, width, hidden = 128, 128 * 2048, 4096, 16384
    numbers = width * hidden
    text = step(chips, rows, width, hidden)
    plain = compiled(text, "v5e-128")
    assert plain.traffic == {
        "all-gather": Traffic(1, 1, 2 * numbers // chips, 2 * numbers // chips * (chips - 1)),
        "reduce-scatter": Traffic(1, 1, 4 * numbers, 4 * numbers // chips * (chips - 1)),
    }
    assert plain.received_bytes == 6 * numbers // chips * (chips - 1)
    weights, x, y = 4 * numbers // chips, 2 * rows * width // chips, 2 * rows * hidden // chips
    assert plain.argument_bytes == weights + x + y
    assert plain.output_bytes is not None
    assert 0 <= plain.output_bytes - (weights + y) < TILE  # and a table of addresses
    assert plain.fits
    assert plain.donated == 0
    assert plain.chips == chips
    assert plain.seconds < 20

    donated = compiled(text, "v5e-128", donated={1: 0})
    assert donated.donated == 1
    assert donated.argument_bytes == plain.argument_bytes
    assert plain.output_bytes - donated.output_bytes == weights
    assert plain.hbm_bytes - donated.hbm_bytes > weights // 2  # temporaries move a little
    assert donated.traffic == plain.traffic


def test_sharding_that_the_text_gives_a_parameter_is_held() -> None:
    text = step(16, 16 * 128, 2048, 2048)
    free = compiled(text, "v5e-16")
    held = compiled(text.replace("parameter(0)", "parameter(0), sharding={replicated}"), "v5e-16")
    assert held.argument_bytes - free.argument_bytes == 4 * 2048 * 2048 * 15 // 16


def test_loop_is_counted_by_its_trips_and_full_compile_agrees() -> None:
    fast, full = compiled(LOOP), compiled(LOOP, fast=False)
    matrix = 4 * 1024 * 1024
    assert fast.traffic == {"all-reduce": Traffic(1, 3, 3 * matrix, 3 * 2 * matrix * 3 // 4)}
    assert dataclasses.replace(full, seconds=0.0) == dataclasses.replace(fast, seconds=0.0)


def test_what_has_no_room_does_not_fit() -> None:
    """Also outputs beside arguments, which this compiler lets pass as long as each has room alone."""
    limit = compiled(negated(TILE)).limit_bytes
    assert 15 * 2**30 < limit < 16 * 2**30
    enough = limit // 2 // TILE * TILE - 2**20
    assert compiled(negated(enough)).fits
    outputs = compiled(negated(enough + 2**21))
    assert not outputs.fits
    assert outputs.hbm_bytes == 2 * (enough + 2**21)
    assert outputs.argument_bytes == outputs.output_bytes == enough + 2**21
    assert compiled(negated(enough + 2**21), donated={0: 0}).fits


def test_near_the_limit_the_compiler_decides() -> None:
    """Its code needs some memory too, which is known only once it is generated."""
    limit = compiled(negated(TILE)).limit_bytes
    within = compiled(negated(limit - 2**20), donated={0: 0})
    assert (within.fits, within.refusal) == (True, "")
    beside_code = compiled(negated(limit - 2 * TILE), donated={0: 0})
    assert beside_code.hbm_bytes == limit - 2 * TILE
    assert not beside_code.fits
    assert "Ran out of memory in memory space hbm" in beside_code.refusal
    beyond = compiled(negated(limit + TILE), donated={0: 0}, fast=False)
    assert not beyond.fits


@pytest.mark.parametrize(
    "name", ["v4-8", "v4-4096", "v5e-1", "v5e-8", "v5e-256", "v5p-8", "v5p-512", "v6e-1", "v6e-64"]
)
def test_generations_and_sizes(name: str) -> None:
    """A device is a chip, also of v4, and programs may take nearly all of its memory."""
    hardware = slice_of(name)
    result = compiled(negated(2**20), name)
    assert result.chips == hardware.joined
    assert 0.95 < result.limit_bytes / hardware.chip.memory_bytes < 1.01
    assert result.argument_bytes == 2**20


def test_slices_side_by_side_exchange_over_the_network() -> None:
    chips = 32
    text = step(chips, chips * 2048, 2048, 2048)
    two = compiled(text, "v5e-16", slices=2)
    assert two.chips == chips
    # Each slice gathers half of the rest from the other, shared by its 16 chips.
    matrix = 2 * 2048 * 2048
    assert two.traffic["all-gather between slices"] == Traffic(1, 1, matrix // 32, matrix // 32)
    assert two.traffic["all-reduce between slices"].executed == 1
    one = compiled(text, "v5e-32")
    assert not [kind for kind in one.traffic if "slices" in kind]


def test_traced_model_of_torch_xla() -> None:
    """A step with parameters sharded in the text, as annotations of real tensors put them there."""
    if not xr.is_spmd():
        xr.use_spmd()
    mesh = xs.Mesh(np.arange(4), (4,), ("fsdp",))
    device = torch_xla.device()
    weight = torch.zeros(1024, 512).to(device).requires_grad_()
    rows = torch.zeros(64, 1024).to(device)
    xs.mark_sharding(weight, mesh, ("fsdp", None))
    xs.mark_sharding(rows, mesh, ("fsdp", None))
    loss = (rows @ weight).square().sum()
    loss.backward()
    new = weight.detach() - 0.1 * weight.grad
    text = torch_xla._XLAC._get_xla_tensors_hlo([loss, new])
    result = compiled(text, "v5e-4")
    held, fed = 4 * 1024 * 512 // 4, 4 * 64 * 1024 // 4
    assert held + fed <= result.argument_bytes < held + fed + 4 * TILE  # and scalars
    assert result.received_bytes > 0
    with pytest.raises(ValueError, match="traced for 4 chips, and the hardware has 16"):
        compiled(text, "v5e-16")


def test_failure_of_the_compiler_is_told() -> None:
    with pytest.raises(CompilerFailed, match="Unknown opcode: nonsense"):
        compiled(negated(TILE).replace("negate(", "nonsense("))


def test_no_verdict_in_time_is_an_error() -> None:
    began = time.monotonic()
    with pytest.raises(CompilerFailed, match="no verdict of the TPU compiler in time"):
        compiled(negated(TILE), patience=0.2)
    assert time.monotonic() - began < 5


def test_slice_that_libtpu_does_not_describe() -> None:
    odd = dataclasses.replace(slice_of("v5p-128"), chips_per_host=3)
    with pytest.raises(ConfigError, match="libtpu describes no v5p:4x4x4"):
        compile_program(Program(negated(TILE)), odd, cache=None)


def test_results_are_kept_and_broken_ones_are_not_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(LOOP, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    kept = path.stat().st_mtime_ns
    assert compiled(LOOP, cache=tmp_path) == first  # the seconds, too, which no second compile would repeat
    assert path.stat().st_mtime_ns == kept
    assert capsys.readouterr().err == ""

    content = json.loads(path.read_text())
    content["compiled"]["hbm_bytes"] //= 2
    for broken in (json.dumps(content), path.read_text()[:100], "[]", ""):
        path.write_text(broken)
        again = compiled(LOOP, cache=tmp_path)
        assert again.hbm_bytes == first.hbm_bytes
        assert f"{path} is broken: the program is compiled again" in capsys.readouterr().err
        assert json.loads(path.read_text())["compiled"]["hbm_bytes"] == first.hbm_bytes

    compiled(LOOP.replace("constant(3)", "constant(2)"), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=20000")
    compiled(LOOP, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
