"""Benchmarks are found where they stand, whatever their case and wrapping; what is no copy stays; certificates tell."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import random
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.exits import ConfigError, DataError
from data_pipeline.decontaminate import actions, certificate, items
from data_pipeline.decontaminate.index import Index
from data_pipeline.decontaminate.items import Evaluation, Fields, Item
from data_pipeline.decontaminate.match import CLUSTER, RUN, match
from data_pipeline.signals.tokens import Tokens
from tests import planting

# ---- an invented benchmark -------------------------------------------------------------------------------------------

_PEOPLE = ("Orrin", "Thessaly", "Bramwell", "Ysolde", "Caspian", "Marguerite", "Lucan", "Perpetua")
_PLACES = (
    "the salt works of Harrow",
    "a lighthouse near Senn",
    "the upper mill",
    "an orchard beyond Tarn",
    "the ferry",
)
_DEEDS = (
    "counted the barrels that came up the river", "painted seven doors in a colour nobody had asked for",
    "kept a ledger of every storm since the old bridge fell", "taught the miller's children to read charts",
    "sold lanterns to pilgrims on the northern road", "mended nets for the boats of the eastern shore",
)  # fmt: skip
_ASKED = (
    "why did the council pay for it",
    "who was told first about the loss",
    "what did the neighbours call that work",
)
_FILLER = (
    "The valley has two markets, and people come to them from both sides of the pass when the snow allows it.",
    "A wall of grey stone runs along the fields, and nobody remembers who began it.",
    "In spring the water is high, and the mill stands still for some weeks.",
    "Letters are brought by the ferry twice a week, and newspapers on Sundays.",
    "What is the name of the road that leads to the coast is a thing that every child there knows.",
)


def invented(count: int = 60, seed: int = 0) -> Evaluation:
    """Questions of which each word is shared with others, and no question is another."""
    draw = random.Random(seed)
    made = {}
    while len(made) < count:
        who, other = draw.sample(_PEOPLE, 2)
        question = (
            f"When {who} left {draw.choice(_PLACES)} in {draw.randrange(1600, 1900)} and {draw.choice(_DEEDS)}, while "
            f"{other} {draw.choice(_DEEDS)} for {draw.randrange(3, 90)} days, {draw.choice(_ASKED)}?"
        )
        answers = [
            f"{draw.choice(('nearly', 'about', 'fewer than'))} {draw.randrange(100, 999)} crowns" for _ in range(4)
        ]
        made[question] = Item("mill", f"mill:{len(made)}", (question,), (answers[0],), tuple(answers[1:]))
    return Evaluation("mill", {"mill.jsonl": "0" * 64}, list(made.values()), "as invented")


def document(draw: random.Random, sentences: int = 30) -> str:
    return "\n\n".join(" ".join(draw.choices(_FILLER, k=3)) for _ in range(sentences // 3))


def found(index: Index, *texts: str) -> list[list[str]]:
    """Items of each text by name, of clusters."""
    spans = match(index, Tokens.of(texts))
    return [
        [index.names_I[spans.item_N[n]] for n in range(*spans.documents_D1[d : d + 2]) if spans.kind_N[n] == CLUSTER]
        for d in range(len(texts))
    ]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index.build([invented()])


@pytest.mark.parametrize("way", planting.WAYS)
def test_planted_items_are_found(index: Index, way: str) -> None:
    draw = random.Random(1)
    evaluation = invented()
    texts = [planting.WAYS[way](item, document(draw), draw) for item in evaluation.items]
    hits = [item.name in names for item, names in zip(evaluation.items, found(index, *texts), strict=True)]
    assert np.mean(hits) >= 0.98


def test_other_items_of_the_same_words_and_parts_of_questions_are_not_found(index: Index) -> None:
    draw = random.Random(2)
    known = {item.forms[0] for item in invented().items}
    others = [item for item in invented(200, seed=3).items if item.forms[0] not in known]
    texts = [planting.verbatim(item, document(draw), draw) for item in others]
    texts += [planting.partly(item, document(draw), draw) for item in invented().items]
    assert sum(map(bool, found(index, *texts))) <= len(texts) // 100


def test_a_span_is_the_question_and_its_answer(index: Index) -> None:
    item = invented().items[7]
    text = f"Before it.\n\n{item.forms[0]}\n{item.answers[0]}\n\nBehind it."
    spans = match(index, Tokens.of([document(random.Random(0)), text]))
    assert spans.documents_D1.tolist() == [0, 0, (spans.kind_N == CLUSTER).sum() + (spans.kind_N == RUN).sum()]
    n = int(np.flatnonzero(spans.kind_N == CLUSTER)[0])
    assert text[spans.start_N[n] : spans.stop_N[n]] == item.forms[0].rstrip("?")
    assert text[spans.answer_start_N[n] : spans.answer_stop_N[n]] == item.answers[0]
    assert spans.answered_N[n]
    assert spans.score_N[n] == pytest.approx(1, abs=1e-5)


def test_a_question_far_from_its_answer_is_not_answered(index: Index) -> None:
    item, draw = invented().items[7], random.Random(0)
    near, far = (planting.apart(item, document(draw, 300), draw, words=w) for w in ((5, 40), (300, 400)))
    spans = match(index, Tokens.of([near, far]))
    answered = [spans.answered_N[spans.documents_D1[d] : spans.documents_D1[d + 1]].any() for d in (0, 1)]
    assert answered == [True, False]


def test_a_question_that_anybody_may_ask_needs_an_answer() -> None:
    """Short ones of common words, and those that several items ask."""
    asked = "Which of the following is true of it?"
    some = [
        Item("b", f"{n}", (asked,), (f"It sank off Cape Verity with {n} hundred barrels of lamp oil",))
        for n in range(5)
    ]
    short = [Item("b", "short", ("who paid for the old mill",), ("the widow Estrild Quillfeather",))]
    words = invented().items  # so that common words are known for common
    index = Index.build([Evaluation("b", {}, [*some, *short, *words], "")])
    for item in (*some, *short):
        alone = f"Nobody knows. {item.forms[0]} That was never found out."
        answered = f"Nobody knows. {item.forms[0]} {item.answers[0]}. That was never found out."
        assert found(index, alone, answered) == [[], [item.name]]


def test_a_passage_is_no_question() -> None:
    """Texts that questions quote are public, and several questions share one: the end of the question must be there."""
    passage = " ".join(item.forms[0] for item in invented(4, seed=9).items)
    ends = (
        "Which of the two left the river before the bridge fell, and who was paid?",
        "How many crowns were never found?",
    )
    made = [Item("b", f"{n}", (f"{passage} {end}",)) for n, end in enumerate(ends)]
    index = Index.build([Evaluation("b", {}, [*made, *invented().items], "")])
    other = f"{passage} What would the ferryman have said of all that, had he been asked?"
    assert found(index, passage, other, made[0].forms[0], made[1].forms[0]) == [[], [], ["0"], ["1"]]


def test_signs_tell_where_letters_do_not() -> None:
    """Sequences of brackets, of which many are asked for with the same words, and sums."""
    draw = random.Random(8)
    sequences = [" ".join(draw.choices("[](){}<>", k=12)) for _ in range(8)]
    asked = [Item("b", f"{n}", (f"Continue the row so that all is closed: {row}",)) for n, row in enumerate(sequences)]
    index = Index.build(
        [Evaluation("b", {}, [*asked, Item("b", "sum", ("8 - 8 - (2 + 2) =",), ("-4",)), *invented().items], "")]
    )
    for n, row in enumerate(sequences):
        assert found(index, f"Well. Continue the row\n> so that all is closed:\n> {row}\nThat is it.") == [[f"{n}"]]
    assert found(index, "Continue the row so that all is closed: [ [ [ [ [ [ [ [ [ [ [ [") == [[]]
    assert found(index, "Model 88 2 2 costs 4", "8 8 22 4", "8-8-(2+2)= -4") == [[], [], ["sum"]]


_SIGNED = "Don't step on the well-known miller's toes 3.5 times, said U.S. law of that day in Tarn."
_RESIGNED = (
    "dont step on the well known miller's toes 35 times, said U.S. law of that day in Tarn",
    "DON’T step—on the “well known” miller`s toes 3.5 times,\n> said US law of that day in Tarn",
    "don't step on the wellknown\n1. millers toes (3 5 times) said U. S. law of that day in Tarn",
)


@pytest.mark.parametrize("copy", _RESIGNED)
def test_signs_do_not_matter(copy: str) -> None:
    index = Index.build([Evaluation("b", {}, [Item("b", "0", (_SIGNED,)), *invented().items], "")])
    assert found(index, f"So it is. {copy} So it was.") == [["0"]]


def test_thirteen_words_in_a_row_are_a_run_and_twelve_are_none(index: Index) -> None:
    words = invented().items[3].forms[0].split()
    spans = match(index, Tokens.of([" ".join(words[:13]), " ".join(words[:12]), " ".join(words[:16])]))
    assert spans.documents_D1.tolist() == [0, 1, 1, 2]
    assert (spans.kind_N == RUN).all()
    assert spans.stop_N.tolist() == [len(" ".join(words[:13]).rstrip(",")), len(" ".join(words[:16]).rstrip(","))]


def test_spans_do_not_depend_on_the_batch(index: Index) -> None:
    draw = random.Random(5)
    texts = [planting.recased(item, document(draw, 9), draw) for item in invented().items[:12]] + ["", "?!", "1."]
    together = match(index, Tokens.of(texts))
    for d, text in enumerate(texts):
        alone, own = match(index, Tokens.of([text])), slice(*together.documents_D1[d : d + 2])
        for name in ("kind_N", "start_N", "stop_N", "item_N", "score_N", "answered_N", "answer_start_N"):
            assert np.array_equal(getattr(alone, name), getattr(together, name)[own]), name


# ---- the file --------------------------------------------------------------------------------------------------------


def test_an_index_is_the_same_bytes_and_reads_back(index: Index, tmp_path: Path) -> None:
    index.save(tmp_path / "a")
    Index.build([invented()]).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    opened, text = Index.open(tmp_path / "a"), invented().items[0].forms[0]
    assert (opened.method, opened.benchmarks, opened.names_I) == (index.method, index.benchmarks, index.names_I)
    assert found(opened, text) == found(index, text) == [["mill:0"]]


@pytest.mark.parametrize(("change", "message"), [
    (lambda data: b"", "cannot be read"), (lambda data: b"x" + data, "is no index"),
    (lambda data: data[:-4096], "damaged or cut off"),
    (lambda data: data.replace(b'"format":1', b'"format":9'), "format 9"),
    (lambda data: data.replace(b'"format":1', b'"formed":1'), "its header does not read .*'format'"),
    (lambda data: data.replace(b'"method":{', b'"method":<'), "its header does not read"),
    (lambda data: data.replace(b'"mill:0"', b'"mill:X"'), "damaged or cut off"),
    (lambda data: data.replace(b'"misses":11', b'"misses":12'), "damaged or cut off"),
    (lambda data: data[:-5000] + bytes([data[-5000] ^ 1]) + data[-4999:], "damaged or cut off"),
    (lambda data: data[:26] + (2).to_bytes(8, "little") + b"[]" + data[36:], "its header does not read"),
])  # fmt: skip
def test_a_broken_index_is_refused(
    index: Index, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    index.save(path := tmp_path / "index")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        Index.open(path)


def test_benchmark_text_is_scrubbed_like_documents() -> None:
    item = Item(
        "b", "0", ("Please write the answer of the miller's last riddle to orrin@mill.example before the frost",)
    )
    evaluation = Evaluation("b", {}, [item, *invented().items], "")
    scrubbed = "Please write the answer of the miller's last riddle to <EMAIL> before the frost"
    index = Index.build([evaluation], lambda text: text.replace("orrin@mill.example", "<EMAIL>"))
    assert found(index, scrubbed) == [["0"]]


def test_items_are_counted_once() -> None:
    evaluation = invented(10)
    again = [replace(item, name=f"again:{item.name}") for item in evaluation.items]
    assert len(Index.build([replace(evaluation, items=[*evaluation.items, *again])]).names_I) == 10


def test_benchmarks_need_names_and_words() -> None:
    with pytest.raises(ConfigError, match="a name of its own"):
        Index.build([invented(), invented()])
    with pytest.raises(ConfigError, match="no item holds a word"):
        Index.build([Evaluation("b", {}, [Item("b", "0", ("?",))], "")])


# ---- items of files --------------------------------------------------------------------------------------------------

_ROWS = [
    {"id": "a", "question": "How far is Senn?", "choices": ["two miles", "three miles"], "answerKey": "B"},
    {"id": "b", "question": "Who built the ferry?", "choices": ["Orrin", "Lucan"], "answerKey": "A"},
]


def _written(folder: Path, name: str) -> Path:
    path, lines = folder / name, "\n".join(map(json.dumps, _ROWS)).encode()
    flat = [
        {"question": row["question"], "answer": row["choices"][ord(row["answerKey"]) - 65], "id": row["id"]}
        for row in _ROWS
    ]
    kind, _, packing = name.removeprefix("f.").partition(".")
    table = ",".join(flat[0]) + "\n" + "\n".join(",".join(row.values()) for row in flat)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(_ROWS), path)
        return path
    if kind == "arrow":
        with pa.ipc.new_stream(path, (rows := pa.Table.from_pylist(_ROWS)).schema) as stream:
            stream.write_table(rows)
        return path
    content = {
        "jsonl": lines, "json": json.dumps(_ROWS).encode(), "csv": table.encode(),
        "tsv": table.replace(",", "\t").encode(), "txt": "\n".join(row["question"] for row in flat).encode(),
    }[kind]  # fmt: skip
    zstandard = pytest.importorskip("zstandard") if packing == "zst" else None
    pack = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "zst": getattr(zstandard, "compress", None)}[packing]
    path.write_bytes(pack(content))
    return path


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.jsonl.bz2", "f.jsonl.zst", "f.json", "f.csv", "f.tsv",
                                  "f.parquet", "f.arrow", "f.txt"])  # fmt: skip
def test_every_format_gives_the_same_items(tmp_path: Path, name: str) -> None:
    evaluation = items.read("b", [_written(tmp_path, name)])
    assert [item.forms for item in evaluation.items] == [("How far is Senn?",), ("Who built the ferry?",)]
    if name != "f.txt":
        assert [(item.name, item.answers) for item in evaluation.items] == [
            (f"{name}:a", ("three miles",)),
            (f"{name}:b", ("Orrin",)),
        ]
        assert evaluation.fields == "question: question"
    assert list(evaluation.files) == [name]


def test_fields_may_be_given_and_else_every_text_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"riddle": "What runs and never walks?", "inner": {"solved": "a river"}}) + "\n")
    taken = items.read("b", [path])
    assert (taken.items[0].forms, taken.fields) == (("What runs and never walks?",), "every field of text: riddle")
    given = items.read("b", [path], Fields(question=("riddle",), answers=("inner.solved",)))
    assert (given.items[0].forms, given.items[0].answers) == (("What runs and never walks?",), ("a river",))
    with pytest.raises(
        ConfigError, match=r"odd\.jsonl, line 1: there is no text in puzzle; the fields are riddle, inner"
    ):
        items.read("b", [path], Fields(question=("puzzle",)))


@pytest.mark.parametrize(("name", "content", "error", "message"), [
    ("a.jsonl", b'{"question": "x"}\n{"question": \n', DataError, r"a\.jsonl, line 2: no JSON .*repair the line"),
    ("a.jsonl", b'{"question": "x"}\n[1]\n', DataError, "line 2: holds a list"),
    ("a.json", b'[{"question": "x"},\n}', DataError, r"a\.json, line 2: no JSON"),
    ("a.jsonl", b'{"question": "x"}\n\xff\xfe', DataError, "line 2: not UTF-8"),
    ("a.csv", b"question,answer\nx\n", DataError, "line 2: 1 columns, where the header has 2"),
    ("a.jsonl.gz", b"no gzip", DataError, "does not unpack"),
    ("a.jsonl.gz", gzip.compress(b'{"question": "x"}' * 99)[:-20], DataError, "does not unpack"),
    ("a.jsonl.zst", b"no zstandard", DataError, "does not unpack"),
    ("a.parquet", b"PAR1 broken", DataError, "does not read as parquet"),
    ("a.doc", b"", ConfigError, "items are read from"),
    ("a.jsonl", b"", DataError, "no item of benchmark 'b'"),
])  # fmt: skip
def test_a_file_that_does_not_parse_is_refused(
    tmp_path: Path, name: str, content: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        items.read("b", [tmp_path / name])


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"away\.jsonl cannot be read: No such file"):
        items.read("b", [tmp_path / "away.jsonl"])


def test_a_compressed_file_that_ends_in_the_middle_is_refused(tmp_path: Path) -> None:
    """Whatever of it unpacks: whole lines, too."""
    rows = "".join(json.dumps({"question": f"How far is {n} from Senn?"}) + "\n" for n in range(20_000)).encode()
    packed = pytest.importorskip("zstandard").compress(rows)
    for name, content in {"a.jsonl.zst": packed, "a.jsonl.gz": gzip.compress(rows)}.items():
        (tmp_path / name).write_bytes(content + content)  # several frames, or members
        assert len(items.read("b", [tmp_path / name]).items) == 40_000
        for cut in (len(content) // 2, len(content) - 1, len(content) + 5):
            (tmp_path / name).write_bytes((content + content)[:cut])
            with pytest.raises(DataError, match="does not unpack"):
                items.read("b", [tmp_path / name])


@pytest.mark.parametrize(
    ("labels", "key", "right"),
    [("123", "1", "a"), ("123", 3, "c"), ("012", 0, "a"), ("ABC", "B", "b"), ("123", "4", None), ("PQR", "(q)", "b")],
)
def test_a_key_names_a_choice_by_its_label(tmp_path: Path, labels: str, key: str | int, right: str | None) -> None:
    listed = {"text": ["a", "b", "c"], "label": list(labels)}
    each = [{"text": text, "label": label} for text, label in zip("abc", labels, strict=True)]
    rows = [{"question": "Which?", "choices": choices, "answerKey": key} for choices in (listed, each)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for item in items.read("b", [tmp_path / "a.jsonl"]).items:
        assert item.answers == (() if right is None else (right,))
        assert item.others == tuple(choice for choice in "abc" if choice != right)


@pytest.mark.parametrize(("benchmark", "name", "row"), [
    ("gsm8k", "test.jsonl", '{"question": "x", "answer": null}'),
    ("humaneval", "a.jsonl", '{"prompt": "x", "canonical_solution": null}'),
    ("triviaqa", "topics.a.txt", "Who?\t['a' b"), ("triviaqa", "topics.a.txt", "Who?\t7"),
])  # fmt: skip
def test_a_published_item_with_something_else_in_it_is_refused(
    tmp_path: Path, benchmark: str, name: str, row: str
) -> None:
    (tmp_path / name).write_text(row + "\n")
    with pytest.raises(DataError, match=rf"line 1: this is no item as {benchmark} is published"):
        items.published(benchmark, tmp_path)


def test_a_published_benchmark_of_other_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: this is no item as gsm8k is published"):
        items.published("gsm8k", tmp_path)
    with pytest.raises(ConfigError, match="none of the files"):
        items.published("boolq", tmp_path)
    with pytest.raises(ConfigError, match="no layout is known for benchmark 'unknown'"):
        items.published("unknown", tmp_path)


# ---- what is done, and what is said of it ----------------------------------------------------------------------------


def test_documents_are_dropped_or_cut() -> None:
    text = "one two three four five six seven eight nine ten"
    span = (text.index("four"), text.index("six") + 3)
    assert actions.decide(text, [], "drop") == ("", text)
    assert actions.decide(text, [span], "drop") == (actions.REASON, text)
    assert actions.decide(text, [span], "cut", margin=0, shortest=1) == ("", "one two three\n\nseven eight nine ten")
    assert actions.decide(text, [span], "cut", margin=3, shortest=1) == ("", "one two\n\neight nine ten")
    assert actions.decide(text, [span, (0, 2), span], "cut", margin=0, shortest=1) == (
        "",
        "two three\n\nseven eight nine ten",
    )
    assert actions.decide(text, [span], "cut", margin=0, shortest=40) == (actions.REASON, text)
    assert actions.decide(text, [(0, len(text))], "cut", shortest=0) == ("", "")


def test_a_cut_takes_no_more_than_its_margin_where_no_blanks_part_words() -> None:
    text = "".join(chr(0x4E00 + n) for n in range(2000))
    reason, rest = actions.decide(text, [(1000, 1010)], "cut", margin=50)
    assert (reason, rest) == ("", f"{text[:950]}\n\n{text[1060:]}")


def test_a_certificate_tells_what_was_kept_out(index: Index) -> None:
    evaluation, draw = invented(), random.Random(4)
    texts = [planting.verbatim(item, document(draw), draw) for item in evaluation.items[:5]] + [document(draw)]
    batches = [match(index, Tokens.of(texts[:2])), match(index, Tokens.of(texts[2:]))]
    one, other = certificate.Found(), certificate.Found()
    one.add(index, batches[0])
    other.add(index, batches[1])
    one.merge(other)
    whole = certificate.Found()
    for batch in reversed(batches):
        whole.add(index, batch)
    told = certificate.certify([evaluation], index, one, "drop")
    assert told == certificate.certify([evaluation], index, whole, "drop") == json.loads(json.dumps(told))
    mill = told["benchmarks"]["mill"]
    assert (told["format"], told["documents"]) == (1, 6)
    assert (mill["items"], mill["contaminated_items"]["clusters"], mill["contaminated_documents"]["clusters"]) == (
        60,
        5,
        5,
    )
    assert mill["contaminated_fraction"] == pytest.approx(5 / 60, abs=1e-6)
    certificate.check(told)
    with pytest.raises(DataError, match="was changed"):
        certificate.check({**told, "documents": 7})
    with pytest.raises(DataError, match="format 2"):
        certificate.check({**told, "format": 2})


def test_evaluation_asks_a_certificate(index: Index) -> None:
    told = certificate.certify([invented()], index, certificate.Found(), "cut")
    assert certificate.covers(told, "mill") == "yes"
    assert certificate.covers(told, "mill", {"renamed.jsonl": "0" * 64}) == "yes"
    assert certificate.covers(told, "mill", {"mill.jsonl": "1" * 64}) == "other files"
    assert certificate.covers(told, "weir") == certificate.covers(None, "mill") == "no"


# ---- real benchmarks and documents -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, Evaluation]:
    folder = os.environ.get("GEMCUTTER_BENCHMARKS", "")
    if not Path(folder, "mmlu").is_dir():
        pytest.skip("GEMCUTTER_BENCHMARKS names no folder with the published benchmarks")
    return {name: items.published(name, Path(folder, name)) for name in items.LAYOUTS}


@pytest.fixture(scope="module")
def real(published: dict[str, Evaluation]) -> Index:
    return Index.build(list(published.values()))


def test_real_items_are_found_in_real_documents(real: Index, published: dict[str, Evaluation]) -> None:
    """A few of each benchmark in each way; tests/bench/decontamination.py measures it."""
    draw = random.Random(6)
    documents = [text for text in _texts("debian-reference-en") if 1500 <= len(text) < 6000]
    for name, evaluation in published.items():
        chosen = draw.sample(evaluation.items, 20)
        texts = [
            planting.WAYS[way](item, draw.choice(documents), draw)
            for item in chosen for way in ("verbatim", "re-cased", "re-wrapped")
        ]  # fmt: skip
        assert sum(map(bool, found(real, *texts))) >= 0.9 * len(texts), name
    assert sum(map(bool, found(real, *documents))) <= len(documents) // 100


def test_overlaps_that_the_corpus_has_by_nature_are_found(real: Index, published: dict[str, Evaluation]) -> None:
    """As the item that the corpus names for the document, or as another that holds the same words."""
    for document, known in _natural().items():
        benchmark, _, place = known.partition(" ")
        *files, number = place.split(":")
        by_name = {item.name: item for item in published[benchmark].items}
        (expected,) = (
            item for name, item in by_name.items()
            if name.rpartition(":")[2] == number and all(part in name.rpartition(":")[0] for part in files)
        )  # fmt: skip
        (text,) = _texts(document.partition("/")[0], {document})
        spans = match(real, Tokens.of([text]))
        there = {
            real.names_I[i] for b, i in zip(spans.benchmark_N, spans.item_N, strict=True)
            if real.benchmarks[b] == benchmark
        }  # fmt: skip
        common = _thirteens(text) & _thirteens(*expected.forms, *expected.answers)
        assert any(common & _thirteens(*by_name[n].forms, *by_name[n].answers) for n in there), (document, known, there)


def _thirteens(*texts: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", " ".join(texts).lower())
    return {tuple(words[n : n + 13]) for n in range(len(words) - 12)}


def _natural() -> dict[str, str]:
    """Document -> item of the overlaps that the corpus is known to have."""
    corpus = os.environ.get("GEMCUTTER_CORPUS", "")
    if not Path(corpus, "manifest.json").is_file():
        pytest.skip("GEMCUTTER_CORPUS names no folder with the corpus")
    return dict(json.loads(Path(corpus, "manifest.json").read_text())["natural_benchmark_overlap"]["documents"])


def _texts(package: str, ids: Container[str] | None = None) -> Iterator[str]:
    zstandard = pytest.importorskip("zstandard")
    with Path(os.environ["GEMCUTTER_CORPUS"], "text", f"{package}.jsonl.zst").open("rb") as packed:
        for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(packed)):
            record = json.loads(line)
            if ids is None or record["id"] in ids:
                yield record["text"]
