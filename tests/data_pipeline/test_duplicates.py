"""Promises of finding duplicates: what is similar goes, what is not stays, and neither order nor ranges matter."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.duplicates import clusters, exact, lines, minhash, pairs, ranks, sketches, survivors
from data_pipeline.duplicates.minhash import Shingling
from data_pipeline.engine import records
from data_pipeline.engine.local import Local
from data_pipeline.signals.tokens import Tokens
from tests.data_pipeline.duplicates_tasks import (
    Here,
    Job,
    Quick,
    Read,
    Result,
    edited,
    find,
    jaccard,
    numbers,
    pairs_of,
    planted,
    sentence,
    shingles,
)

HOW = Shingling()
SMALL = 512  # bytes of a range: 32 edges


@pytest.fixture(autouse=True, scope="module")
def importable() -> Iterator[None]:
    """Workers load what they do by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield


def spread(texts: list[str], tasks: int, qualities: list[float] | None = None, first: int = 0) -> list[Read]:
    """Texts in order over tasks."""
    size = -(-len(texts) // tasks)
    marks = qualities or [0.5] * len(texts)
    return [
        Read(first + n, texts[at : at + size], marks[at : at + size], HOW)
        for n, at in enumerate(range(0, len(texts), size))
    ]


def named(tasks: list[Read]) -> dict[int, str]:
    """Texts by number of the document."""
    return {
        int(number): text
        for task in tasks
        for number, text in zip(numbers(task.number, len(task.texts)), task.texts, strict=True)
    }


def clustered(result: Result, texts: dict[int, str]) -> set[tuple[str, str]]:
    """Which text goes for which."""
    return {(texts[goes], texts[stays]) for goes, stays in result.survivor_of.items()}


def family(draw: random.Random, copies: int, words: int = 120, similarity: float = 0.9) -> list[str]:
    """A text and copies of it that differ in a few words."""
    first = sentence(draw, words)
    return [" ".join(first), *(" ".join(edited(draw, first, similarity)) for _ in range(copies))]


# Equal texts.


def test_unicode_form_and_white_space_do_not_matter_but_case_does() -> None:
    same = exact.fingerprints(["Café  au\tlait\n", "Cafe\u0301 au lait", "café au lait"])
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("ab \n", max_size=3), min_size=1), st.integers(1, 3))
def test_of_equal_texts_one_stays(tmp_path_factory, texts, tasks) -> None:  # type: ignore[no-untyped-def]
    job = Quick(tmp_path_factory.mktemp("exact"))
    reads = spread(texts, tasks)
    found, by_number = find(job, reads, most=48), named(reads)
    stays = [" ".join(text.split()) for number, text in by_number.items() if number not in found.exact]
    assert sorted(stays) == sorted({" ".join(text.split()) for text in texts})
    assert all(by_number[goes].split() == by_number[stays].split() for goes, stays in found.exact.items())


def test_of_equal_texts_the_preferred_one_stays_and_those_gone_take_no_part(tmp_path: Path) -> None:
    texts = ["one text", "one  text", "one   text"]
    folder = tmp_path / "read"
    folder.mkdir()
    documents = numbers(7, 3)
    ranks.write(folder, documents, np.array([0.1, 0.9, 0.5]), np.array([8, 9, 10]), np.zeros(3))
    exact.write(folder, documents, exact.fingerprints(texts))
    gone = tmp_path / "gone.npy"
    for gone_now, stays, size in (([], 1, 3), ([1], 2, 2)):
        rows = np.empty(len(gone_now), survivors.REMOVED)
        rows["key"] = documents[gone_now]
        records.write(gone, rows)
        exact.group(exact.Group([folder], [gone], 0, 0, 2**64), tmp_path)
        removed = pairs_of([tmp_path / survivors.REMOVED_FILE], "survivor")
        assert removed == {
            int(documents[n]): int(documents[stays]) for n in range(3) if n != stays and n not in gone_now
        }
        assert pairs_of([tmp_path / survivors.KEPT_FILE], "size") == {int(documents[stays]): size}


