"""Promises of the tokenizer: text survives, training repeats, wrong models and sizes are refused with the remedy."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from conf.exits import ConfigError, DataError
from data_pipeline.tokenizer import Tokenizer, train

WORDS = ["the", "garden", "gate", "was", "open", "and", "a", "small", "lantern", "burned", "beside", "water"]
WORDS += ["1984", "café", "Größe", "水", "\tindent", "straight", "chimney", "Wednesday", "hollow"]
TEXTS = [
    "\n".join(" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(12)) + f" {'x' * (i % 9)}{i}" for i in range(n))
    for n in range(2, 40)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(TEXTS, vocab_size=480))
    return Tokenizer.load(path)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_survives_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  a   b ", "\n\n\n", "a\r\nb\n", "\t\tx\t y", "\0", "<bos></s><0x0A><unk>", "12345", "\ufeff水é"]
)
def test_whitespace_and_odd_text_survive(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_settings_are_gemmas(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.unk) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 480
    assert len(tokenizer.encode("\n" * 7)) == 1
    assert len(tokenizer.encode(" " * 7)) == 1
    assert len(tokenizer.encode("1984")) == 4  # digits apart
    assert tokenizer.encode("the")[0] != tokenizer.encode(" the")[0]  # no dummy prefix
    assert tokenizer.unk not in tokenizer.encode("\U0001f600")  # bytes, not unknown
    assert 2 not in tokenizer.encode("<bos>")  # special ids never come from text


def test_a_document_begins_with_bos_and_ends_with_eos(tokenizer: Tokenizer) -> None:
    document = tokenizer.encode_document("the gate")
    assert document.tolist() == [2, *tokenizer.encode("the gate"), 1]
    assert [d.tolist() for d in tokenizer.encode_documents(["the gate", ""])] == [document.tolist(), [2, 1]]
    assert tokenizer.decode(document) == "the gate"


def test_training_gives_the_same_bytes_twice() -> None:
    assert train(TEXTS, vocab_size=480) == train(TEXTS, vocab_size=480)


def test_a_long_line_is_trained_on() -> None:
    """SentencePiece skips a line beyond its limit without a word."""
    line = "zebra quagga " * 20_000
    model = train([*TEXTS, line], vocab_size=500)
    assert b"quagga" in model
    assert b"quagga" in train([*TEXTS, line.replace(" ", "\u3000")], vocab_size=500)


@pytest.mark.parametrize(("size", "word"), [(50_000, "or less"), (100, "or more")])
def test_a_vocabulary_size_the_text_cannot_yield_names_one_it_can(size: int, word: str) -> None:
    with pytest.raises(ConfigError, match=rf"tokenizer.vocab_size={size} .*{word}") as caught:
        train(TEXTS, vocab_size=size)
    found = re.search(rf"tokenizer.vocab_size=(\d+) {word}", str(caught.value))
    assert found is not None
    train(TEXTS, vocab_size=int(found[1]))


def test_a_missing_or_broken_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.model cannot be read.*set tokenizer\.model"):
        Tokenizer.load(tmp_path / "absent.model")
    (tmp_path / "text.model").write_text("no model")
    with pytest.raises(DataError, match=r"text\.model \(8 bytes\) is not a SentencePiece model"):
        Tokenizer.load(tmp_path / "text.model")


def test_a_model_with_other_special_ids_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "other.model").write_bytes(model.getvalue())
    with pytest.raises(ConfigError, match=r"'pad': -1.*Gemma models need \{'pad': 0, 'eos': 1, 'bos': 2, 'unk': 3\}"):
        Tokenizer.load(tmp_path / "other.model")
