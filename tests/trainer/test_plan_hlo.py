"""Reading compiled programs: loops are resolved, each exchange is counted once, and memory adds up.

The golden files are what libtpu 0.0.21 dumped of two programs of tests/xla/test_tpu_compile.py, for 4 and for 128
chips, without what it says to its own code generator.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conf.exits import ConfigError
from conf.hardware import SLICES, find
from trainer.plan.tpu import hlo
from trainer.plan.tpu.compiler import Program, compile_program
from trainer.plan.tpu.memory import read_memory
from trainer.plan.tpu.text import prepared, signature
from trainer.plan.tpu.topology import topology_of
from trainer.plan.tpu.traffic import Traffic, by_kind, exchanges, largest

GOLDEN = Path(__file__).parent / "golden"
HEADER = "HloModule m, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}, num_partitions=4\n\n"
SUM = """%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

"""


def counted(text: str) -> dict[str, Traffic]:
    return by_kind(exchanges(hlo.parse(HEADER + SUM + text)))


def loop(counter: str, condition: str, start: str, reduced: str = "all-reduce(%x), to_apply=%sum") -> str:
    """A loop with a collective. Its state: counter, another number, the array."""
    state = "(u32[]{:T(128)}, u32[], f32[8]{0})"
    return f"""%body (s: (u32[], u32[], f32[8])) -> (u32[], u32[], f32[8]) {{
  %s = {state} parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %k = u32[] get-tuple-element(%s), index=1
  %x = f32[8]{{0}} get-tuple-element(%s), index=2
{counter}
  %y = f32[8]{{0}} {reduced}
  ROOT %r = {state} tuple(%i1, %k1, %y)
}}

%condition (s: (u32[], u32[], f32[8])) -> pred[] {{
  %s = {state} parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %k = u32[] get-tuple-element(%s), index=1
{condition}
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
{start}
  %t = {state} tuple(%i0, %k0, %p)
  %w = {state} while(%t), condition=%condition, body=%body
  ROOT %out = f32[8]{{0}} get-tuple-element(%w), index=2
}}
"""


STEP = "  %one = u32[] constant(1)\n  %i1 = u32[] add(%i, %one)\n  %k1 = u32[] copy(%k)"
BELOW_K = "  ROOT %c = pred[] compare(%i, %k), direction=LT"
START = "  %i0 = u32[] constant(2)\n  %k0 = u32[] constant(7)"


def executed(text: str) -> int | None:
    return counted(text)["all-reduce"].executed


def test_trips_follow_from_start_step_and_bound() -> None:
    assert executed(loop(STEP, BELOW_K, START)) == 5


def test_known_trip_count_is_taken() -> None:
    text = loop(STEP, BELOW_K, START).replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert executed(text) == 3


def test_counter_in_two_halves() -> None:
    """torch_xla counts with 64 bits, which a TPU holds in two words: here the lower one runs over."""
    counter = """  %one = u32[] constant(3)
  %i1 = u32[] add(%i, %one)
  %over = pred[] compare(%i1, %i), direction=LT
  %carry = u32[] convert(%over)
  %k1 = u32[] add(%k, %carry)"""
    condition = """  %zero = u32[] constant(0)
  %bound = u32[] constant(4)
  %first = pred[] compare(%k, %zero), direction=EQ
  %low = pred[] compare(%i, %bound), direction=GE
  %both = pred[] and(%first, %low)
  %signed = s32[] bitcast-convert(%k)
  %nil = s32[] constant(0)
  %negative = pred[] compare(%signed, %nil), direction=LT
  ROOT %or = pred[] or(%negative, %both)"""
    start = "  %i0 = u32[] constant(4294967288)\n  %k0 = u32[] constant(0)"
    assert executed(loop(counter, condition, start)) == 3  # 2^32 - 8, - 5 and - 2


def test_chosen_step_and_turned_condition() -> None:
    counter = """  %one = u32[] constant(1)
  %three = u32[] constant(3)
  %odd = u32[] and(%i, %one)
  %is = pred[] compare(%odd, %one), direction=EQ
  %by = u32[] select(%is, %three, %one)
  %i1 = u32[] add(%i, %by)
  %k1 = u32[] copy(%k)"""
    condition = "  %c = pred[] compare(%i, %k), direction=GE\n  ROOT %n = pred[] not(%c)"
    assert executed(loop(counter, condition, START)) == 3  # 2, 3 and 6


def test_step_and_bound_within_fusions() -> None:
    fused = """%fused (a: u32[], b: u32[]) -> (u32[], u32[]) {
  %a = u32[] parameter(0)
  %b = u32[] parameter(1)
  %two = u32[] constant(2)
  %c = u32[] add(%a, %two)
  ROOT %t = (u32[], u32[]) tuple(%c, %b)
}

