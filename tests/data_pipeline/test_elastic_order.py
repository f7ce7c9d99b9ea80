"""The order under everything that may change around it: worlds, workers, micro-batches, kills, stages, skips.

Each defect that other loaders have had, and that could have been one here, has a test that is named after it.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.exits import ConfigError
from conf.schema import Stage
from data_pipeline.batch import Batch, Cursor
from data_pipeline.feeder import Share
from data_pipeline.mixture import whole_weights
from data_pipeline.ramp import Ramp
from data_pipeline.shards import Document, write_shards
from data_pipeline.skips import Skip, Skips
from data_pipeline.stream import TokenStream

S = 32
ROWS = 24  # of a step: 1, 2, 3, 4, 6 and 8 processes can share it
WORLDS = (1, 2, 3, 4, 6, 8)
WORKERS = (0, 1, 2, 3)
KILLS = 20
FIELDS = ("tokens_BS", "targets_BS", "segments_BS", "positions_BS", "weights_BS")


def write(folder: Path, sources: dict[str, int], seed: int = 0, first_token: int = 4) -> str:
    """Shards whose documents hold numbers that occur nowhere else, so that every token tells its document."""
    draw = np.random.default_rng(seed)

    def documents() -> Iterator[Document]:
        token = first_token
        for source, count in sources.items():
            for number in range(count):
                length = int(draw.integers(3, 90))
                body = np.arange(token, token + length - 2)
                token += length - 2
                yield Document(f"{source}/{number}", source, np.array([2, *body, 1]), length)

    write_shards(
        documents(), folder, shard_tokens=900, block_documents=4, tokenizer_sha256="", vocab_size=2**17, config={},
        lineage="",
    )  # fmt: skip
    return str(folder / "manifest.json")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("tokens"), {"web": 60, "code": 27, "books": 11})


@pytest.fixture(scope="module")
def annealing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other shards, which a later stage may name; one source has a name that the first shards have, too."""
    return write(tmp_path_factory.mktemp("annealing"), {"maths": 20, "web": 9}, seed=1, first_token=50_000)


def stream(manifest: str, mixture: Sequence[Stage] = (), skips: Skips | None = None, **changes: object) -> TokenStream:
    values = {"sequence_length": S, "packing": "best_fit", "window_blocks": 4, "seed": 0} | changes
    return TokenStream(manifest, mixture=mixture, skips=skips, **values)  # type: ignore[arg-type]


def digest(batches: Sequence[Batch]) -> np.ndarray:
    """All fields of all rows, [rows, fields x S]."""
    return np.concatenate([np.concatenate([getattr(b, name).numpy() for name in FIELDS], axis=1) for b in batches])


def rank_batches(
    made: TokenStream, rank: int, world: int, workers: int, micro_batch: int, start: Cursor | None
) -> Iterator[Batch]:
    """What a rank reads; several workers take turns, in the order in which DataLoader asks its processes."""
    if start is not None:
        made.check(start)
    share = Share(made, start.samples_done if start else 0, 0, Ramp.constant(ROWS), micro_batch, rank, world)
    turns = [share.every(workers, number) for number in range(workers)] if workers else [iter(share)]
    for turn in itertools.cycle(turns):
        item = next(turn)
        assert isinstance(item, Batch), item
        yield item


def run(
    made: TokenStream, steps: int, world: int, workers: int, micro_batch: int, start: Cursor | None = None
) -> tuple[list[np.ndarray], Cursor]:
    """The global batches of so many steps, and the cursor of the last. Each rank prefetches two micro-batches more."""
    parts = ROWS // (micro_batch * world)
    ranks = [
        list(itertools.islice(rank_batches(made, rank, world, workers, micro_batch, start), steps * parts + 2))
        for rank in range(world)
    ]
    batches = [
        digest([ranks[rank][step * parts + part] for part in range(parts) for rank in range(world)])
        for step in range(steps)
    ]
    cursors = {rank[steps * parts - 1].cursor for rank in ranks}
    assert len(cursors) == 1  # every rank would save the same
    return batches, cursors.pop()


