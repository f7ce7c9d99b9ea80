"""The formulas of `gemcutter plan` against counts made one by one, and what follows from them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.hardware import Hardware, find
from conf.schema import AXES, CHOICES
from trainer.model import SIZES, Gemma, GemmaConfig, num_parameters
from trainer.model.attention import visible
from trainer.model.loss import CHUNK
from trainer.plan import flops, memory
from trainer.plan.flops import model_flops
from trainer.plan.layout import Layout
from trainer.plan.roofline import exchange_time, step_time
from trainer.plan.traffic import Collective, collectives

RELEASED = [name for name in SIZES if name != "tiny"]


def layout_of(config: GemmaConfig, *sizes: int, **changes) -> Layout:
    axes = dict(zip(AXES, sizes or (1, 1, 1, 1), strict=True))
    values = {"rows": 1, "sequence_length": 2048, "compute": 2, "reduce": 4, "remat": "none", "device": "cuda"}
    return Layout(config=config, axes=axes, **values | changes)


def document_rows(length: int, document: int) -> torch.Tensor:
    """Segment ids of a row of documents of one length, end to end."""
    return torch.arange(length)[None] // document + 1


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 40), document=st.integers(1, 40), window=st.integers(1, 40))
def test_model_flops_count_the_pairs_that_attention_sees(length: int, document: int, window: int) -> None:
    """Of the mask itself, pair by pair, for layers with a window and without."""
    config = dataclasses.replace(SIZES["gemma3_1b"], window=window)
    segments = document_rows(length, document)
    pairs = sum(int(visible(segments, window if kind == "local" else None).sum()) for kind in config.layer_kinds)
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
    assert set(memory.KEPT) == set(flops.RECOMPUTED)


def test_the_chunk_of_the_loss_is_the_model_s() -> None:
    assert memory.CHUNK == CHUNK


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