"""
    counter = """  %f = (u32[], u32[]) fusion(%i, %k), kind=kLoop, calls=%fused
  %i1 = u32[] get-tuple-element(%f), index=0
  %k1 = u32[] get-tuple-element(%f), index=1"""
    start = """  %i0 = u32[] constant(0)
  %three = u32[] constant(3)
  %k0 = u32[] multiply(%three, %three)"""
    assert executed(fused + loop(counter, BELOW_K, start)) == 5


def test_unresolved_loop_is_never_counted_as_one() -> None:
    """The bound is computed from the data."""
    start = "  %i0 = u32[] constant(0)\n  %s = u32[8]{0} convert(%p)\n  %k0 = u32[] custom-call(%s)"
    found = counted(loop(STEP, BELOW_K, start))
    assert found == {"all-reduce": Traffic(static=1, executed=None, operand_bytes=None, received_bytes=None)}


def test_unresolved_loop_without_exchange_does_not_matter() -> None:
    start = "  %i0 = u32[] constant(0)\n  %s = u32[8]{0} convert(%p)\n  %k0 = u32[] custom-call(%s)"
    assert counted(loop(STEP, BELOW_K, start, "negate(%x)")) == {}


def test_endless_loop_ends_here() -> None:
    counter = "  %i1 = u32[] copy(%i)\n  %k1 = u32[] copy(%k)"
    assert executed(loop(counter, BELOW_K, START)) is None


def test_loops_in_loops_multiply() -> None:
    inner = loop(STEP, BELOW_K, START)
    body, _, entry = inner.partition("ENTRY %main")
    # What was the entry is the body of another loop, which counts to 4 and hands on the inner bound.
    outer = f"""%outer_body (o: (u32[], u32[], f32[8])) -> (u32[], u32[], f32[8]) {{
  %o = (u32[], u32[], f32[8]) parameter(0)
  %n = u32[] get-tuple-element(%o), index=0
  %k0 = u32[] get-tuple-element(%o), index=1
  %p = f32[8]{{0}} get-tuple-element(%o), index=2
  %one = u32[] constant(1)
  %n1 = u32[] add(%n, %one)
  %i0 = u32[] constant(1)
  %t = (u32[], u32[], f32[8]{{0}}) tuple(%i0, %k0, %p)
  %w = (u32[], u32[], f32[8]{{0}}) while(%t), condition=%condition, body=%body
  %out = f32[8]{{0}} get-tuple-element(%w), index=2
  ROOT %r = (u32[], u32[], f32[8]{{0}}) tuple(%n1, %k0, %out)
}}

%outer_condition (o: (u32[], u32[], f32[8])) -> pred[] {{
  %o = (u32[], u32[], f32[8]) parameter(0)
  %n = u32[] get-tuple-element(%o), index=0
  %four = u32[] constant(4)
  ROOT %c = pred[] compare(%n, %four), direction=LT
}}

