"""The formulas of `gemcutter plan` against counts made one by one, and what follows from them."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.flop_counter import FlopCounterMode

from conf.hardware import Hardware, find
from conf.schema import AXES, CHOICES, Job
from trainer import sharded
from trainer.model import SIZES, Gemma, GemmaConfig, document_attention, loss, num_parameters
from trainer.model.attention import WholeRows
from trainer.model.kernels import KERNELS, visible
from trainer.optim.optimizer import decays
from trainer.plan import attention, flops, memory, update
from trainer.plan.flops import model_flops
from trainer.plan.layout import Layout
from trainer.plan.roofline import exchange_time, step_time
from trainer.plan.tpu.floor import floor
from trainer.plan.traffic import Collective, collectives

ATTENTION = runpy.run_path(str(Path(__file__).with_name("plan_steps.py")))["ATTENTION"]  # how torch's counter counts it
RELEASED = [name for name in SIZES if name != "tiny"]


def layout_of(config: GemmaConfig, *sizes: int, **changes) -> Layout:
    axes = dict(zip(AXES, sizes or (1, 1, 1, 1), strict=True))
    job = Job(micro_batch=1)
    layout = Layout.of(job, config, axes, "cuda", job.data.sequence_length)
    return dataclasses.replace(layout, **changes)


def document_rows(length: int, document: int) -> torch.Tensor:
    """Segment ids of a row of documents of one length, end to end."""
    return torch.arange(length)[None] // document + 1


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 40), document=st.integers(1, 40), window=st.integers(1, 40))
def test_model_flops_count_the_pairs_that_attention_sees(length: int, document: int, window: int) -> None:
    """Of the mask itself, pair by pair, for layers with a window and without."""
    config = dataclasses.replace(SIZES["gemma3_1b"], window=window)
    segments = document_rows(length, document)
    pairs = sum(
        int(visible(segments, window if kind == "local" else None, WholeRows()).sum()) for kind in config.layer_kinds
    )
    matrices = [shape for shape in layout_of(config).block_weights() if shape[1] > 1]
    weights = config.num_layers * sum(rows * columns for rows, columns in matrices)
    weights += config.vocab_size * config.d_model
    # Two operations a number and token, three passes; of attention two products, forward, and four backward.
    expected = 6 * length * weights + 12 * pairs * config.num_heads * config.head_dim
    assert model_flops(config, length, min(document, length)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", RELEASED)
def test_weights_are_those_of_the_model(name: str) -> None:
    config = SIZES[name]
    layout = layout_of(config)
    assert layout.held_numbers() == num_parameters(config)
    with torch.device("meta"):
        model = Gemma(config)
    assert config.num_layers * layout.block_numbers() == sum(weight.numel() for weight in model.blocks.parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_sharing_divides_weights_but_for_padding(name: str) -> None:
    """No more than a row of each weight is padding; key heads that the tensor axis cannot divide are whole on each."""
    config = SIZES[name]
    for sizes in ((1, 8, 1, 1), (4, 64, 1, 1), (1, 8, 2, 1), (1, 4, 1, 4)):
        layout = layout_of(config, *sizes)
        tensor, sharing = layout.axes["tensor"], layout.processes // layout.axes["replica"]
        copies = tensor - 1 if config.num_kv_heads % tensor else 0
        key_heads = 2 * config.num_layers * config.num_kv_heads * config.head_dim * config.d_model
        fair = (num_parameters(config) + copies * key_heads) / sharing
        assert fair <= layout.held_numbers() <= 1.01 * fair


def test_every_policy_of_recomputation_is_known() -> None:
    assert set(CHOICES["remat"]) <= set(memory.KEPT)
    assert set(memory.KEPT) == set(flops.RECOMPUTED) == set(flops.RECOMPUTED_ON_XLA)


def test_sizes_are_those_of_the_model() -> None:
    assert attention.BLOCK == document_attention.QUERIES
    for name in ("CHUNK", "LEAST_ROWS", "PART", "OTHER_PART"):
        assert getattr(memory, name) == getattr(loss, name)


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(2, 40),
    document=st.integers(2, 40),
    window=st.integers(2, 40),
    cap=st.sampled_from([None, 50.0]),
    kernel=st.sampled_from(["reference", "sdpa", "documents"]),
)
@example(length=300, document=170, window=140, cap=None, kernel="documents")  # several blocks, and a rest
@example(length=300, document=290, window=20, cap=50.0, kernel="documents")
def test_attention_is_counted_as_its_kernels_work(
    length: int, document: int, window: int, cap: float | None, kernel: str
) -> None:
    """Against what passes through torch on rows of several documents, the last one cut."""
    assume(length % document != 1)  # einsum multiplies with a single key, which is counted as no product of matrices
    config = dataclasses.replace(SIZES["gemma2_2b"], window=window, attention_soft_cap=cap)
    layout = layout_of(config, rows=2, sequence_length=length, kernel=kernel)
    q_BSNH, k_BTKH, v_BTKH = (torch.zeros(2, length, heads, 2) for heads in (2, 1, 1))
    attend = KERNELS[kernel](document_rows(length, document).expand(2, -1), window, WholeRows())
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        attend(q_BSNH, k_BTKH, v_BTKH, cap, 1.0)
    pairs = attention.computed_pairs(layout, "local", min(document, length))
    assert counter.get_total_flops() == 2 * 2 * pairs * q_BSNH.shape[2] * q_BSNH.shape[3]


@pytest.mark.parametrize(
    ("length", "document", "window", "share"), [(1024, 1024, 100_000, 1), (1000, 300, 200, 1), (1024, 700, 129, 2)]
)
def test_flex_attention_is_counted_in_the_blocks_of_its_mask(
    length: int, document: int, window: int, share: int
) -> None:
    config = dataclasses.replace(SIZES["gemma3_1b"], window=window)
    layout = layout_of(config, 1, 1, share, 1, sequence_length=length, kernel="flex")
    row = document_rows(length, document)[0]

    def sees(_b: torch.Tensor, _h: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        back = s + length - length // share - t
        return (back >= 0) & (back < window) & (row[s + length - length // share] == row[t])

    mask = create_block_mask(sees, 1, None, length // share, length, device="cpu", BLOCK_SIZE=attention.BLOCK)
    blocks = int((mask.to_dense() != 0).sum())
    assert attention.computed_pairs(layout, "local", document) == blocks * attention.BLOCK**2


@pytest.mark.parametrize(
    ("length", "window", "size", "blocks"),
    [(1024, 100_000, 512, 3), (1024, 256, 512, 3), (2048, 256, 512, 7), (384, 64, 384, 1), (640, 64, 128, 9)],
)
def test_splash_attention_is_counted_in_blocks_of_a_row(length: int, window: int, size: int, blocks: int) -> None:
    """The largest that divide a row: on the diagonal, left of it, and back to where a window begins."""
    config = dataclasses.replace(SIZES["gemma3_1b"], window=window)
    layout = layout_of(config, rows=3, sequence_length=length, kernel="splash")
    assert attention.fused(layout)
    assert attention.computed_pairs(layout, "local", 100) == 3 * blocks * size**2


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("selective", 0), ("block", 1)])
def test_operations_on_tpus_follow_from_the_splash_kernels_and_the_loss(remat: str, again: int) -> None:
    """By hand: Gemma 2B on 16 x 2 chips, a row of 1024 each; tests/xla counts a traced program product by product."""
    layout = layout_of(SIZES["gemma_2b"], 1, 16, 1, 2, sequence_length=1024, device="xla", kernel="splash", remat=remat)
    matrices = 2048 * 4 * 256 * 2 + 2048 * 256 * 2 + 3 * 2048 * 8192  # queries, output; the one key head; feed-forward
    passes = 2 * 1024 * matrices
    down = 2 * 1024 * 2048 * 8192  # of which nothing is needed twice: the layer's result is at hand
    scores = 2 * 3 * 512**2 * 4 * 256  # of blocks of 512 two on the diagonal and one below; four heads
    layer = 3 * passes + (2 + 7) * scores + again * (passes - down + 2 * scores)
    words = 8004 * 16  # half of 256,128 on 16 shards, padded
    assert flops.executed_flops(layout) == 18 * layer + 4 * 2 * 1024 * 2048 * words


def test_the_least_traffic_is_that_of_weights_gradients_and_megatron() -> None:
    """The floors of Gemma 2B on 256 chips and of 7B on 16 x 16, in GB as their benchmark states them."""
    changes = {"sequence_length": 8192, "remat": "block", "reduce": 2}
    alone = floor(layout_of(SIZES["gemma_2b"], 1, 256, 1, 1, **changes))
    assert alone.total == alone.weights == pytest.approx(14.98e9, rel=1e-3)
    shared = layout_of(SIZES["gemma_7b"], 1, 16, 1, 16, **changes)
    assert floor(shared).weights == pytest.approx(3.00e9, rel=2e-3)
    assert floor(shared).activations == pytest.approx(15.85e9, rel=1e-3)
    kept = floor(dataclasses.replace(shared, remat="selective"))
    assert kept.activations == pytest.approx(floor(shared).activations * 4 / 6)
    assert floor(dataclasses.replace(shared, reduce=4)).weights == pytest.approx(4.00e9, rel=2e-3)
    assert floor(shared, micro_batches=3).total == pytest.approx(3 * floor(shared).total, rel=1e-9)
    replicas = floor(layout_of(SIZES["gemma_2b"], 4, 64, 1, 1, **changes))
    assert replicas.replicas == round(2 * 3 / 4 * num_parameters(SIZES["gemma_2b"]) / 64 * 2)
    assert floor(layout_of(SIZES["gemma_2b"])).total == 0


@pytest.mark.parametrize("processes", [1, 3, 8, 1000])
def test_matrices_are_shared_out_as_muon_does(processes: int) -> None:
    layout = layout_of(SIZES["gemma3_1b"], optimizer="muon")
    with torch.device("meta"):
        model = Gemma(layout.config)
    shapes = [parameter.shape for name, parameter in model.named_parameters() if decays(name)]
    matrices = layout.config.num_layers * layout.matrices()
    assert [tuple(shape) for shape in shapes] == matrices
    assert update.shared_out(matrices, processes) == sharded._shared_out(shapes, processes)


@pytest.mark.parametrize("name", RELEASED)
def test_memory_grows_with_rows_and_falls_with_what_saves_it(name: str) -> None:
    config = SIZES[name]
    base = layout_of(config, 1, 8, 1, 1, rows=2)
    total = memory.peak(base).total
    assert memory.peak(base.with_rows(4)).total > total
    for policy in ("selective", "block"):
        assert memory.peak(dataclasses.replace(base, remat=policy)).total < total
    for sizes in ((1, 16, 1, 1), (1, 8, 2, 1), (1, 8, 1, 2)):
        if config.num_heads % sizes[3] == 0:
            assert memory.peak(layout_of(config, *sizes, rows=2)).total < total


def machine() -> Hardware:
    found = find("a3-mega")
    assert found is not None
    return found


def test_rings_take_links_within_a_machine_and_the_network_beyond() -> None:
    """Against byte counts by hand: 8 GPUs a machine, 450e9 bytes/s of links each, 200e9 of network together."""
    config = SIZES["gemma3_27b"]
    whole = 64_000_000

    def seconds(axes: tuple[str, ...], *sizes: int, kind: str = "all-gather") -> float:
        one = Collective("", kind, axes, whole, 1, True)
        return exchange_time(one, layout_of(config, *sizes), machine())

    within = seconds(("fsdp", "context"), 1, 8, 1, 1)
    assert within == pytest.approx(whole * 7 / 8 / 450e9)
    # 64 processes on 8 machines: each machine lacks 7/8 of the whole, which comes in once for its 8 GPUs.
    assert seconds(("fsdp", "context"), 1, 64, 1, 1) == pytest.approx(whole * 7 / 8 / 200e9)
    # One process a machine: its 8 groups share the network. A sum goes round twice.
    assert seconds(("replica",), 4, 8, 1, 1, kind="all-reduce") == pytest.approx(2 * 8 * whole * 3 / 4 / 200e9)
    assert seconds(("tensor",), 1, 1, 1, 4) == pytest.approx(whole * 3 / 4 / 450e9)


def test_a_step_takes_no_less_than_its_slowest_part() -> None:
    layout = layout_of(SIZES["gemma3_27b"], 16, 64, 1, 1, rows=4)
    time = step_time(layout, machine())
    assert time.step == max(time.compute, time.memory, time.overlapped) + time.exposed
    twice = step_time(layout, machine(), micro_batches=2)
    assert twice.compute == 2 * time.compute
    assert twice.memory < 2 * time.memory  # weights are updated once


def test_nothing_is_exchanged_by_one_process() -> None:
    assert collectives(layout_of(SIZES["gemma3_1b"])) == []
