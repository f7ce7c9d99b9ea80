"""Promises of token shards: equal bytes, readable by stock WebDataset, and nothing broken is ever read."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from conf.exits import ConfigError, DataError
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, write_shards
from data_pipeline.tokenizer import Tokenizer, train

LENGTHS = np.random.default_rng(0).integers(2, 90, 50).tolist()


def documents(vocab_size: int = 300) -> list[Document]:
    random = np.random.default_rng(1)
    return [
        Document(f"doc/{i}.txt", "garden", random.integers(4, vocab_size, length), 3 * length)
        for i, length in enumerate(LENGTHS)
    ]


def write(folder: Path, vocab_size: int = 300, tokenizer_sha256: str = "ab" * 32) -> dict[str, Any]:
    return write_shards(
        documents(vocab_size),
        folder,
        shard_tokens=700,
        block_documents=4,
        tokenizer_sha256=tokenizer_sha256,
        vocab_size=vocab_size,
        config={"a": 1},
        lineage="cd" * 32,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def opened(folder: Path) -> Shards:
    return Shards.open(str(folder / "manifest.json"))


def test_what_is_written_is_read(folder: Path) -> None:
    shards = opened(folder)
    read = [pair for block in shards.blocks() for pair in block.documents()]
    assert [name for name, _ in read] == [document.id for document in documents()]
    for (_, tokens), document in zip(read, documents(), strict=True):
        np.testing.assert_array_equal(tokens, document.tokens)
    assert (shards.documents, shards.tokens, shards.text_bytes) == (50, sum(LENGTHS), 3 * sum(LENGTHS))
    assert shards.num_blocks == 13
    assert shards.lengths(0, 13).tolist() == LENGTHS
    assert shards.lengths(5, 9).tolist() == LENGTHS[20:36]
    assert [len(block.lengths) for block in shards.blocks(11, 13)] == [4, 2]


def test_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert len([name for name in files if name.endswith(".tar")]) > 2


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (65_536, np.uint16), (256_000, np.uint32)])
def test_stock_webdataset_reads_them(tmp_path: Path, vocab_size: int, dtype: type) -> None:
    write(tmp_path, vocab_size)
    urls = sorted(str(path) for path in tmp_path.glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{number:06d}" for number in range(13)]
    tokens = np.concatenate([sample["tokens.npy"] for sample in samples])
    assert tokens.dtype == dtype
    np.testing.assert_array_equal(tokens, np.concatenate([d.tokens for d in documents(vocab_size)]))
    assert np.concatenate([sample["lengths.npy"] for sample in samples]).tolist() == LENGTHS
    assert [name for sample in samples for name in sample["meta.json"]["ids"]] == [d.id for d in documents()]


def test_the_table_holds_what_the_files_are(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert hashlib.sha256((folder / "shards.parquet").read_bytes()).hexdigest() == manifest["shards"]["sha256"]
    table = pq.read_table(folder / "shards.parquet").to_pylist()
    for row in table:
        data = (folder / row["name"]).read_bytes()
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        with pa.ipc.open_file((folder / row["name"]).with_suffix(".idx")) as file:
            index = file.read_all().to_pydict()
        lengths = index["lengths"]
        assert (row["blocks"], row["documents"]) == (len(lengths), sum(map(len, lengths)))
        assert row["tokens"] == sum(map(sum, lengths))
        for offset, size, digest, at, own in zip(
            *(index[name] for name in ("offset", "size", "sha256", "tokens_at", "lengths")), strict=True
        ):
            block = data[offset : offset + size]
            assert hashlib.sha256(block).digest() == digest
            assert at + 2 * sum(own) <= size  # uint16
    assert sum(row["tokens"] for row in table) == manifest["totals"]["tokens"]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = folder / "shard-00001.tar"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[: size // 2])
    with pytest.raises(
        DataError, match=rf"shard-00001\.tar .* has {size // 2:,} bytes.* says {size:,} \(truncated.*gemcutter tokenize"
    ):
        opened(folder)


def test_a_shard_truncated_while_it_is_read_is_named(folder: Path) -> None:
    shards = opened(folder)
    shard = folder / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(
        DataError,
        match=r"shard-00001\.tar, bytes [\d,]+ to [\d,]+ \(block \d+\) cannot be read \([\d,]+ bytes came where "
        r"[\d,]+ were asked for: the file is truncated; 2 tries\): copy the shards again",
    ):
        list(shards.blocks())


def test_bytes_that_differ_name_shard_and_block(folder: Path) -> None:
    shards = opened(folder)
    flip(folder / "shard-00000.tar", 5000)
    with pytest.raises(
        DataError,
        match=r"shard-00000\.tar, bytes .*\(block 1\) cannot be read \(the bytes are not those of the manifest: sha256 "
        r"[0-9a-f]{64}, expected [0-9a-f]{64}; 2 tries\): copy the shards again",
    ):
        list(shards.blocks())
    assert list(shards.blocks(12, 13))  # the others stay readable


@pytest.mark.parametrize("name", ["shard-00001.tar", "shard-00001.idx", "shards.parquet"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing .*gemcutter tokenize"):
        opened(folder)


@pytest.mark.parametrize("name", ["shard-00000.idx", "shards.parquet"])
def test_a_damaged_index_or_table_is_named(folder: Path, name: str) -> None:
    flip(folder / name, 40)
    with pytest.raises(DataError, match=rf"{name} cannot be read \(the bytes are not those of the manifest"):
        list(opened(folder).blocks())


def test_a_missing_broken_or_newer_manifest_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no token shards at .*nowhere.*run `gemcutter tokenize` first"):
        Shards.open(str(folder / "nowhere" / "manifest.json"))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match=r"has format 2, this version reads up to 1"):
        opened(folder)
    manifest.write_text("{")
    with pytest.raises(DataError, match=r"is not a manifest of token shards"):
        opened(folder)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    texts = ["a garden of small words and long sentences about water"] * 3
    for size in (350, 360):
        (tmp_path / f"{size}.model").write_bytes(train(texts, size))
    mine, other = Tokenizer.load(tmp_path / "350.model"), Tokenizer.load(tmp_path / "360.model")
    write(tmp_path / "tokens", mine.vocab_size, mine.sha256)
    shards = opened(tmp_path / "tokens")
    shards.check_tokenizer(mine)
    with pytest.raises(
        ConfigError, match=rf"{other.sha256} \(360 pieces\).*{mine.sha256} \(350 pieces\).*tokenizer\.model"
    ):
        shards.check_tokenizer(other)


def test_left_overs_of_an_interrupted_run_are_removed(tmp_path: Path) -> None:
    for name in ("shard-00077.tar", "shard-00077.idx", "shard-00000.tar.partial"):
        (tmp_path / name).write_bytes(b"x")
    write(tmp_path)
    assert not list(tmp_path.glob("*77*")) + list(tmp_path.glob("*.partial"))


def test_a_block_is_a_tar_of_its_own(folder: Path) -> None:
    """The range that the index names holds whole members, so a block can be read alone from an object store."""
    import tarfile

    entry = opened(folder).entry(1)
    data = (folder / "shard-00000.tar").read_bytes()[entry.offset :][: entry.size]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["000001.lengths.npy", "000001.meta.json", "000001.tokens.npy"]
        assert all(member.mtime == 0 for member in tar.getmembers())
