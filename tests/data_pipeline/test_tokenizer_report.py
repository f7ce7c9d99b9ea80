"""The tokenizer report counts what was tokenised, finds what does not come back, and is a page that fits a phone."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentencepiece import SentencePieceTrainer

from conf.schema import Job
from data_pipeline import tokenize_text
from data_pipeline.stream import documents
from data_pipeline.tokenize_text import tokenize
from data_pipeline.tokenizer import Tokenizer, pieces
from data_pipeline.tokenizer_report import render, round_trip
from data_pipeline.tokenizer_report.counts import Counts
from data_pipeline.tokenizer_report.round_trip import RoundTrip, change
from tests.browser import Browser

ENGLISH = ["the", "garden", "gate", "was", "open", "and", "a", "small", "lantern", "burned", "(1984)", "water,"]
GERMAN = ["der", "Garten", "Größe", "und", "eine", "kleine", "Straße", "brannte", "Wasser,", "3.5"]
JAPANESE = "庭の門は開いていて小さな灯が水のそばで燃えていた。"


def text(number: int, language: str) -> str:
    if language == "ja":
        return "\n".join(JAPANESE[number % 9 : number % 9 + line + 3] for line in range(number % 5 + 1))
    words = ENGLISH if language == "en" else GERMAN
    lines = [" ".join(words[(number * i + j) % len(words)] for j in range(9)) for i in range(number % 7 + 1)]
    odd = {0: " \U0001f98e", 1: "\r\n\tend  ", 2: "a\u00a0b \x00", 3: "\v\u3000"}
    return f"\n{'  ' * (number % 3)}".join(lines) + odd.get(number % 11, "")


TEXTS = {
    f"{language}-{number}": (text(number, language), language)
    for language in ("de", "en", "ja")
    for number in range(80)
}


def write_curated(folder: Path, texts: dict[str, tuple[str, str | None]]) -> None:
    folder.mkdir(parents=True)
    columns = {
        "id": list(texts),
        "text": [text for text, _ in texts.values()],
        "source": ["tales"] * len(texts),
        "url": [""] * len(texts),
        "language": pa.array([language for _, language in texts.values()], pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "part-00000.parquet")
    data = (folder / "part-00000.parquet").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    file = {"name": "part-00000.parquet", "bytes": len(data), "sha256": digest, "documents": len(texts)}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": [file]}))


def job(root: Path, **tokenizer: Any) -> Job:
    made = Job()
    made.tokenize.input, made.tokenize.output = str(root / "text"), str(root / "tokens")
    made.tokenize.held_out, made.tokenize.shard_tokens = 0.1, 3000
    made.tokenizer.output, made.tokenizer.vocab_size = str(root / "tokenizer.model"), 520
    made.data.sequence_length = 64
    for name, value in tokenizer.items():
        setattr(made.tokenizer, name, value)
    return made


def write_model(path: Path, **settings: Any) -> str:
    """A model with Gemma's special ids and bytes, but for the settings."""
    settings = {
        "vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "character_coverage": 0.98,
        "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
    } | settings  # fmt: skip
    with path.open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=(line for text, _ in TEXTS.values() for line in text.replace("\0", "").split("\n")),
            model_writer=file,
            minloglevel=2,
            **settings,
        )
    return str(path)