# Shingles, signatures and sketches.


def measured(*texts: str, how: Shingling = HOW) -> minhash.Measured:
    return minhash.measure(Tokens.of(texts), how)


def test_case_accents_signs_and_numbers_do_not_matter() -> None:
    one = measured("Straßen, über  12 Brücken: the CAFÉ (of 1999)!", "strassen uber 5 brucken the cafe of 7")
    assert one.contents_D[0] != one.contents_D[1]  # ß is no accent
    two = measured("Über  12 Brücken: the CAFÉ (of 1999)!", "uber 5 brucken the cafe of 7")
    assert two.contents_D[0] == two.contents_D[1]
    assert np.array_equal(two.keys_DB[0], two.keys_DB[1])
    three = measured("a b c d e f", "a b c d f e", "b a c d e f")
    assert len(set(three.contents_D.tolist())) == 3


def test_documents_of_fewer_words_than_a_shingle_are_similar_to_nothing(tmp_path: Path) -> None:
    texts = [
        "Four words in all",
        "four words in all",
        "",
        "1 2 3 4",
        "Now these are five words",
        "now these are FIVE words!",
    ]
    few = measured(*texts)
    assert np.diff(few.starts_D1).tolist() == [0, 0, 0, 0, 1, 1]
    assert not few.keys_DB[:4].any()
    found = find(Quick(tmp_path), spread(texts, 1))
    assert found.survivor_of == {4: 5}  # the longer
    assert not found.exact


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=60), st.integers(1, 12))
def test_a_sketch_is_the_smallest_distinct_shingles(words: list[str], most: int) -> None:
    full = measured(" ".join(words), how=Shingling(5, 2, 2, 1000))
    cut = measured(" ".join(words), how=Shingling(5, 2, 2, most))
    assert full.values.size == len(shingles(words))
    assert np.array_equal(full.values, np.unique(full.values))
    assert np.array_equal(cut.values, full.values[:most])
    assert bool(cut.whole_D[0]) == (full.values.size <= most)


def test_similarity_is_exact_of_whole_sketches_and_close_of_others() -> None:
    draw = random.Random(5)
    for words, tolerance in (
        (60, 0.0),
        (400, 0.0),
        (4000, 5 * (0.25 / 1000) ** 0.5),
        (40_000, 5 * (0.25 / 1000) ** 0.5),
    ):
        for similarity in (0.5, 0.75, 0.95):
            one = [f"{draw.choice('abcdefgh')}{n}" for n in range(words)]  # no shingle twice
            other = edited(draw, one, similarity)
            found = measured(" ".join(one), " ".join(other))
            them = sketches.Sketches(found.values, found.starts_D1, found.whole_D)
            estimate = sketches.similarities(them, np.array([[0, 1]]), HOW.sketch)[0]
            assert estimate == pytest.approx(jaccard(one, other), abs=tolerance + 1e-6), (words, similarity)


def test_rows_agree_as_often_as_documents_are_similar() -> None:
    """The permutations are good ones: of 4,000 rows as many agree as the Jaccard similarity says, within 4 sigma."""
    draw, how = random.Random(6), Shingling(5, 4000, 1)
    for words, similarity in ((30, 0.6), (300, 0.8), (3000, 0.9)):
        one = [f"{draw.choice('abcdefgh')}{n}" for n in range(words)]
        other = edited(draw, one, similarity)
        keys_DB = measured(" ".join(one), " ".join(other), how=how).keys_DB
        true = jaccard(one, other)
        assert np.mean(keys_DB[0] == keys_DB[1]) == pytest.approx(true, abs=4 * (true * (1 - true) / 4000) ** 0.5)


# Pairs.