def stages(annealing: str) -> list[Stage]:
    return [
        Stage(),
        Stage(from_sample=9 * ROWS, weights={"web": 0.6, "code": 0.3, "books": 0.1}),
        Stage(from_sample=16 * ROWS + 5, weights={"maths": 3, "web": 1}, manifest=annealing),  # within a step
        Stage(from_sample=20 * ROWS, weights={"code": 1.0}),
    ]


STEPS = 24


@pytest.fixture(scope="module")
def whole(manifest: str, annealing: str) -> list[np.ndarray]:
    """What one process without workers reads, through an epoch's end and three changes of stage."""
    made = stream(manifest, stages(annealing))
    assert made.rows_per_epoch < 8 * ROWS
    return run(made, STEPS + 2, 1, 0, ROWS)[0]


def kill_points(world: int, workers: int, epoch: int) -> list[tuple[int, int]]:
    """Twenty pairs of steps after which the job is killed, the second after the first resume and within an epoch of it;
    the ends of an epoch and of the stages among them."""
    draw = random.Random(f"{world}/{workers}")
    boundary = epoch // ROWS
    pairs = [(boundary - 1, boundary), (boundary, boundary + 1), (9, 10), (16, 17), (20, 21)]
    while len(pairs) < KILLS:
        first = draw.randrange(1, STEPS - 1)
        pairs.append((first, min(STEPS, first + draw.randint(1, boundary - 1))))
    return pairs


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("workers", WORKERS)
def test_global_batches_are_the_same_for_every_world_worker_and_kill(
    manifest: str, annealing: str, whole: list[np.ndarray], world: int, workers: int
) -> None:
    """Twenty jobs, each killed twice and resumed twice, each time with another world, worker count and micro-batch."""
    made = stream(manifest, stages(annealing))
    epoch = made.rows_per_epoch
    draw = random.Random(f"{workers}/{world}")
    for first, second in kill_points(world, workers, epoch):
        micro_batches = [m for m in (1, 2, 3, 4) if ROWS % (m * world) == 0]
        start, got = None, []
        shapes = [(world, workers), (draw.choice(WORLDS), draw.choice(WORKERS)), (world, draw.choice(WORKERS))]
        for (own_world, own_workers), steps in zip(shapes, (first, second - first, 2), strict=True):
            micro_batch = draw.choice(micro_batches if own_world == world else [1])
            batches, start = run(made, steps, own_world, own_workers, micro_batch, start)
            got += batches
        assert start is not None
        assert start.samples_done == (second + 2) * ROWS
        for step, batch in enumerate(got):
            np.testing.assert_array_equal(batch, whole[step])


@pytest.mark.parametrize("packing", ["best_fit", "concat", "pad"])
def test_every_document_comes_once_an_epoch(manifest: str, packing: str) -> None:
    made = stream(manifest, packing=packing)
    rows = made.rows_per_epoch
    batches = list(itertools.islice(Share(made, 0, 0, Ramp.constant(rows), 1, 0, 1).every(1, 0), 3 * rows))
    for epoch in range(3):
        predicted = Counter()
        for batch in batches[epoch * rows : (epoch + 1) * rows]:
            assert isinstance(batch, Batch)
            predicted.update(batch.targets_BS[batch.weights_BS > 0].tolist())
        tokens = Counter(token for block in made.shards.blocks() for token in block.tokens.tolist())
        del tokens[2]
        assert predicted == tokens


def sources_of(made: TokenStream, samples: Sequence[int]) -> Counter[str]:
    return Counter(made.names[made.order.place(sample).source] for sample in samples)


def test_stages_take_effect_at_their_sample(manifest: str, annealing: str) -> None:
    made = stream(manifest, stages(annealing))
    suffix = next(name for name in made.names if name.startswith("web@"))  # the annealing shards' own web
    assert set(sources_of(made, range(9 * ROWS))) == {"web", "code", "books"}
    shares = sources_of(made, range(9 * ROWS, 14 * ROWS))
    assert [shares[name] for name in ("web", "code", "books")] == [72, 36, 12]  # of 120, exactly
    assert sources_of(made, range(16 * ROWS + 5, 20 * ROWS))["maths"] == pytest.approx(0.75 * 91, abs=1)
    assert set(sources_of(made, range(16 * ROWS + 5, 20 * ROWS))) == {"maths", suffix}
    assert set(sources_of(made, range(20 * ROWS, 30 * ROWS))) == {"code"}


