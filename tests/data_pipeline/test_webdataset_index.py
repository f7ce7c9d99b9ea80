"""Promises to people who have WebDatasets: indexed where they lie, trained on as they are, and never misread."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from conf.exits import ConfigError, DataError
from conf.schema import Job, Source
from data_pipeline.locate import locate
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, write_shards
from data_pipeline.stream import TokenStream, documents
from data_pipeline.tokenizer import Tokenizer, train
from data_pipeline.webdataset_index import index_webdataset
from tests.data_pipeline.hostile_http import HostileServer

WORDS = ["garden", "small", "words", "long", "sentences", "water", "stones", "rivers", "weather", "north", "of the"]


def text(number: int) -> str:
    draw = np.random.default_rng(number)
    return " ".join(draw.choice(WORDS, int(draw.integers(1, 60)))) + f" {number}\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train([text(n) for n in range(200)], 380))
    return path


def write_tars(folder: Path) -> dict[str, str]:
    """Two tars as WebDataset's own writer makes them: texts with labels beside them, and JSON with a text in it."""
    folder.mkdir()
    texts = {}
    with webdataset.TarWriter(str(folder / "web-000.tar")) as tar:
        for n in range(70):
            tar.write({"__key__": f"dir/{n:04d}", "txt": text(n), "cls": n % 3})
            texts[f"dir/{n:04d}"] = text(n)
    with webdataset.TarWriter(str(folder / "code-000.tar")) as tar:
        for n in range(100, 145):
            tar.write({"__key__": f"{n}", "json": {"content": text(n), "url": f"https://example.org/{n}"}})
            texts[f"{n}"] = text(n)
    return texts


def job(folder: Path, model: Path, **changes: object) -> Job:
    made = Job()
    made.tokenize.webdataset = [
        Source(name="web", paths=[str(folder / "tars" / "web-*.tar")]),
        Source(name="code", paths=[str(folder / "tars" / "code-000.tar")], text_field="content"),
    ]
    made.tokenize.output, made.tokenize.block_documents, made.tokenize.held_out = str(folder / "index"), 8, 0.2
    made.tokenizer.model = str(model)
    made.data.sequence_length, made.data.window_blocks = 64, 4
    for key, value in changes.items():
        setattr(made.tokenize, key, value)
    return made


def stream(manifest: str, tokenizer: Tokenizer | None, workers: int = 0) -> TokenStream:
    return TokenStream(
        manifest, sequence_length=64, packing="best_fit", window_blocks=4, seed=0, tokenizer=tokenizer, workers=workers
    )


@pytest.fixture
def indexed(tmp_path: Path, model: Path) -> tuple[dict[str, str], str]:
    texts = write_tars(tmp_path / "tars")
    before = {path.name: path.read_bytes() for path in (tmp_path / "tars").iterdir()}
    summary = index_webdataset(job(tmp_path, model))
    assert {path.name: path.read_bytes() for path in (tmp_path / "tars").iterdir()} == before  # nothing is rewritten
    assert not list((tmp_path / "index").rglob("*.tar"))
    return texts, summary["manifest"]


def test_every_text_is_trained_on_or_held_out_as_it_is(indexed: tuple[dict[str, str], str], model: Path) -> None:
    texts, manifest = indexed
    tokenizer = Tokenizer.load(model)
    held_out = str(Path(manifest).parent / "held_out" / "manifest.json")
    read = dict(itertools.chain(documents(manifest, tokenizer), documents(held_out, tokenizer)))
    assert read.keys() == texts.keys()
    for name, tokens in read.items():
        assert tokens.tolist() == tokenizer.encode_documents([texts[name]])[0].tolist()
    assert 0 < Shards.open(held_out).documents < 60


def test_batches_are_those_of_token_shards_with_the_same_blocks(
    indexed: tuple[dict[str, str], str], model: Path, tmp_path: Path
) -> None:
    """Text that becomes tokens when it is read, by one process or two, gives what tokens on disk give, bit for bit."""
    _, manifest = indexed
    tokenizer = Tokenizer.load(model)
    index = Shards.open(manifest, tokenizer=tokenizer)

    def written() -> Iterator[Document]:
        for block in index.blocks():
            for name, tokens in block.documents():
                yield Document(name, block.source, tokens, 1)

    write_shards(
        written(), tmp_path / "tokens", shard_tokens=2000, block_documents=8, tokenizer_sha256=index.tokenizer_sha256,
        vocab_size=index.vocab_size, config={}, lineage="",
    )  # fmt: skip
    tokens_manifest = str(tmp_path / "tokens" / "manifest.json")
    # A tar ends where it ends, so the last block of one is short, in the middle of the hashed order; compare documents.
    own = {tuple(t.tolist()) for _, t in documents(manifest, tokenizer)}
    assert own == {tuple(t.tolist()) for _, t in documents(tokens_manifest)}

    def taken(workers: int) -> list[np.ndarray]:
        made = stream(manifest, tokenizer, workers)
        batches = made.batches(rows_per_step=4, micro_batch=2, rank=0, world=1)
        got = [batch.tokens_BS.numpy().copy() for batch in itertools.islice(batches, 12)]
        batches.close()
        return got

    np.testing.assert_array_equal(taken(0), taken(2))


def test_an_epoch_holds_every_token(indexed: tuple[dict[str, str], str], model: Path) -> None:
    made = stream(indexed[1], Tokenizer.load(model))
    predicted = sum(int(batch.weights_BS.sum()) for batch in made.epoch(micro_batch=4))
    assert predicted == made.shards.tokens - made.shards.documents
    assert [source.name for source in made.shards.sources] == ["web", "code"]