def test_planted_near_duplicates_go_and_what_is_less_similar_stays(tmp_path: Path) -> None:
    draw = random.Random(7)
    alike, unlike = planted(draw, 400, 0.85, 0.92), planted(draw, 400, 0.4, 0.6)
    everything = [" ".join(words) for pair in alike + unlike for words in pair]
    found = find(Quick(tmp_path), spread(everything, 3), most=2**20)
    texts = named(spread(everything, 3))
    gone = [sorted(pair) for pair in clustered(found, texts)]
    of_alike = sum(sorted(map(" ".join, pair)) in gone for pair in alike)
    of_unlike = sum(sorted(map(" ".join, pair)) in gone for pair in unlike)
    assert of_alike >= 0.98 * len(alike)
    assert of_unlike <= 0.01 * len(unlike)
    assert len(gone) == of_alike + of_unlike  # and nothing else went


def bucket(contents: list[int], key: int = 9) -> records.Records:
    rows = np.empty(len(contents), minhash.BANDS)
    rows["key"], rows["document"], rows["content"] = key, np.arange(len(contents)), contents
    return rows


def candidates(folder: Path, *buckets: records.Records, first_new: int = 0) -> set[tuple[int, int]]:
    records.write(folder / minhash.FILE, np.concatenate(buckets))
    facts = pairs.candidates(pairs.Candidates([folder], first_new, 0, 2**64), folder)
    written = [np.load(folder / name) for name in facts["files"]]
    assert all(np.array_equal(piece, pairs.distinct(piece)) and len(piece) <= pairs.PIECE for piece in written)
    return {(int(pair["key"]), int(pair["other"])) for piece in written for pair in piece}


def test_a_small_bucket_pairs_all_and_equal_contents_once(tmp_path: Path) -> None:
    assert candidates(tmp_path, bucket([5, 5, 5, 8])) == {(0, 1), (0, 2), (0, 3)}
    everyone = set(range(17))
    assert candidates(tmp_path, bucket(list(range(17)))) == {(a, b) for a in everyone for b in everyone if a < b}
    assert candidates(tmp_path, bucket([1, 2], 3), bucket([1, 2], 4)) == {(0, 1)}
    assert candidates(tmp_path, bucket([1, 2, 2, 3]), first_new=2) == {(1, 2), (0, 3), (1, 3)}