def test_counts_of_batches_are_those_of_their_tokens(manifest: str, annealing: str) -> None:
    """What the metrics add up, against the tokens themselves; planned and actual agree to a few rows of each source."""
    made = stream(manifest, stages(annealing))
    tokens_of = {
        token: name
        for shards, names in ((made.shards, made.names[:3]), (made.all_shards[1], made.names[3:]))
        for block in shards.blocks()
        for name in [n for n in names if n.split("@")[0] == block.source]
        for token in block.tokens.tolist()
    }
    counted, actual = np.zeros(len(made.count_names), np.int64), Counter()
    for batch in itertools.islice(iter(Share(made, 0, 0, Ramp.constant(ROWS), 4, 0, 1)), 6 * STEPS):
        assert isinstance(batch, Batch)
        counted += batch.counts_K.numpy()
        for row in range(4):
            count = batch.weights_BS[row] > 0
            actual[tokens_of[int(batch.tokens_BS[row][count].max())]] += int(count.sum())
    told = dict(zip(made.count_names, counted.tolist(), strict=True))
    assert {name: told[f"tokens/{name}"] for name in made.names} == actual
    for name, planned in made.planned_tokens(STEPS * ROWS).items():
        assert abs(planned - actual[name]) <= 6 * S, name  # less than two rows a stage
    assert sum(made.planned_tokens(STEPS * ROWS).values()) == pytest.approx(sum(actual.values()), rel=0.05)


def test_a_source_that_would_be_read_too_often_is_refused(manifest: str) -> None:
    made = stream(manifest, [Stage(weights={"web": 1, "books": 1})])
    rows = made.plan.tallies[2].rows
    made.refuse_repetitions({"books": 4}, 8 * rows)
    with pytest.raises(ConfigError, match=r"by sample \d+ .*books 4\.\d+ times \(data\.max_repetitions\.books=4\)"):
        made.refuse_repetitions({"books": 4}, 8 * rows + 3)
    with pytest.raises(ConfigError, match=r"books .*max_repetitions\.\*=2"):
        made.refuse_repetitions({"*": 2, "web": 100}, 8 * rows)
    with pytest.raises(ConfigError, match=r"names blogs, but the sources are web, code, books"):
        made.refuse_repetitions({"blogs": 1}, 1)


def test_a_weight_for_a_source_that_is_none_is_refused(manifest: str) -> None:
    with pytest.raises(ConfigError, match=r"gives a weight to blogs, but the sources of .* are web, code, books"):
        stream(manifest, [Stage(weights={"blogs": 1.0})])


def test_a_changed_past_is_refused_with_the_difference_and_a_changed_future_is_not(manifest: str) -> None:
    """NeMo-RL #2519 skipped the first N samples of another dataset in silence."""
    first = [Stage(weights={"web": 1}), Stage(from_sample=100, weights={"code": 1})]
    cursor, was = stream(manifest, first).cursor(150), stream(manifest, first).describe()
    stream(manifest, [*first, Stage(from_sample=150, weights={"books": 1})]).check(cursor, was)
    for past in (
        [Stage(weights={"web": 1}), Stage(from_sample=100, weights={"code": 2, "web": 1})],
        [Stage(weights={"web": 1}), Stage(from_sample=101, weights={"code": 1})],
        [*first, Stage(from_sample=149, weights={"books": 1})],
        first[:1],
    ):
        match = r'stages of data\.mixture that had a part in it \(\[\{"first": 0, .*, here .*from_sample=150 or more'
        with pytest.raises(ConfigError, match=match):
            stream(manifest, past).check(cursor, was)


def test_other_shards_are_refused_unless_they_are_a_new_stage(manifest: str, annealing: str) -> None:
    cursor = stream(manifest).cursor(150)
    with pytest.raises(ConfigError, match=r"the shards \(.*append a stage to data\.mixture that names their manifest"):
        stream(annealing).check(cursor)
    stream(manifest, [Stage(), Stage(from_sample=150, manifest=annealing)]).check(cursor)


RANGES = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), max_size=3)