ENTRY %main{entry.replace("condition=%condition, body=%body", "condition=%outer_condition, body=%outer_body")}"""
    assert executed(body + outer.replace("constant(2)", "constant(0)")) == 4 * 6


@pytest.mark.parametrize(
    ("written", "kind", "operand", "received"),
    [
        ("f32[32]{0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}", "all-gather", 32, 96),
        ("f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%sum", "reduce-scatter", 32, 24),
        ("f32[8]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%sum", "all-reduce", 32, 32),
        ("f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%sum", "all-reduce", 32, 48),
        ("f32[8]{0} all-to-all(%p), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", "all-to-all", 32, 16),
        ("f32[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", "collective-permute", 32, 32),
        ("f32[32]{0} all-gather(%p), replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", "all-gather", 32, 32),
    ],
)
def test_bytes_by_rings(written: str, kind: str, operand: int, received: int) -> None:
    text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n  ROOT %r = {written}\n}}\n"
    assert counted(text) == {kind: Traffic(1, 1, operand, received)}


def test_groups_that_cannot_be_read_are_an_error() -> None:
    text = "ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n"
    with pytest.raises(ValueError, match="groups of r cannot be read"):
        counted(text + "  ROOT %r = f32[8]{0} all-to-all(%p), replica_groups=new(4)\n}\n")


def test_asynchronous_pair_counts_once() -> None:
    found = counted("""ENTRY %main (p: bf16[8]) -> bf16[32] {
  %p = bf16[8]{0:T(1024)} parameter(0)
  %q = bf16[8]{0} copy(%p)
  %s = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %d = bf16[32]{0} all-gather-done(%s)
  %c = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1}}
  ROOT %e = bf16[8]{0} collective-permute-done(%c)
}
""")
    assert found == {"all-gather": Traffic(1, 1, 16, 48), "collective-permute": Traffic(1, 1, 16, 16)}


def test_wrapped_asynchronous_computation_counts_once() -> None:
    found = counted("""%wrapped (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-to-all(%a), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[8]{0}, u32[]) async-start(%p), calls=%wrapped
  %u = ((f32[8]{0}), f32[8]{0}, u32[]) async-update(%s), calls=%wrapped
  ROOT %d = f32[8]{0} async-done(%u), calls=%wrapped
}
""")
    assert found == {"all-to-all": Traffic(1, 1, 32, 24)}


def test_chain_of_fusions_counts_where_it_starts() -> None:
    """A gather that starts before a loop goes on within it and ends behind it: one exchange, not one a trip."""
    gather = 'all-gather(%a), channel_id=49, replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="0"}'

    def fused(name: str, target: str) -> str:
        return f"""%{name} (a: f32[8]) -> f32[32] {{
  %a = f32[8]{{0}} parameter(0)
  %g = f32[32]{{0}} {gather}
  ROOT %c = f32[32]{{0}} custom-call(%g), custom_call_target="{target}"
}}