def test_a_huge_bucket_costs_little_and_loses_no_equal_document(tmp_path: Path) -> None:
    contents = [n // 2 for n in range(20_000)]
    found = candidates(tmp_path, bucket(contents))
    assert {(n, n + 1) for n in range(0, 20_000, 2)} <= found
    assert len(found) <= 17 * 20_000
    linked = {one for pair in found for one in pair}
    assert linked == set(range(20_000))


def test_pieces_change_no_pair_and_bound_the_memory_of_large_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [bucket([n // 3 for n in range(900)], key) for key in (3, 4, 5)]
    whole = candidates(tmp_path, *few)
    monkeypatch.setattr(pairs, "PIECE", 1000)
    assert candidates(tmp_path, *few) == whole
    assert len(list(tmp_path.glob(f"*-{pairs.FILE}"))) > 10
    monkeypatch.setattr(pairs, "PIECE", 2**14)
    many = bucket(list(range(200_000)))
    records.write(tmp_path / minhash.FILE, many)
    tracemalloc.start()
    facts = pairs.candidates(pairs.Candidates([tmp_path], 0, 0, 2**64), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert facts["largest_bucket"] == 200_000
    assert facts["pairs"] == 16 * 200_000 - 16 * 17 // 2  # 240 bytes of pairs for each record of 24
    assert peak < 6 * many.nbytes


def test_sketches_are_opened_once_by_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many batches of pairs it looks at, and where some files do not stay open."""
    texts = family(random.Random(21), 11)
    folders = find(Quick(tmp_path), spread(texts, 3)).folders
    edges = np.empty(66, pairs.EDGE)
    documents = np.concatenate([np.load(folder / sketches.ENTRIES)["key"] for folder in folders])
    edges["key"], edges["other"] = np.array([(a, b) for a in documents for b in documents if a < b], np.uint64).T
    records.write(path := tmp_path / "some.npy", edges)
    loads: list[Path] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, *more, **named: loads.append(path) or load(path, *more, **named))
    monkeypatch.setattr(pairs, "_BATCH", 5)
    written = []
    for most_open in (200, 1):
        loads.clear()
        monkeypatch.setattr(sketches, "_OPEN", most_open)
        pairs.verify(pairs.Verify([path], folders, HOW.sketch, 0.5, 0, 2**64), tmp_path)
        written.append((tmp_path / pairs.FILE).read_bytes())
        opened = [one for one in loads if Path(one).name in (sketches.ENTRIES, sketches.VALUES)]
        assert most_open == 1 or len(opened) == 2 * len(folders)
    assert written[0] == written[1]
    assert len(np.load(tmp_path / pairs.FILE)) > 20


# Clusters.


def plain_components(edges: list[tuple[int, int]]) -> dict[int, int]:
    """The smallest member of each one's component, but for those themselves."""
    smallest: dict[int, int] = {}

    def root(one: int) -> int:
        while smallest.setdefault(one, one) != one:
            one = smallest[one]
        return one

    for a, b in edges:
        a, b = root(a), root(b)
        smallest[max(a, b)] = min(a, b)
    return {one: root(one) for one in smallest if root(one) != one}


def components(folder: Path, edges: list[tuple[int, int]], files: int, most: int) -> tuple[dict[int, int], Quick]:
    paths = [folder / f"edges-{number}.npy" for number in range(files)]
    for number, path in enumerate(paths):
        mine = edges[number::files]
        rows = np.empty(len(mine), pairs.EDGE)
        rows["key"], rows["other"] = [max(edge) for edge in mine], [min(edge) for edge in mine]
        records.write(path, rows)
    job = Quick(folder)
    links = [np.load(path) for path in clusters.components(paths, job, most)]
    together = [(int(link["key"]), int(link["other"])) for one in links for link in one]
    assert len({key for key, _ in together}) == len(set(together))  # a document has one root
    return dict(together), job


NODES = st.integers(0, 60).map(lambda node: node * 2**32 + 7)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(NODES, NODES).filter(lambda edge: edge[0] != edge[1]), max_size=150),
    st.integers(1, 3),
    st.sampled_from([SMALL, 4 * SMALL, 2**20]),
)
def test_components_are_those_of_union_find(tmp_path_factory, edges, files, most) -> None:  # type: ignore[no-untyped-def]
    found, _ = components(tmp_path_factory.mktemp("components"), edges, files, most)
    assert found == plain_components(edges)


@pytest.mark.parametrize("shape", ["path", "shuffled path", "star", "tree"])
def test_large_components_take_few_turns(tmp_path: Path, shape: str) -> None:
    count = 400
    names = list(range(count))
    if shape == "shuffled path":
        random.Random(1).shuffle(names)
    parents = {"star": lambda n: 0, "tree": lambda n: (n - 1) // 2}.get(shape, lambda n: n - 1)
    edges = [(names[n], names[parents(n)]) for n in range(1, count)]
    found, job = components(tmp_path, edges, 2, SMALL)
    assert found == dict.fromkeys(range(1, count), 0)
    assert len([name for name in job.facts if name.startswith("large")]) <= 12
    assert len(job.facts["large-star-0"]) > 10


# Survivors.


def test_the_better_then_the_longer_then_the_earlier_source_then_the_first_is_preferred() -> None:
    rank = np.zeros(6, ranks.RANK)
    rank["key"] = [0, 1, 2, 3, 4, 5]
    rank["quality"] = [0.5, 0.9, 0.9, 0.9, 0.9, 0.1]
    rank["length"] = [10, 5, 6, 6, 6, 99]
    rank["source"] = [0, 0, 1, 0, 0, 0]
    assert ranks.order(rank, np.zeros(6), 0).tolist() == [3, 4, 2, 1, 0, 5]
    assert ranks.order(rank, np.array([1, 0, 1, 0, 1, 0]), 0).tolist() == [3, 1, 5, 4, 2, 0]
    assert ranks.order(rank, np.zeros(6), 2).tolist() == [0, 1, 3, 4, 2, 5]  # 0 and 1 are of an earlier curation


def chain(draw: random.Random) -> list[str]:
    """a ~ b ~ c, a and c not similar."""
    words = sentence(draw, 200)
    a, b, c = words, list(words), list(words)
    for at in range(0, 50, 10):
        b[at] = "first"
        c[at] = "first"
    for at in range(100, 150, 10):
        c[at] = "second"
    assert jaccard(a, b) > 0.76
    assert jaccard(b, c) > 0.76
    assert jaccard(a, c) < 0.74
    return [" ".join(words) for words in (a, b, c)]


def test_a_document_goes_only_where_one_that_stays_is_similar(tmp_path: Path) -> None:
    texts = chain(random.Random(8))
    for name, qualities, expected in (
        ("middle", [0.5, 0.9, 0.5], {0: 1, 2: 1}),
        ("end", [0.9, 0.5, 0.4], {1: 0}),  # c is similar to b alone, which does not stay
        ("other end", [0.4, 0.5, 0.9], {1: 2}),
    ):
        found = find(Quick(tmp_path / name), spread(texts, 1, qualities))
        assert found.survivor_of == expected
        assert found.sizes == {min(expected.values()): 1 + len(expected)}


def test_what_is_gone_neither_stays_nor_makes_others_go(tmp_path: Path) -> None:
    texts = chain(random.Random(9))
    texts.append(texts[1].upper() + " ")  # similar, not equal
    job = Quick(tmp_path)
    found = find(job, spread(texts, 1, [0.5, 0.9, 0.5, 0.1]), most=2**10)
    assert found.survivor_of == {0: 1, 2: 1, 3: 1}
    gone = tmp_path / "gone.npy"
    rows = np.zeros(1, survivors.REMOVED)
    rows["key"] = 1
    records.write(gone, rows)
    members = [folder / clusters.MEMBERS for folder in (tmp_path / "gather").iterdir()]
    task = survivors.Survive(members, found.folders, [gone], HOW.sketch, 0.75, 0, 0, 2**64)
    survivors.survive(task, tmp_path)
    # Of the rest a (longest of the first rank) and c stay, unlike as they are.
    stays = pairs_of([tmp_path / survivors.REMOVED_FILE], "survivor")
    assert stays.keys() == {3}
    assert stays[3] in (0, 2)


def corpus(seed: int, families: int = 40) -> list[str]:
    """Families of near-duplicates, some large, and texts that are alone."""
    draw = random.Random(seed)
    texts = [" ".join(sentence(draw, 100)) for _ in range(60)]
    for _ in range(families):
        texts += family(draw, draw.choice((1, 2, 5, 25)), similarity=draw.choice((0.8, 0.9, 0.97)))
    draw.shuffle(texts)
    return [*texts, *texts[:5], *(text.title() for text in texts[5:10])]


def test_every_removed_document_is_similar_to_its_survivor_and_no_two_survivors_are(tmp_path: Path) -> None:
    texts = corpus(10)
    found = find(Quick(tmp_path), spread(texts, 3))
    by_number = {number: text.lower().split() for number, text in named(spread(texts, 3)).items()}
    assert len(found.survivor_of) > 80
    for goes, stays in found.survivor_of.items():
        assert jaccard(by_number[goes], by_number[stays]) >= 0.75
        assert stays not in found.survivor_of
    left = [words for number, words in by_number.items() if number not in found.survivor_of | found.exact]
    alike = [(a, b) for n, a in enumerate(left) for b in left[:n] if a[0] == b[0] or a[-1] == b[-1]]
    assert sum(jaccard(a, b) >= 0.8 for a, b in alike) <= 1  # bands may miss one in a hundred pairs


def test_sizes_count_a_survivor_and_what_went_for_it(tmp_path: Path) -> None:
    found = find(Quick(tmp_path), spread(corpus(11), 2))
    counts: dict[int, int] = {}
    for stays in found.survivor_of.values():
        counts[stays] = counts.get(stays, 1) + 1
    assert found.sizes == counts


# Ranges, workers and order.


def test_ranges_change_nothing(tmp_path: Path) -> None:
    tasks = spread(corpus(12), 4)
    results, ranges = [], []
    for most in (2**28, 2**16, 2**13):
        job = Quick(tmp_path / str(most))
        found = find(job, tasks, most=most)
        results.append((found.survivor_of, found.sizes, found.exact))
        ranges.append(len(job.facts.get("candidates", [])))
    assert ranges[0] == 0 < 3 <= ranges[1] < 17 <= ranges[2]  # none: all steps are one task
    assert results == [results[0]] * 3
    assert any(name.startswith("large-star") for name in job.facts)


def test_workers_change_no_byte(tmp_path: Path) -> None:
    tasks = spread(corpus(13, families=10), 4)
    files = []
    for engine in (Here(), Local(2)):
        root = tmp_path / type(engine).__name__
        find(Job(root, engine), tasks, most=2**15)
        files.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()})
    assert files[0] == files[1]


def test_the_order_of_documents_changes_nothing_but_their_numbers(tmp_path: Path) -> None:
    texts = list(dict.fromkeys(corpus(14)))  # equal ones cannot be told apart
    qualities = [n / len(texts) for n in range(len(texts))]
    outcomes = set()
    for name, seed, tasks in (("one", 0, 1), ("two", 1, 4), ("three", 2, 9)):
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        reads = spread([texts[n] for n in order], tasks, [qualities[n] for n in order])
        outcomes.add(frozenset(clustered(find(Quick(tmp_path / name), reads), named(reads))))
    assert len(outcomes) == 1
    assert len(outcomes.pop()) > 50


# Earlier curations.


def test_earlier_documents_stay_however_similar_they_are(tmp_path: Path) -> None:
    texts = family(random.Random(16), 3, similarity=0.95)
    found = find(Quick(tmp_path), spread(texts, 4, [0.1, 0.2, 0.3, 0.9]), first_new=2 << 32)
    assert found.survivor_of.keys() == {2 << 32, 3 << 32}
    assert set(found.survivor_of.values()) <= {0, 1 << 32}


# Memory.


def test_memory_of_a_task_is_that_of_its_range(tmp_path: Path) -> None:
    """A tenth of the range bytes takes a tenth of the memory, though the input is the same."""
    draw = np.random.default_rng(17)
    count = 60_000
    rows = np.empty(count * 8, minhash.BANDS)
    rows["key"] = draw.integers(0, 2**64, count * 8, np.uint64)
    rows["document"] = np.repeat(np.arange(count), 8)
    rows["content"] = rows["document"]
    again = draw.integers(0, len(rows), len(rows) // 4)
    rows["key"][again] = rows["key"][(again + 8) % len(rows)]
    folder = tmp_path / "bands"
    folder.mkdir()
    records.write(folder / minhash.FILE, rows)
    edges = np.empty(count * 8, pairs.EDGE)
    edges["other"], edges["key"] = np.sort(draw.integers(0, count, (count * 8, 2), np.uint64)).T
    edges = edges[edges["key"] != edges["other"]]
    path = tmp_path / "edges.npy"
    records.write(path, edges)
    counted = np.empty(count * 8, lines.PASSAGE)
    counted["key"], counted["document"], counted["count"] = rows["key"], rows["document"], 1
    passages = tmp_path / "passages.npy"
    records.write(passages, counted)
    for whole, tasks in (
        (rows.nbytes, lambda most: [
            (pairs.candidates, pairs.Candidates([folder], 0, *one)) for one in records.ranges(rows.nbytes, most)
        ]),
        (edges.nbytes, lambda most: [
            (clusters.small_star, clusters.Edges([path], *one)) for one in records.balanced([path], most)
        ]),
        (counted.nbytes, lambda most: [
            (lines.count, lines.Count([passages], 2, *one)) for one in records.ranges(counted.nbytes, most)
        ]),
    ):  # fmt: skip
        peaks = []
        for most in (whole, whole // 10):
            work, task = tasks(most)[0]
            tracemalloc.start()
            work(task, folder)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 0.15 * peaks[0]
        assert peaks[0] < 20 * whole  # so large are ranges of 64 MB at most (`steps.py`)
