"""Bits per byte equals its definition, computed document by document, whatever the batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.exits import ConfigError, DataError
from conf.schema import Evaluate, Model
from data_pipeline.shards import Document, write_shards
from data_pipeline.tokenizer import Tokenizer, train
from trainer.evaluate.bits_per_byte import bits_per_byte
from trainer.evaluate.score import score
from trainer.model import Gemma, build_config

TEXTS = [
    "The ferry leaves when the bell has rung twice.",
    "Zwölf Möwen saßen auf der Brücke — und keine flog.\n\nДождь шёл.",
    "short",
    "A long story about a lantern: " + "it went out, and it was lit again; " * 12,
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train(TEXTS * 10, 420))
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Gemma:
    shape = {"num_layers": 2, "d_model": 32, "d_ff": 48, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "window": 9}
    model = Gemma(build_config(Model(size="tiny", **shape), tokenizer.vocab_size))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model


def write(folder: Path, texts: list[str], tokenizer: Tokenizer) -> str:
    documents = [
        Document(f"d{i}", "invented", tokenizer.encode_document(text), len(text.encode()))
        for i, text in enumerate(texts)
    ]
    write_shards(
        iter(documents),
        folder,
        shard_tokens=200,
        block_documents=2,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        config={},
        lineage="",
    )
    return str(folder / "manifest.json")


def nats(model: Gemma, ids: np.ndarray) -> float:
    """-log p of all ids but the first, in float64, from one row of its own."""
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
    with torch.no_grad():
        inputs = tokens[:, :-1]
        logits = model(inputs, torch.ones_like(inputs), torch.arange(inputs.shape[1])[None])[0].double()
    return -logits.log_softmax(dim=-1).gather(1, tokens[0, 1:, None]).sum().item()


def test_two_documents_equal_the_sum_by_hand(model: Gemma, tokenizer: Tokenizer, tmp_path: Path) -> None:
    result = bits_per_byte(model, tokenizer, write(tmp_path, TEXTS[:2], tokenizer), 256, 4096)
    rows = [np.array([tokenizer.bos, *tokenizer.encode(text), tokenizer.eos]) for text in TEXTS[:2]]
    total = sum(nats(model, row) for row in rows)
    size = sum(len(text.encode("utf-8")) for text in TEXTS[:2])
    assert result["nats"] == pytest.approx(total, rel=1e-6)
    assert result["value"] == pytest.approx(total / math.log(2) / size, rel=1e-6)
    assert (result["documents"], result["bytes"]) == (2, size)
    assert result["tokens"] == sum(len(row) - 1 for row in rows)


def test_a_document_longer_than_a_row_is_scored_in_the_pieces_of_training(
    model: Gemma, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ids = tokenizer.encode_document(TEXTS[3])
    assert len(ids) > 3 * 16
    result = bits_per_byte(model, tokenizer, write(tmp_path, [TEXTS[3]], tokenizer), 16, 64)
    pieces = [ids[start : start + 17] for start in range(0, len(ids) - 1, 16)]
    assert result["nats"] == pytest.approx(sum(nats(model, piece) for piece in pieces), rel=1e-6)
    assert result["tokens"] == len(ids) - 1


def test_batches_change_nothing_and_the_limit_takes_the_first(
    model: Gemma, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = write(tmp_path, TEXTS, tokenizer)
    reference = bits_per_byte(model, tokenizer, manifest, 32, 1)
    assert bits_per_byte(model, tokenizer, manifest, 32, 1) == reference
    for batch_tokens in (33, 64, 100_000):
        result = bits_per_byte(model, tokenizer, manifest, 32, batch_tokens)
        assert result == reference | {
            "value": pytest.approx(reference["value"], rel=1e-6),
            "nats": pytest.approx(reference["nats"], rel=1e-6),
        }
    first = bits_per_byte(model, tokenizer, manifest, 32, 64, limit=3)
    assert (first["documents"], first["bytes"]) == (3, sum(len(text.encode()) for text in TEXTS[:3]))


def test_a_model_that_knows_nothing_spends_the_logarithm_of_its_vocabulary(
    model: Gemma, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    blank = Gemma(model.config)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    result = score(blank, tokenizer, Evaluate(tasks=[]), write(tmp_path, TEXTS, tokenizer), 64)["bits_per_byte"]
    assert result["value"] == pytest.approx(
        result["tokens"] * math.log2(model.config.vocab_size) / result["bytes"], rel=1e-6
    )


def test_wrong_or_empty_shards_are_refused(model: Gemma, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "other.model").write_bytes(train(TEXTS * 10, 400))
    manifest = write(tmp_path / "tokens", TEXTS, tokenizer)
    with pytest.raises(ConfigError, match="were made with"):
        bits_per_byte(model, Tokenizer.load(tmp_path / "other.model"), manifest, 32, 64)
    with pytest.raises(DataError, match=r"hold no text .*tokenize\.held_out"):
        bits_per_byte(model, tokenizer, write(tmp_path / "empty", [""], tokenizer), 32, 64)
    with pytest.raises(DataError, match="no token shards"):
        bits_per_byte(model, tokenizer, str(tmp_path / "absent/manifest.json"), 32, 64)