def test_documents_are_found_by_id_without_reading_text(indexed: tuple[dict[str, str], str]) -> None:
    texts, manifest = indexed
    shards = Shards.open(manifest)
    for block in range(shards.num_blocks):
        for number, name in enumerate(shards.ids(block)):
            assert locate(shards, name) == [(block, number)]
    assert locate(shards, "nowhere") == []
    code = next(source for source in shards.sources if source.name == "code")
    ids, urls = shards.meta(code.first_block)
    assert urls == [f"https://example.org/{name}" for name in ids]
    assert set(ids) <= set(texts)


def test_a_second_run_does_nothing_and_other_tars_are_refused(
    indexed: tuple[dict[str, str], str], tmp_path: Path, model: Path
) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()}
    index_webdataset(job(tmp_path, model))
    assert {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()} == before
    with (tmp_path / "tars" / "web-000.tar").open("ab") as file:
        file.write(bytes(10_240))
    with pytest.raises(ConfigError, match=r"holds shards of another configuration: the tars' names and sizes"):
        index_webdataset(job(tmp_path, model))


def test_a_tar_that_changes_afterwards_is_noticed(
    indexed: tuple[dict[str, str], str], tmp_path: Path, model: Path
) -> None:
    path = tmp_path / "tars" / "web-000.tar"
    data = bytearray(path.read_bytes())
    at = data.index(text(3).encode()[:12])
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"web-000\.tar, bytes .* cannot be read \(the bytes are not those of the manif"
    ):
        list(documents(indexed[1], Tokenizer.load(model)))


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def index_of(tmp_path: Path, model: Path, **changes: object) -> Shards:
    made = job(tmp_path, model, held_out=0.0, **changes)
    made.tokenize.webdataset = [Source(name="web", paths=[str(tmp_path / "tars" / "*.tar")])]
    return Shards.open(index_webdataset(made)["manifest"], tokenizer=Tokenizer.load(model))


def test_webdataset_keys_with_dots_stay_apart(tmp_path: Path, model: Path) -> None:
    """`v1.0`, `v1.1` and `v1.2` became one sample `v1` with three fields, and two texts were lost."""
    members = {f"v1.{n}.txt": f"version {n}".encode() for n in range(3)}
    tar_of(tmp_path / "tars" / "a.tar", members)
    shards = index_of(tmp_path, model)
    assert [name for name, _ in documents(shards.manifest, shards.tokenizer)] == ["v1.0", "v1.1", "v1.2"]


@pytest.mark.parametrize("part", ["between members", "in a member", "in a header"])
def test_webdataset_a_truncated_tar_is_an_error(tmp_path: Path, model: Path, part: str) -> None:
    """Cut between two members, a tar gave 10 of 20 samples and no error."""
    path = tmp_path / "tars" / "a.tar"
    tar_of(path, {f"{n}.txt": b"x" * 300 for n in range(20)})
    cut = {"between members": 10 * 1024, "in a member": 10 * 1024 + 700, "in a header": 10 * 1024 + 100}[part]
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.tar is (no tar, or is )?cut short"):
        index_of(tmp_path, model)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.json": b"{"}, r"member a\.json is not JSON"),
        ({"a.json": b'{"content": "x"}'}, r"member a\.json has no text in the field 'text': set text_field"),
        ({"a.json": b"[]"}, r"member a\.json has no text"),
        ({"a.txt": b"\xff\xfe"}, r"member a\.txt is not UTF-8"),
    ],
)
def test_samples_without_a_text_are_named(tmp_path: Path, model: Path, members: dict[str, bytes], said: str) -> None:
    tar_of(tmp_path / "tars" / "a.tar", members)
    with pytest.raises(DataError, match=said):
        index_of(tmp_path, model)


def test_compressed_tars_and_missing_ones_are_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"a\.tar is no tar, .*decompress them"):
        index_of(tmp_path, model)
    (tmp_path / "tars" / "a.tar").unlink()
    with pytest.raises(ConfigError, match=r"tars/\*\.tar of source 'web' matches no file"):
        index_of(tmp_path, model)


def test_a_text_beside_json_and_other_members_is_the_text(tmp_path: Path, model: Path) -> None:
    meta = json.dumps({"url": "https://example.org/a"}).encode()
    tar_of(tmp_path / "tars" / "a.tar", {"a.jpg": b"\xff", "a.json": meta, "a.txt": b"water", "b.jpg": b"\xff"})
    shards = index_of(tmp_path, model)
    assert shards.documents == 1
    assert shards.meta(0) == (["a"], ["https://example.org/a"])


def test_tars_behind_http_are_indexed_and_read(tmp_path: Path, model: Path) -> None:
    texts = write_tars(tmp_path / "tars")
    with HostileServer(tmp_path / "tars").running() as server:
        made = job(tmp_path, model, held_out=0.0)
        made.tokenize.webdataset = [Source(name="web", paths=[f"{server.url}/web-000.tar"])]
        manifest = index_webdataset(made)["manifest"]
        read = dict(documents(manifest, Tokenizer.load(model)))
    assert read.keys() == {name for name in texts if name.startswith("dir/")}


def test_a_tokenizer_is_trained_where_none_is_named(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    made = job(tmp_path, Path("unused"))
    made.tokenizer.model, made.tokenizer.output, made.tokenizer.vocab_size = None, str(tmp_path / "t.model"), 370
    summary = index_webdataset(made)
    tokenizer = Tokenizer.load(tmp_path / "t.model")
    assert summary["vocab_size"] == tokenizer.vocab_size == 370
    Shards.open(summary["manifest"]).check_tokenizer(tokenizer)
    assert pickle.loads(pickle.dumps(tokenizer)).sha256 == tokenizer.sha256  # noqa: S301  # our own, to a worker
    assert hashlib.sha256((tmp_path / "t.model").read_bytes()).hexdigest() == tokenizer.sha256
