"""Our own loader in the protocol of `peers/protocol.py`: verified, packed by best fit, shuffled, with all five arrays.

The plan is made while preparing, as `gemcutter tokenize` makes it, so planning is not inside the timing: what is, is
packing each window again from its lengths when it is opened, checking the sha256 of every block that is read, and
filling inputs, targets, segments, positions and weights. Documents go into their sources (the packages of the corpus),
which the order mixes by their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

from data_pipeline.feeder import Share
from data_pipeline.plan import Packing, dump_plan, make_plan, plan_name
from data_pipeline.ramp import Ramp
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, write_shards
from data_pipeline.stream import TokenStream
from tests.bench.peers.protocol import Batches, Documents, Variant, run

WINDOW_BLOCKS = 32  # the default of data.window_blocks


def shards_of(
    documents: Documents,
    folder: Path,
    out: Path,
    mixed: bool,
    *,
    tokenizer_sha256: str = "",
    vocab_size: int = 2**16,
) -> Shards:
    """The documents as token shards: each package a source, or all of them one."""
    ids = (folder / "ids.txt").read_text().split("\n")
    sources = (folder / "sources.txt").read_text().split("\n")

    def written() -> Iterator[Document]:
        numbered = sorted(
            zip(sources if mixed else ["all"] * len(ids), range(len(documents.lengths)), strict=False),
        )
        ends = documents.lengths.cumsum(dtype="int64")
        for source, group in groupby(numbered, key=lambda pair: pair[0]):
            for _, number in group:
                end = int(ends[number])
                tokens = documents.tokens[end - int(documents.lengths[number]) : end]
                yield Document(ids[number], source, tokens, 0)

    write_shards(
        written(), out, shard_tokens=2**24, block_documents=256, tokenizer_sha256=tokenizer_sha256,
        vocab_size=vocab_size, config={}, lineage="",
    )  # fmt: skip
    return Shards.open(str(out / "manifest.json"))


def prepare(documents: Documents, out: Path, S: int) -> None:
    folder = Path(documents.tokens.filename).parent
    for name, mixed in (("mixed", True), ("one", False)):
        shards = shards_of(documents, folder, out / name, mixed)
        how = Packing(S, "best_fit", WINDOW_BLOCKS)
        (out / name / plan_name(how)).write_bytes(dump_plan(shards, how, make_plan(shards, how)))


def _read(name: str, threaded: bool, out: Path, S: int, B: int) -> Batches:
    stream = TokenStream(
        str(out / name / "manifest.json"), sequence_length=S, packing="best_fit", window_blocks=WINDOW_BLOCKS, seed=0
    )
    share = Share(stream, 0, 0, Ramp.constant(64 * B), B, 0, 1)
    batches = stream.batches(rows_per_step=64 * B, micro_batch=B, rank=0, world=1) if threaded else share.every(1, 0)
    for batch in batches:
        yield batch.tokens_BS, batch.targets_BS, batch.segments_BS, batch.positions_BS, batch.weights_BS


if __name__ == "__main__":
    what = "best_fit, 5 arrays, sha256 of each block checked, windows packed from lengths inside the timing"
    run(
        prepare,
        {
            "one": Variant(partial(_read, "one", False), f"{what}; one source"),
            "mixed": Variant(partial(_read, "mixed", False), f"{what}; 85 sources mixed"),
            "thread": Variant(partial(_read, "one", True), f"{what}; one source, through the prefetching thread"),
        },
    )
