"""Promises of rules and meshes: every number lies somewhere once, and collectives put shards in order."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conf.exits import ConfigError
from tests.trainer.twins import config_of
from trainer.backend.xla.region import Mesh, _overlap
from trainer.backend.xla.sharding import RULES, Cut, Placement, layer_names, placements
from trainer.model import Gemma

pytestmark = pytest.mark.xla

CONFIG = config_of(3)  # 8 layers, 2 key heads
AXES = {"replica": 1, "fsdp": 4, "tensor": 2}
sizes = st.integers(1, 4)


def shapes() -> list[tuple[str, tuple[int, ...]]]:
    """Of a Gemma, as `spread` gives them."""
    with torch.device("meta"):
        model = Gemma(CONFIG)
    outside = [(name, tuple(p.shape)) for name, p in model.named_parameters() if not name.startswith("blocks.")]
    return outside + [(f"blocks.{name}", tuple(p.shape)) for name, p in model.blocks[0].named_parameters()]


def test_every_parameter_has_a_rule_and_every_rule_a_parameter() -> None:
    placed = placements(shapes(), CONFIG, AXES)
    assert [(name, one.shape) for name, one in placed.items()] == shapes()
    for name, one in placed.items():
        assert (one.cut.fsdp is None) == name.endswith("norm.weight")  # no matrix is whole on every chip
        assert (one.layers == 8) == name.startswith("blocks.")


def test_a_parameter_without_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("how blocks.attention.bias of shape (48,) is sharded")):
        placements([*shapes(), ("blocks.attention.bias", (48,))], CONFIG, AXES)


def test_a_rule_without_a_parameter_is_refused() -> None:
    without = [(name, shape) for name, shape in shapes() if name != "blocks.attention.o.weight"]
    with pytest.raises(ConfigError) as error:
        placements(without, CONFIG, AXES)
    (pattern,) = [pattern for pattern, _ in RULES if "attention" in pattern and "o" in pattern.split(".")[-2]]
    assert str(error.value).endswith(f"match no parameter: {pattern}")


@pytest.mark.parametrize(("tensor", "read"), [(4, CONFIG.head_dim), (8, CONFIG.head_dim)])
def test_key_heads_that_the_tensor_axis_does_not_divide_are_whole(tensor: int, read: int) -> None:
    shared, own = (placements(shapes(), CONFIG, AXES | {"tensor": axis}) for axis in (tensor, 2))
    keys = {"blocks.attention.k.weight", "blocks.attention.v.weight"}
    for name in keys:
        assert (shared[name].cut, shared[name].read) == (Cut(tensor=None, fsdp=0), read)
        assert (own[name].cut, own[name].read) == (Cut(tensor=0, fsdp=0), None)
    assert all(shared[name].cut == own[name].cut for name in shared.keys() - keys)


@st.composite
def placed(draw: st.DrawFn) -> Placement:
    """Matrices and vectors, cut as a rule may cut them; the tensor axis divides what it cuts."""
    tensor, fsdp = draw(sizes), draw(st.integers(1, 6))
    dims = draw(st.integers(1, 2))
    cuts = st.none() | st.integers(0, dims - 1)
    cut = Cut(tensor=draw(cuts), fsdp=draw(cuts))
    shape = [draw(st.integers(1, 13)) * (tensor if dim == cut.tensor else 1) for dim in range(dims)]
    return Placement(tuple(shape), draw(st.none() | sizes), cut, tensor, fsdp)


@given(placed())
def test_boxes_of_all_chips_cover_each_tensor_once(one: Placement) -> None:
    covered = np.zeros(one.shape, dtype=int)
    tensors = range(one.tensor if one.cut.tensor is not None else 1)
    shards = range(one.fsdp if one.cut.fsdp is not None else 1)
    for tensor, fsdp in itertools.product(tensors, shards):
        offset, size = one.box(tensor, fsdp)
        assert all(n <= most for n, most in zip(size, one.shard, strict=True))
        covered[tuple(slice(at, at + n) for at, n in zip(offset, size, strict=True))] += 1
    assert (covered == 1).all()


@given(placed(), sizes, sizes)
def test_chips_that_do_not_share_a_tensor_hold_the_same_box(one: Placement, tensor: int, fsdp: int) -> None:
    at = (tensor - 1) % one.tensor, (fsdp - 1) % one.fsdp
    first = (0 if one.cut.tensor is None else at[0], 0 if one.cut.fsdp is None else at[1])
    assert one.box(*at) == one.box(*first)


@given(placed())
def test_shards_of_all_chips_make_what_is_stored(one: Placement) -> None:
    """The spec cuts `stored` into `shard`; no more is filled than the last shards have room for."""
    sizes = {"tensor": one.tensor, "fsdp": one.fsdp}
    parts = [math.prod(sizes[axis] for axis in ((by,) if isinstance(by, str) else by or ())) for by in one.spec]
    layers = () if one.layers is None else (one.layers,)
    assert one.stored == tuple(n * part for n, part in zip((*layers, *one.shard), parts, strict=True))
    assert math.prod(one.shard) * (one.layers or 1) * math.prod(parts) == math.prod(one.stored)
    if one.cut.fsdp is not None:
        filling = one.shard[one.cut.fsdp] * one.fsdp - one.part[one.cut.fsdp]
        assert 0 <= filling < one.fsdp


def test_layers_have_the_names_of_a_model() -> None:
    assert list(layer_names("blocks.attention.q.weight", 2)) == [
        "blocks.0.attention.q.weight",
        "blocks.1.attention.q.weight",
    ]


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Of chips in any order; the torus factors as the axes do, or otherwise, or is not known."""
    axes = {name: draw(st.sampled_from([1, 2, 3, 4, 6])) for name in AXES}
    count = math.prod(axes.values())
    torus, left = [], count
    while left > 1:
        torus.append(draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
        left //= torus[-1]
    chips = draw(st.none() | st.permutations(range(count)))
    return Mesh(axes, draw(st.sampled_from([tuple(torus), ()])), chips)


@given(meshes(), st.lists(st.sampled_from(list(AXES)), min_size=1, unique=True))
def test_groups_are_chips_that_differ_on_these_axes_only(mesh: Mesh, axes: list[str]) -> None:
    axes = [axis for axis in AXES if axis in axes]
    groups = mesh.groups(tuple(axes))
    assert sorted(itertools.chain(*groups)) == list(range(mesh.size))
    for group in groups:
        places = [mesh.place(chip) for chip in group]
        assert len({tuple(place[axis] for axis in AXES if axis not in axes) for place in places}) == 1
        along = [tuple(place[axis] for axis in axes) for place in places]
        assert along == list(itertools.product(*(range(mesh.axes[axis]) for axis in axes)))  # in order


@given(meshes(), st.sampled_from(list(AXES)))
def test_gathering_line_by_line_puts_shards_in_order_and_scattering_takes_them_apart(mesh: Mesh, axis: str) -> None:
    """As `Weights.whole` and `Weights.scatter` do, with shards that are the places of their chips."""
    steps = mesh.lines(axis)
    size = mesh.axes[axis]
    held = {chip: [mesh.place(chip)[axis]] for chip in range(mesh.size)}
    for groups in reversed(steps):
        assert sorted(itertools.chain(*groups)) == list(range(mesh.size))
        held = {chip: [n for other in group for n in held[other]] for group in groups for chip in group}
    assert all(shards == list(range(size)) for shards in held.values())

    sums = {chip: [(part, {chip}) for part in range(size)] for chip in range(mesh.size)}
    for groups in steps:
        scattered = {}
        for group in groups:
            for place, chip in enumerate(group):
                share = len(sums[chip]) // len(group)
                own = [sums[other][place * share : (place + 1) * share] for other in group]
                scattered[chip] = [
                    (parts[0][0], set().union(*(chips for _, chips in parts))) for parts in zip(*own, strict=True)
                ]
                assert all(len({part for part, _ in parts}) == 1 for parts in zip(*own, strict=True))
        sums = scattered
    whole = {chip: set(group) for group in mesh.groups((axis,)) for chip in group}
    for chip, parts in sums.items():
        assert parts == [(mesh.place(chip)[axis], whole[chip])]  # its own shard, of the sum over its group


@pytest.mark.parametrize(
    ("torus", "inner", "size", "steps"),
    [
        ((16,), 1, 16, [16]),
        ((16, 16), 1, 256, [16, 16]),  # all of a square, along one side after the other
        ((16, 16), 4, 64, [4, 16]),  # behind an axis of 4 on the inner side
        ((16, 16), 16, 16, [16]),  # the outer side alone
        ((4, 4, 4), 4, 16, [4, 4]),
        ((4, 8), 2, 4, [4]),  # within a side
        ((6,), 1, 4, [4]),  # where sides do not divide so, one step
        ((2, 3), 1, 2, [2]),
        ((8,), 1, 1, []),
    ],
)
def test_an_axis_lies_on_sides_of_the_torus(torus: tuple[int, ...], inner: int, size: int, steps: list[int]) -> None:
    assert _overlap(torus, inner, size) == steps
    assert math.prod(steps) == size