def report_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "tokens" / "tokenizer_report.json").read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on a tokenizer that was trained on the text."""
    root = tmp_path_factory.mktemp("report")
    write_curated(root / "text", TEXTS)
    assert tokenize(job(root))["tokenizer_report"] == str(root / "tokens" / "tokenizer_report.html")
    return root


def slow_counts(root: Path, model: Path, texts: dict[str, tuple[str, str]]) -> tuple[dict[str, Counter], Counter]:
    """Figures by language and tokens by id, from the shards: a document at a time, its words found in its bytes."""
    processor = Tokenizer.load(model).processor
    languages: dict[str, Counter] = {language: Counter() for _, language in texts.values()}
    times: Counter = Counter()
    for manifest in (root / "tokens" / "manifest.json", root / "tokens" / "held_out" / "manifest.json"):
        for name, tokens in documents(str(manifest)):
            text, language = texts[name]
            content, found = b"", languages[language]
            owners: list[int] = []
            for place, token in enumerate(tokens[1:-1].tolist()):
                times[token] += 1
                piece = processor.id_to_piece(token)
                own = bytes([int(piece[3:5], 16)]) if processor.is_byte(token) else piece.replace("▁", " ").encode()
                content += own
                owners += [place] * len(own)
                found["tokens"] += 1
                found["byte_tokens"] += processor.is_byte(token)
                found["unknown_tokens"] += token == 3
                found["blank_tokens"] += not own.strip()
            words = [] if language == "ja" else list(re.finditer(rb"[^ \t\n\v\f\r]+", content))
            assert language == "ja" or len(words) == len(text.encode().split())
            found["words"] += len(words)
            found["whole_words"] += sum(owners[word.start()] == owners[word.end() - 1] for word in words)
            found["documents"] += 1
            found["characters"] += len(text)
            found["bytes"] += len(text.encode())
    return languages, times


SHAPES: dict[str, dict[str, Any]] = {
    "several_words_a_piece": {"split_by_whitespace": False, "max_sentencepiece_length": 40},
    "blanks_behind_words": {"treat_whitespace_as_suffix": True},
    "blanks_apart": {"split_by_whitespace": True, "user_defined_symbols": ["▁"]},
    "unigram": {"model_type": "unigram", "vocab_size": 330},
}


@pytest.mark.parametrize("shape", ["ours", *SHAPES])
def test_figures_are_those_of_a_slow_count_over_the_shards(tmp_path: Path, root: Path, shape: str) -> None:
    model = root / "tokenizer.model"
    if shape != "ours":
        model = Path(write_model(tmp_path / "given.model", **SHAPES[shape]))
        write_curated(tmp_path / "text", TEXTS)
        tokenize(job(tmp_path, model=str(model)))
        root = tmp_path
    report, (languages, times) = report_of(root), slow_counts(root, model, TEXTS)
    assert list(report["languages"]) == sorted(languages, key=lambda code: -languages[code]["bytes"])
    for language, expected in languages.items():
        assert {key: report["languages"][language][key] for key in expected} == expected
    whole = sum(languages.values(), Counter())
    assert {key: report["all"][key] for key in whole} == whole
    assert min(whole["whole_words"], whole["byte_tokens"], whole["blank_tokens"]) > 0
    assert whole["whole_words"] < whole["words"]
    shards = [json.loads(path.read_text())["totals"] for path in root.glob("tokens/**/manifest.json")]
    assert sum(one["tokens"] for one in shards) == whole["tokens"] + 2 * whole["documents"]
    vocabulary = report["vocabulary"]
    assert vocabulary["used"] == len(times)
    assert vocabulary["used_100_times"] == sum(count >= 100 for count in times.values())
    assert sum(row["tokens"] for row in vocabulary["lengths"].values()) == whole["tokens"]
    pieces = sum(count for kind, count in vocabulary["kinds"].items() if kind not in ("control", "unknown"))
    assert vocabulary["used"] + sum(vocabulary["unused"].values()) == pieces
    assert sum(row["pieces"] for row in vocabulary["lengths"].values()) == pieces
    top = sum(count for _, count in times.most_common(-(-pieces // 10)))
    assert vocabulary["coverage"]["10"] == pytest.approx(top / whole["tokens"], abs=5e-5)
    processor = Tokenizer.load(model).processor
    assert len(vocabulary["unused_examples"]) == min(20, vocabulary["unused"].get("normal", 0))
    assert not {processor.piece_to_id(piece) for piece in vocabulary["unused_examples"]} & set(times)


def test_ratios_are_against_bytes_words_and_english(root: Path) -> None:
    languages = report_of(root)["languages"]
    english, german = languages["en"], languages["de"]
    assert german["bytes_per_token"] == pytest.approx(german["bytes"] / german["tokens"], abs=5e-5)
    assert german["characters_per_token"] == pytest.approx(german["characters"] / german["tokens"], abs=5e-5)
    assert german["tokens_per_word"] == pytest.approx(german["tokens"] / german["words"], abs=5e-5)
    assert english["premium"] == {"bytes": 1.0, "characters": 1.0}
    for unit in ("bytes", "characters"):
        premium = (german["tokens"] / german[unit]) / (english["tokens"] / english[unit])
        assert german["premium"][unit] == pytest.approx(premium, abs=5e-5)


def test_a_language_without_blanks_has_no_words_and_none_in_the_sum(root: Path) -> None:
    report = report_of(root)
    japanese, spaced = report["languages"]["ja"], [report["languages"][code] for code in ("de", "en")]
    assert (japanese["spaced"], japanese["words"], japanese["tokens_per_word"]) == (False, 0, None)
    assert japanese["characters_per_token"] > 0
    words, tokens = sum(one["words"] for one in spaced), sum(one["tokens"] for one in spaced)
    assert report["all"]["tokens_per_word"] == pytest.approx(tokens / words, abs=5e-5)
    assert re.search(r"<td>ja</td><td class=n>no blanks</td>", render(report))


def test_a_language_that_is_not_stated_is_und(tmp_path: Path) -> None:
    write_curated(tmp_path / "text", {f"doc-{n}": (text(n, "en"), None) for n in range(60)})
    tokenize(job(tmp_path, vocab_size=400))
    report = report_of(tmp_path)
    assert list(report["languages"]) == ["und"]
    assert report["languages"]["und"]["premium"] is None  # no English to be held against


def test_bytes_of_a_character_without_a_piece_are_counted(root: Path) -> None:
    """An island that no text of the training had is four bytes, and one word."""
    model, texts = root / "tokenizer.model", ["gate \U0001f3dd gate"]
    counts = Counts(pieces(model))
    counts.add(texts, [14], ["en"], Tokenizer.load(model).encode_documents(texts))
    assert counts.languages["en"].byte_tokens == 4
    assert counts.languages["en"].words == 3


def test_text_comes_back_from_our_own_tokenizers(root: Path) -> None:
    report = report_of(root)
    assert report["all"]["round_trip"] == {"tried": 240, "exact": 240}
    assert report["changes"] == {}
    assert report["tokenizer"].items() >= {
        ("model_type", "bpe"), ("byte_fallback", True), ("normalizer", "identity"), ("changes_characters", False),
        ("adds_prefix", False), ("removes_blanks", False),
    }  # fmt: skip
    assert (report["vocabulary"]["several_digits"], report["vocabulary"]["kinds"]["byte"]) == (0, 256)
    assert "All of them are, to the character, the text that was encoded." in render(report)


def test_a_tokenizer_that_normalises_is_found_and_told_why(tmp_path: Path) -> None:
    texts = {f"doc-{n}": (f"the ﬁrst garden gate {n}" if n % 2 else f"the small gate {n}", "en") for n in range(60)}
    texts["<doc>"] = ("the garden  gate", "de")
    write_curated(tmp_path / "text", texts)
    settings = {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": True, "split_digits": False}
    tokenize(job(tmp_path, model=write_model(tmp_path / "nfkc.model", **settings)))
    report = report_of(tmp_path)
    assert report["languages"]["en"]["round_trip"] == {"tried": 60, "exact": 30}
    assert report["changes"] == {
        "nfkc": {"documents": 30, "id": "doc-1", "text": "U+FB01 U+0072 U+0073 U+0074",
                 "decoded": "U+0066 U+0069 U+0072 U+0073"},
        "white_space": {"documents": 1, "id": "<doc>", "text": "U+0020 U+0067 U+0061 U+0074",
                        "decoded": "U+0067 U+0061 U+0074 U+0065"},
    }  # fmt: skip
    assert report["tokenizer"]["changes_characters"]
    assert report["tokenizer"]["removes_blanks"]
    assert report["vocabulary"]["several_digits"] > 0
    page = render(report)
    assert "characters were replaced by plainer ones (Unicode NFKC)" in page
    assert "&lt;doc&gt;" in page


def test_a_tokenizer_without_bytes_has_unknown_tokens(tmp_path: Path) -> None:
    write_curated(tmp_path / "text", TEXTS)
    tokenize(job(tmp_path, model=write_model(tmp_path / "small.model", byte_fallback=False, vocab_size=220)))
    report = report_of(tmp_path)
    assert report["all"]["unknown_tokens"] > 0 == report["all"]["byte_tokens"]
    lost = report["all"]["round_trip"]["tried"] - report["all"]["round_trip"]["exact"]
    assert 0 < report["changes"]["unknown"]["documents"] <= lost
    assert "become the unknown piece" in render(report)


@pytest.mark.parametrize(
    ("before", "after", "kind", "parting"),
    [
        ("a\u2581b", "a b", "blank_sign", ("U+2581 U+0062", "U+0020 U+0062")),
        (" a\tb", "a b", "white_space", ("U+0020 U+0061 U+0009 U+0062", "U+0061 U+0020 U+0062")),
        ("a\u200bb \x01", "ab", "invisible", ("U+200B U+0062 U+0001", "U+0062")),
        ("e\u0301t", "\u00e9t", "nfc", ("U+0065 U+0301 U+0074", "U+00E9 U+0074")),
        ("x \u2460", "x1", "nfkc", ("U+2460", "U+0031")),
        ("Gate \u00c9", "gate \u00e9", "case", ("U+0047 U+0061 U+0074 U+0065", "U+0067 U+0061 U+0074 U+0065")),
        ("gate", "gat", "other", ("U+0065", "")),
    ],
)
def test_every_change_has_a_name(before: str, after: str, kind: str, parting: tuple[str, str]) -> None:
    assert change(before, after, unknown=False) == (kind, *parting)


def test_a_rare_language_is_tried_whole_and_a_frequent_one_in_part(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "_WHOLE_BYTES", 2000)
    model = Tokenizer.load(root / "tokenizer.model")
    ids = [f"doc-{n}" for n in range(8010)]
    texts, languages = ["gate " * 20] * 8010, ["en"] * 8000 + ["ga"] * 10
    trip = RoundTrip(model)
    trip.add(ids, texts, [100] * 8010, languages, model.encode_documents(texts))
    assert trip.tried["ga"] == 10
    # The first 20, then one in 21/20, 22/20, ... down to one in 16.
    expected = 20 + sum(max(20 / n, 1 / 16) for n in range(20, 8000))
    assert abs(trip.tried["en"] - expected) < 4 * expected**0.5


def test_the_report_has_the_same_bytes_however_documents_are_batched(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_text, "_READ_ROWS", 7)
    write_curated(tmp_path / "text", TEXTS)
    tokenize(job(tmp_path))
    for name in ("tokenizer_report.json", "tokenizer_report.html"):
        assert (tmp_path / "tokens" / name).read_bytes() == (root / "tokens" / name).read_bytes()


def test_tokenizing_needs_nothing_of_the_extra_curate() -> None:
    program = "import sys, data_pipeline.tokenize_text; print(sorted({'numba', 'pycld2', 'ftfy'} & set(sys.modules)))"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert said.stdout == "[]\n", said.stderr


def test_the_page_needs_nothing_but_itself(root: Path) -> None:
    page = (root / "tokens" / "tokenizer_report.html").read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import|https?://| (src|href)=", page)
    assert "prefers-color-scheme: dark" in page
    for line in (
        "240 documents in 3 languages",
        "digits</td><td>one by one",
        "normalisation</td><td>identity: changes no character",
    ):
        assert line in page


def test_of_many_languages_the_page_shows_those_with_most_text(root: Path) -> None:
    report = report_of(root)
    one = report["languages"]["en"]
    report["languages"] = {f"l{n:02}": one for n in range(50)}
    page = render(report)
    assert "<td>l39</td>" in page
    assert "<td>l40</td>" not in page
    assert "10 languages with less text are in tokenizer_report.json only." in page


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_never_wider_than_the_screen(tab: Browser, root: Path, width: int) -> None:
    tab.open(root / "tokens" / "tokenizer_report.html", width)
    assert tab.evaluate("document.documentElement.scrollWidth") == tab.evaluate("innerWidth") == width
    assert tab.complaints() == []
    assert len(tab.requests()) == 1