@settings(max_examples=25, deadline=None)
@given(ranges=RANGES, world=st.sampled_from((1, 2, 4)), kill=st.integers(1, 9))
def test_samples_that_are_passed_over_shift_the_rest_and_nothing_else(
    manifest: str, ranges: list[tuple[int, int]], world: int, kill: int
) -> None:
    skips = Skips(Skip(0, samples=(first, first + length)) for first, length in ranges)
    made = stream(manifest, skips=skips)
    read = [sample for sample in range(1000) if not skips.leaves_out(sample)][: 10 * ROWS]
    plain = stream(manifest)
    expected = np.concatenate([digest(plain.build([([sample], 0)], 1)) for sample in read])
    before, cursor = run(made, kill, world, 1, 2)
    after, last = run(made, 10 - kill, 1, 0, 6, cursor)
    np.testing.assert_array_equal(np.concatenate(before + after), expected)
    assert cursor.samples_done == read[kill * ROWS - 1] + 1
    assert last.samples_done == read[-1] + 1
    assert [made.step_samples(Ramp.constant(ROWS), step)[3] for step in range(10)] == read[3::ROWS]


def test_a_document_that_is_left_out_keeps_its_place(manifest: str) -> None:
    plain = stream(manifest)
    sample = 40
    span = plain.spans(sample)[0]
    skips = Skips([Skip(30, plain.shards.sha256, span.block, (span.document,))])
    made = stream(manifest, skips=skips)
    rows = made.rows_per_epoch
    seen = made.samples_of(made.shards.sha256, span.block, span.document, 3 * rows)
    assert sample in seen
    for number in range(2 * rows):
        one, other = (each.build([([number], 0)], 1)[0] for each in (plain, made))
        if number not in seen or number < 30:
            np.testing.assert_array_equal(digest([one]), digest([other]))
            continue
        out = [n for n, piece in enumerate(made.spans(number), start=1) if not piece.weight]
        mask = torch.isin(one.segments_BS, torch.tensor(out))
        assert mask.any()
        for name in FIELDS:
            kept = getattr(one, name).masked_fill(mask, 0) if name[0] in "tw" else getattr(one, name)
            assert torch.equal(getattr(other, name), kept), name
        assert int(other.counts_K[: len(made.names)].sum()) == int(other.weights_BS.sum())


def test_a_block_that_is_left_out_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"web": 40})
    whole = stream(path)
    entry = whole.shards.entry(3)
    shard = tmp_path / entry.file
    data = bytearray(shard.read_bytes())
    data[entry.offset + entry.tokens_at] ^= 1
    shard.write_bytes(data)
    made = stream(path, skips=Skips([Skip(0, whole.shards.sha256, 3)]))
    rows = made.build([([sample], 0) for sample in range(made.rows_per_epoch)], 1)
    told = sum(int(batch.weights_BS.sum()) for batch in rows)
    assert told == made.shards.tokens - made.shards.documents - int((entry.lengths - 1).sum())


def test_skips_in_the_past_are_refused_and_later_ones_are_not(manifest: str) -> None:
    sha = stream(manifest).shards.sha256
    skips = Skips([Skip(50, sha, 1, (2,))])
    cursor, was = stream(manifest, skips=skips).cursor(100), stream(manifest, skips=skips).describe()
    stream(manifest, skips=Skips([*skips.entries, Skip(100, sha, 2)])).check(cursor, was)
    for past in (Skips(), Skips([Skip(60, sha, 1, (2,))]), Skips([*skips.entries, Skip(99, samples=(99, 105))])):
        with pytest.raises(ConfigError, match=r"entries of the skip list that had a part in it \(\[\{.*, here "):
            stream(manifest, skips=past).check(cursor, was)


def test_documents_of_a_sample_are_found_from_either_end(manifest: str, annealing: str) -> None:
    """Spans of samples and samples of documents are inverse, across stages and epochs."""
    made = stream(manifest, stages(annealing))
    places: dict[tuple[str, int, int], list[int]] = {}
    for sample in range(STEPS * ROWS):
        for span in made.spans(sample):
            places.setdefault((made.shards_of(sample).sha256, span.block, span.document), []).append(sample)
    for (sha, block, document), samples in random.Random(0).sample(sorted(places.items()), 60):
        assert made.samples_of(sha, block, document, STEPS * ROWS) == sorted(set(samples))