"""

    carried = loop(STEP, BELOW_K, START, "fusion(%x), kind=kCustom, calls=%carry")
    started = carried.replace("%t = (", "%f = f32[32]{0} fusion(%p), kind=kCustom, calls=%begin\n  %t = (").replace(
        "ROOT %out", "%end = f32[32]{0} fusion(%p), kind=kCustom, calls=%finish\n  ROOT %out"
    )
    text = fused("begin", "AsyncCollectiveStart") + fused("carry", "Step") + fused("finish", "AsyncCollectiveDone")
    assert counted(text + started) == {"all-gather": Traffic(1, 1, 32, 96)}
    # Two of them under one channel, each with its start, are two.
    twice = started.replace("%t = (", "%h = f32[32]{0} fusion(%p), kind=kCustom, calls=%begin\n  %t = (")
    assert counted(text + twice) == {"all-gather": Traffic(2, 2, 64, 192)}


REDUCED = """%fused (a: f32[8], i: s32[]) -> f32[2] {
  %a = f32[8]{0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[8]{0} all-reduce(%a), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%sum
  %v = f32[8]{0} bitcast(%r)
  ROOT %s = f32[2]{0} dynamic-slice(%v, %i), dynamic_slice_sizes={2}
}

ENTRY %main (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %i = s32[] constant(0)
  ROOT %f = f32[2]{0} fusion(%p, %i), kind=kCustom, calls=%fused
}
"""


def test_sum_that_is_cut_within_a_fusion_is_a_reduce_scatter() -> None:
    assert counted(REDUCED) == {"reduce-scatter": Traffic(1, 1, 32, 24)}
    whole = REDUCED.replace("ROOT %s =", "%n = f32[8]{0} negate(%r)\n  ROOT %s =")
    assert counted(whole) == {"all-reduce": Traffic(1, 1, 32, 48)}


def test_sum_that_is_cut_outside_a_fusion_moves_whole() -> None:
    found = counted("""ENTRY %main (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  %i = s32[] constant(0)
  %r = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %s = f32[2]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={2}
}
""")
    assert found == {"all-reduce": Traffic(1, 1, 32, 48)}


def test_exchange_between_slices() -> None:
    found = counted("""ENTRY %main (p: bf16[256,8]) -> token[] {
  %p = bf16[256,8]{1,0} parameter(0)
  %n = token[] after-all()
  %s = (bf16[256,8]{1,0}, u32[], token[]) send(%p, %n), channel_id=15, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2:4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %h = (bf16[256,8]{1,0}, u32[], token[]) send(%p, %n), channel_id=16, is_host_transfer=true
  ROOT %d = token[] send-done(%s), channel_id=15, is_host_transfer=true
}
""")  # noqa: E501
    assert found == {"all-reduce between slices": Traffic(1, 1, 4096, 6144)}


def test_branches_count_all() -> None:
    branch = "%{name} (a: f32[8]) -> f32[8] {{\n  %a = f32[8]{{0}} parameter(0)\n  ROOT %r = f32[8]{{0}} {op}\n}}\n\n"
    entry = """ENTRY %main (p: f32[8], c: pred[]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %c = pred[] parameter(1)
  ROOT %r = f32[8]{0} conditional(%c, %p, %p), true_computation=%yes, false_computation=%no
}
"""
    text = branch.format(name="yes", op="all-reduce(%a), to_apply=%sum") + branch.format(name="no", op="negate(%a)")
    assert counted(text + entry) == {"all-reduce": Traffic(1, 1, 32, 48)}
    several = entry.replace("true_computation=%yes, false_computation=%no", "branch_computations={%yes, %no}")
    assert counted(text + several) == {"all-reduce": Traffic(1, 1, 32, 48)}


def test_elements_named_by_number() -> None:
    found = counted("""ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %t = (f32[8]{0}, bf16[4]{0}) tuple(%p, %p)
  ROOT %r = bf16[4]{0} all-reduce(%t#1), to_apply=%sum
}
""")
    assert found == {"all-reduce": Traffic(1, 1, 8, 12)}


def test_text_that_is_cut_off_is_an_error() -> None:
    text = (GOLDEN / "tpu_step_scheduled.txt").read_text()
    hlo.parse(text)
    for end in range(0, len(text.rstrip()) - 1, 37):
        with pytest.raises(ValueError):
            hlo.parse(text[:end])


def test_unknown_type_of_number_is_an_error() -> None:
    assert hlo.byte_count("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s4[5]{0}, pred[], token[])") == 12 + 3 + 1
    with pytest.raises(ValueError, match="f3x"):
        hlo.byte_count("f3x[8]")


def test_golden_loop() -> None:
    """Three trips, each with the sum of a matrix of fp32 over 4 chips."""
    found = exchanges(hlo.parse((GOLDEN / "tpu_loop_scheduled.txt").read_text()))
    matrix = 4 * 1024 * 1024
    assert by_kind(found) == {"all-reduce": Traffic(1, 3, 3 * matrix, 3 * 2 * matrix * 3 // 4)}
    assert [(one.shapes, one.source) for one in largest(found, 5)] == [("f32[1024,1024]", "p")]


def test_golden_step() -> None:
    """Weights gathered as bf16 and gradients summed as fp32, the latter hidden in a fusion that cuts them."""
    found = by_kind(exchanges(hlo.parse((GOLDEN / "tpu_step_scheduled.txt").read_text())))
    numbers, chips = 4096 * 16384, 128
    assert found == {
        "all-gather": Traffic(1, 1, 2 * numbers // chips, 2 * numbers // chips * (chips - 1)),
        "reduce-scatter": Traffic(1, 1, 4 * numbers, 4 * numbers // chips * (chips - 1)),
    }


def test_golden_memory() -> None:
    text = (GOLDEN / "tpu_step_assignment.txt").read_text()
    memory = read_memory(text)
    weights, x, y = 4 * 4096 * 16384 // 128, 2 * 2048 * 4096, 2 * 2048 * 16384  # y, too, is what comes back
    assert memory.arguments == weights + x + y
    assert memory.outputs == y + 512  # and the table of both outputs
    assert memory.donated == 1
    # A gradient whole, before it is cut, and tables of addresses; what lies in other memories of the chip is left out.
    assert memory.temporaries == 268_632_576
    assert 0 < memory.temporaries - 4 * 4096 * 16384 < 2**18
    assert memory.total == memory.arguments + memory.outputs + memory.constants + memory.temporaries
    first, *others = memory.largest(3)
    assert (first.kind, first.shape, first.bytes) == ("temporary", "f32[4096,16384]", 4 * 4096 * 16384)
    assert {(one.kind, one.bytes) for one in others} == {("output", y), ("argument", y)}


def test_memory_that_does_not_add_up_is_an_error() -> None:
    text = (GOLDEN / "tpu_loop_assignment.txt").read_text()
    read_memory(text)
    with pytest.raises(ValueError, match="ends before its total"):
        read_memory(text[: text.index("Total bytes")])
    lines = [line for line in text.splitlines() if not line.startswith("allocation 1:")]
    with pytest.raises(ValueError, match="in a report of"):
        read_memory("\n".join(lines))


TRACED = """HloModule IrToHlo.7, entry_computation_layout={(f32[4,8]{1,0}, /*index=1*/bf16[8]{0})->(f32[4,8]{1,0}, f32[])}

ENTRY %IrToHlo.7 (p0.1: f32[4,8], p1.2: bf16[8]) -> (f32[4,8], f32[]) {
  %p0.1 = f32[4,8]{1,0} parameter(0), sharding={devices=[2,1]0,1}, metadata={op_type="x" source_file="/a/b.py" source_line=3}
  %p1.2 = bf16[8]{0} parameter(1)
  %c.3 = f32[] constant(1)
  ROOT %tuple.4 = (f32[4,8]{1,0}, f32[]) tuple(f32[4,8]{1,0} %p0.1, f32[] %c.3)
}
"""  # noqa: E501


def test_signature() -> None:
    of = signature(TRACED)
    assert (of.parameters, of.outputs) == (["f32[4,8]", "bf16[8]"], ["f32[4,8]", "f32[]"])
    assert (of.tuple, of.held, of.outputs_held) == (True, frozenset({0}), False)
    with pytest.raises(ValueError, match="no program"):
        signature("not a program")


def test_prepared_names_donations_and_forgets_files() -> None:
    text = prepared(TRACED, {0: 0}, chips=2)
    assert text.startswith("HloModule gemcutter, input_output_alias={ {0}: (0, {}, may-alias) }, entry_computation")
    assert "/a/b.py" not in text
    assert text == prepared(TRACED.replace("/a/b.py", "/c/d.py").replace("_line=3", "_line=44"), {0: 0}, chips=2)


@pytest.mark.parametrize(
    ("donated", "chips", "message"),
    [
        ({}, 4, "traced for 2 chips, and the hardware has 4"),
        ({0: 1}, 2, r"output 0 is f32\[4,8\], so it cannot take the memory of parameter 1, which is bf16\[8\]"),
        ({2: 0}, 2, "output 2 or parameter 0 does not exist"),
        ({0: 0, 1: 0}, 2, "the same parameter"),
    ],
)
def test_what_cannot_be_compiled_is_an_error(donated: dict[int, int], chips: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(TRACED, donated, chips)


def test_topologies_have_the_chips_of_the_catalog() -> None:
    for generation, slices in SLICES.items():
        for chips in slices.sizes:
            hardware = find(f"{generation}-{chips * slices.counted}")
            topology = topology_of(hardware, 2)
            edges = [int(edge) for edge in topology.name.partition(":")[2].split("x")]
            product = 1
            for edge in edges:
                product *= edge
            assert product == chips == topology.chips // 2, topology
            assert edges == sorted(edges) or edges == [2, 2, 1], topology
    assert topology_of(find("v5e-256")).name == "v5e:16x16"
    assert topology_of(find("v5p-512")).name == "v5p:4x8x8"
    assert topology_of(find("v4-1024")).name == "v4:8x8x8"


def test_hardware_that_is_no_tpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="hardware=a3-mega is no TPU slice"):
        compile_program(Program(TRACED), find("a3-mega"), cache=None)
    with pytest.raises(ConfigError, match=r"launch\.slices=0"):
        compile_program(Program(TRACED), find("v5e-4"), slices=0, cache=None)


def test_missing_and_other_versions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions as an installer would leave them: jax as torch_xla needs it, libtpu another, no jaxlib."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
    for name, version in (("jax", "0.7.1"), ("libtpu", "0.0.46")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with pytest.raises(ConfigError) as error:
        compile_program(Program(TRACED), find("v5e-4"), cache=None)
    assert "libtpu 0.0.46 instead of 0.0.21" in str(error.value)
    assert "no jaxlib, which must be 0.7.1" in str(error.value)
    assert "jax 0.7.1" not in str(error.value)
    assert "make setup-tpu" in str(error.value)