# What other loaders got wrong.


def test_mosaicml_880_resume_does_not_start_at_zero_whoever_iterates(manifest: str) -> None:
    made = stream(manifest)
    through, _ = run(made, 6, 1, 0, ROWS)
    resumed = made.batches(rows_per_step=ROWS, micro_batch=ROWS, rank=0, world=1, start=made.cursor(3 * ROWS))
    np.testing.assert_array_equal(digest([next(resumed)]), through[3])
    resumed.close()


def test_mosaicml_869_resume_works_beyond_the_first_epoch(manifest: str) -> None:
    made = stream(manifest)
    start = 5 * made.rows_per_epoch // ROWS
    through, _ = run(made, start + 2, 1, 0, ROWS)
    resumed, _ = run(stream(manifest), 1, 2, 2, 3, made.cursor((start + 1) * ROWS))
    np.testing.assert_array_equal(resumed[0], through[start + 1])


def test_kempnerforge_57_a_second_resume_in_an_epoch_keeps_the_offset(manifest: str) -> None:
    made = stream(manifest)
    through, _ = run(made, 6, 1, 0, ROWS)
    _, first = run(stream(manifest), 2, 1, 0, ROWS)
    _, second = run(stream(manifest), 2, 1, 0, ROWS, first)
    third, _ = run(stream(manifest), 2, 1, 0, ROWS, second)
    np.testing.assert_array_equal(third[0], through[4])


def test_energon_58_the_offset_is_applied_in_the_first_epoch_only(manifest: str) -> None:
    made = stream(manifest)
    rows = made.rows_per_epoch
    resumed = itertools.islice(Share(made, rows - 5, 0, Ramp.constant(rows), 1, 0, 1).every(1, 0), 2 * rows + 5)
    seen = [digest([batch]) for batch in resumed if isinstance(batch, Batch)]
    for epoch in range(2):  # both epochs after the resume are whole
        own = np.concatenate(seen[5 + epoch * rows : 5 + (epoch + 1) * rows])
        assert len(np.unique(own, axis=0)) == rows


def test_datasets_7447_an_epoch_is_not_shortened_by_a_resume(manifest: str) -> None:
    made = stream(manifest)
    rows = made.rows_per_epoch
    assert sum(1 for sample in range(rows // 2, 3 * rows) if made.order.place(sample).epoch == 1) == rows


def test_megatron_bridge_5637_fewer_ranks_drop_no_rank_state(manifest: str) -> None:
    made = stream(manifest)
    through, _ = run(made, 4, 1, 0, ROWS)
    _, cursor = run(made, 2, 8, 1, 3)
    fewer, _ = run(made, 2, 3, 0, 2, cursor)
    np.testing.assert_array_equal(np.concatenate(fewer), np.concatenate(through[2:]))


def test_megatron_lm_7299_ranks_advance_alike(manifest: str) -> None:
    made = stream(manifest)
    taken = [list(itertools.islice(rank_batches(made, rank, 3, 0, 2, None), 40)) for rank in range(3)]
    assert [b.cursor for b in taken[0]] == [b.cursor for b in taken[1]] == [b.cursor for b in taken[2]]


def test_llm_foundry_1277_packing_repeats_nothing_after_a_resume(manifest: str) -> None:
    """Packing consumed more documents than its state counted; seen only as a loss that was too good."""
    made = stream(manifest)
    rows = made.rows_per_epoch - made.rows_per_epoch % ROWS
    seen: Counter[int] = Counter()
    cursor: Cursor | None = None
    for _ in range(rows // ROWS):
        batches, cursor = run(made, 1, 2, 1, 4, cursor)
        targets, weights = batches[0][:, S : 2 * S], batches[0][:, 4 * S :]
        seen.update(targets[weights > 0].astype(int).tolist())
    del seen[1]
    assert set(seen.values()) == {1}


def test_litdata_263_more_workers_than_work_change_nothing(manifest: str) -> None:
    made = stream(manifest)
    one, _ = run(made, 2, 1, 0, ROWS)
    many, _ = run(made, 2, 1, 9, ROWS)
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(many))


def test_webdataset_225_every_rank_gets_as_many_batches(manifest: str) -> None:
    """Shards of unequal size gave ranks 66 and 44 samples, and a hang."""
    made = stream(manifest)
    for world in WORLDS:
        counts = {len(list(made.epoch(micro_batch=2, rank=rank, world=world))) for rank in range(world)}
        assert len(counts) == 1


def test_webdataset_444_no_document_is_dropped_to_make_ranks_equal(manifest: str) -> None:
    made = stream(manifest)
    for world in (3, 7):
        predicted = sum(
            float(batch.weights_BS.sum())
            for rank in range(world)
            for batch in made.epoch(micro_batch=2, rank=rank, world=world)
        )
        assert predicted == made.shards.tokens - made.shards.documents


def test_webdataset_seeds_are_taken_at_their_word(manifest: str) -> None:
    """`resampled=True, seed=42` drew its seed from the clock; RandomMix took no seed."""
    mixture = [Stage(weights={"web": 1, "code": 1})]
    one, _ = run(stream(manifest, mixture, seed=42), 3, 1, 0, ROWS)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    other, _ = run(stream(manifest, mixture, seed=42), 3, 1, 0, ROWS)
    np.testing.assert_array_equal(np.concatenate(one), np.concatenate(other))
    third, _ = run(stream(manifest, mixture, seed=43), 3, 1, 0, ROWS)
    assert not np.array_equal(np.concatenate(one), np.concatenate(third))


def test_webdataset_ranks_do_not_see_the_same_shards_every_epoch(manifest: str) -> None:
    """Splitting by node before shuffling bound a node to its shards for good."""
    made = stream(manifest)
    rows = made.rows_per_epoch

    def windows_of_rank_0(epoch: int) -> Counter[tuple[int, int]]:
        samples = range(epoch * rows, (epoch + 1) * rows)
        return Counter(made.order.place(sample)[0:4:2] for sample in samples if sample % 4 == 0)

    assert windows_of_rank_0(0) != windows_of_rank_0(1)


def test_weights_given_in_another_order_are_the_same_mixture(manifest: str) -> None:
    one = stream(manifest, [Stage(weights={"web": 0.7, "code": 0.3})])
    other = stream(manifest, [Stage(weights={"code": 3, "web": 7})])
    assert one.cursor(99) == other.cursor(99)
    assert whole_weights({"web": 0.7, "code": 0.3}, ["code", "web"]) == (3, 7)


def test_cu_seqlens_are_the_segments(manifest: str) -> None:
    """Attention within [cu_seqlens[n], cu_seqlens[n + 1]) is attention within segments, for every real position."""
    made = stream(manifest)
    shapes = set()
    generator = torch.Generator().manual_seed(0)
    for batch in itertools.islice(iter(Share(made, 0, 0, Ramp.constant(ROWS), 3, 0, 1)), 40):
        assert isinstance(batch, Batch)
        shapes.add(tuple(batch.cu_seqlens_N.shape))
        ends = batch.cu_seqlens_N.tolist()
        assert (ends[0], ends[-1]) == (0, 3 * S)
        assert ends == sorted(ends)
        assert max(b - a for a, b in itertools.pairwise(ends)) == batch.longest <= S
        q_BSD, k_BSD, v_BSD = torch.randn(3, 3, S, 8, generator=generator)
        same_BSS = batch.segments_BS[:, :, None] == batch.segments_BS[:, None, :]
        mask_BSS = same_BSS & torch.ones(S, S, dtype=torch.bool).tril()
        dense_BSD = torch.nn.functional.scaled_dot_product_attention(q_BSD, k_BSD, v_BSD, attn_mask=mask_BSS)
        q_TD, k_TD, v_TD = (x.flatten(0, 1) for x in (q_BSD, k_BSD, v_BSD))
        packed_TD = torch.cat([
            torch.nn.functional.scaled_dot_product_attention(
                q_TD[None, a:b], k_TD[None, a:b], v_TD[None, a:b], is_causal=True
            )[0]
            for a, b in itertools.pairwise(ends) if b > a
        ])  # fmt: skip
        torch.testing.assert_close(packed_TD, dense_BSD.flatten(0, 1), rtol=1e-5, atol=1e-5)
    assert len(shapes) == 1  # fixed, so that nothing is compiled again
