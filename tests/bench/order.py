"""What the order promises, in figures: how full rows are, how soon a run goes on, and that nothing changes a batch.

Packing: the lengths of a real corpus, whose logarithms are about normal, packed by `best_fit` at the sequence lengths
models are trained with. Resume: a manifest that says of a million shards of ten million tokens each what a real one
says, with a plan of its windows; only the shards that the first batch reads exist. A process of its own opens it in
the middle of the third epoch; counted is from opening the manifest to holding the first batch, and the most memory
the process ever held, torch included. Worlds: `readers.py` in real processes, killed by SIGKILL; asked for by
`--worlds`, as its two hundred processes take ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.mixture import Mixture, Stage
from data_pipeline.order import Order
from data_pipeline.pack import pack
from data_pipeline.plan import Packing, Plan, Tally, dump_plan, plan_name
from data_pipeline.reader import Shards
from data_pipeline.shards import Document, write_shards
from tests.bench import corpus, readers
from tests.bench.report import Report, Row

ROOT = Path(__file__).parents[2]

WINDOW_BLOCKS, BLOCK_DOCUMENTS = 32, 256  # defaults of data.window_blocks and tokenize.block_documents

SHARDS, BLOCKS_PER_SHARD, TOKENS_PER_BLOCK = 1_000_000, 40, 256_000  # 10.24 T tokens in documents of 1,000
SEQUENCE_LENGTH = 2048
RESUMED_AFTER = 2.4  # epochs


def bench(runs: Path, options: Sequence[str]) -> Report:
    """All figures of the order."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench order", description=__doc__)
    parser.add_argument("--worlds", action="store_true", help="kill jobs of real processes, too")
    chosen = parser.parse_args(options)
    documents = corpus.documents(runs)
    report = Report("order", corpus.about(documents))
    report.rows += packing(documents, report)
    report.rows += resume(runs, report)
    if chosen.worlds:
        report.rows += worlds(runs, report)
    return report


def packing(documents: Path, report: Report) -> list[Row]:
    """Fill and needless splits of best_fit on real lengths, in windows of the default size."""
    lengths = np.load(documents / "lengths.npy").astype(np.int64)
    logs = np.log(lengths)
    report.details["lengths"] = {"documents": len(lengths), "mean_log": logs.mean(), "deviation_log": logs.std()}
    rows = []
    for S in (1024, 2048, 4096, 8192):
        figures = {name: _packed(lengths, S, name) for name in ("best_fit", "concat", "pad")}
        report.details[f"packing {S}"] = figures
        own = figures["best_fit"]
        peers = {name: figures[name]["fill"] for name in ("concat", "pad")}
        rows.append(_bar(f"fill of best_fit, S={S}", own["fill"], 0.998, at_least=True, peers=peers))
        cut = {"concat": float(figures["concat"]["needless_splits"])}
        rows.append(_bar(f"documents cut that would fit, S={S}", own["needless_splits"], 0, peers=cut))
    return rows


def _packed(lengths: np.ndarray, S: int, packing: str) -> dict[str, Any]:
    tally, size = Tally(), WINDOW_BLOCKS * BLOCK_DOCUMENTS
    for first in range(0, len(lengths), size):
        window = lengths[first : first + size]
        tally.add(pack(window, S, packing), window, S)
    return Plan(np.array([tally.rows]), [tally], S).figures()


def resume(runs: Path, report: Report, repeats: int = 5) -> list[Row]:
    """Seconds to the first batch, and memory, of a run of 10 T tokens that resumes."""
    folder = runs / "resume"
    start = _simulate(folder)
    done = [_in_a_process(folder, start) for _ in range(repeats)]
    seconds = statistics.median(each["seconds"] for each in done)
    memory = max(each["peak_bytes"] for each in done) / 1e6
    report.details["resume"] = {
        "runs": done,
        "samples_done": start,
        "tokens": SHARDS * BLOCKS_PER_SHARD * TOKENS_PER_BLOCK,
    }
    shutil.rmtree(folder)
    return [
        _bar("seconds from opening 10 T tokens in 1 M shards to the first batch", seconds, 2),
        _bar("MB of memory at the most by then, torch included", memory, 500),
    ]


def _simulate(folder: Path) -> int:
    """Write the manifest, table and plan of 10 T tokens and those shards that the first batch needs; returns where the
    run resumes."""
    shutil.rmtree(folder, ignore_errors=True)
    lengths = np.full(BLOCK_DOCUMENTS, TOKENS_PER_BLOCK // BLOCK_DOCUMENTS)
    draw = np.random.default_rng(0)

    def documents() -> Any:
        for number in range(BLOCKS_PER_SHARD * BLOCK_DOCUMENTS):
            yield Document(f"d{number}", "all", draw.integers(4, 60_000, int(lengths[0])), 4000)

    # One real shard, which stands for every one that is read: the blocks of all are alike.
    write_shards(
        documents(), folder / "one", shard_tokens=2**40, block_documents=BLOCK_DOCUMENTS, tokenizer_sha256="",
        vocab_size=2**16, config={}, lineage="",
    )  # fmt: skip
    (row,) = pq.read_table(folder / "one" / "shards.parquet").to_pylist()
    per_window = pack(np.tile(lengths, WINDOW_BLOCKS), SEQUENCE_LENGTH, "best_fit")
    blocks = SHARDS * BLOCKS_PER_SHARD
    windows = math.ceil(blocks / WINDOW_BLOCKS)
    rows = np.full(windows, len(per_window), dtype=np.int64)
    start = int(RESUMED_AFTER * rows.sum())
    order = Order(["all"], [rows], Mixture([Stage(0, (1,))]), seed=0)
    read = {
        window * WINDOW_BLOCKS // BLOCKS_PER_SHARD + more
        for window in {order.place(sample).window for sample in range(start - 2048, start + 4096)}
        for more in (0, 1)
    } & set(range(SHARDS))

    names = [f"shard-{number:07d}.tar" for number in range(SHARDS)]
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]  # as incompressible as real ones
    index_digests = [row["index_sha256"] if n in read else digest[::-1] for n, digest in enumerate(digests)]
    table = pa.table(
        {
            "name": names,
            "bytes": np.full(SHARDS, row["bytes"]),
            "sha256": digests,
            "index_sha256": index_digests,
            "documents": np.full(SHARDS, row["documents"]),
            "tokens": np.full(SHARDS, row["tokens"]),
            "blocks": np.full(SHARDS, row["blocks"]),
        }
    )
    pq.write_table(table, folder / "shards.parquet", compression="zstd", use_dictionary=False, row_group_size=8192)
    header = json.loads((folder / "one" / "manifest.json").read_text())
    header["totals"] = {name: value * (1 if name == "shards" else SHARDS) for name, value in header["totals"].items()}
    header["totals"]["shards"] = SHARDS
    header["sources"][0] |= {"documents": SHARDS * row["documents"], "tokens": SHARDS * row["tokens"], "blocks": blocks}
    header["shards"]["sha256"] = hashlib.sha256((folder / "shards.parquet").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(header))

    shards, how = Shards.open(str(folder / "manifest.json")), Packing(SEQUENCE_LENGTH, "best_fit", WINDOW_BLOCKS)
    targets = blocks * (TOKENS_PER_BLOCK - BLOCK_DOCUMENTS)
    tally = Tally(rows=int(rows.sum()), targets=targets, slots=targets, most_pieces=3)
    (folder / plan_name(how)).write_bytes(dump_plan(shards, how, Plan(rows, [tally], SEQUENCE_LENGTH)))

    for shard in read:
        os.link(folder / "one" / "shard-00000.idx", folder / f"shard-{shard:07d}.idx")
    # Indexes name the file their blocks lie in; the one that all share names the real shard.
    os.link(folder / "one" / "shard-00000.tar", folder / "shard-00000.tar")
    return start


_RESUME = """
import json, sys, time
from pathlib import Path
from data_pipeline.stream import TokenStream
began = time.perf_counter()
stream = TokenStream(
    sys.argv[1] + "/manifest.json", sequence_length=2048, packing="best_fit", window_blocks=32, seed=0
)
batches = stream.batches(
    rows_per_step=2048, micro_batch=8, rank=3, world=8, start=stream.cursor(int(sys.argv[2]) // 2048 * 2048), prefetch=1
)
batch = next(batches)
seconds = time.perf_counter() - began
assert batch.weights_BS.sum() > 0
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
batches.close()
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""


def _in_a_process(folder: Path, start: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _RESUME, str(folder), str(start)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


WORLDS, WORKERS = (1, 2, 3, 4, 6, 8), (0, 1, 2, 3)
_STEPS = 24


def worlds(runs: Path, report: Report) -> list[Row]:
    """Jobs of real processes with real worker processes, each killed twice by SIGKILL and resumed in another shape."""
    folder = runs / "worlds"
    shutil.rmtree(folder, ignore_errors=True)
    readers.write_tokens(folder / "tokens")
    expected = _read(folder, "expected", [(1, 0, 0, _STEPS)])
    draw, equal, count = random.Random(0), 0, 0
    for world in WORLDS:
        for workers in WORKERS:
            first = draw.randrange(1, _STEPS - 4)
            second = first + draw.randrange(1, 4)
            other = draw.choice((1, 2, 3)), draw.choice((0, 1))
            phases = [(world, workers, 0, first), (*other, first, second), (1, 0, second, second + 2)]
            got = _read(folder, f"w{world}-{workers}", phases)
            count += 1
            equal += got == expected[: second + 2]
    report.details["worlds"] = {"jobs of real processes": count, "equal": equal, "kills in each": 2}
    return [_bar("jobs of real processes, killed twice, whose global batches differ", count - equal, 0)]


def _read(folder: Path, name: str, phases: list[tuple[int, int, int, int]]) -> list[str]:
    """Digests of the global batches of a job that goes through phases of (world, workers, first step, stop)."""
    digests: list[str] = []
    for number, (world, workers, first, stop) in enumerate(phases):
        outputs = [folder / name / f"{number}-{rank}" for rank in range(world)]
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.bench.readers", str(folder / "tokens")]
        ranks = [
            subprocess.Popen(
                [*command, *map(str, (rank, world, workers, first, output))], cwd=ROOT, start_new_session=True
            )
            for rank, output in enumerate(outputs)
        ]
        try:
            steps = [_wait_for_steps(output, rank, stop - first) for output, rank in zip(outputs, ranks, strict=True)]
        finally:
            for rank in ranks:  # with its workers, at whatever they are doing
                os.killpg(rank.pid, signal.SIGKILL)
                rank.wait()
        for lines in zip(*steps, strict=True):  # of all ranks, in each step
            rows = dict(row for line in lines for row in json.loads(line))
            assert sorted(rows) == list(range(readers.ROWS))
            digests.append(hashlib.sha256("".join(rows[n] for n in range(readers.ROWS)).encode()).hexdigest())
    return digests


def _wait_for_steps(output: Path, rank: subprocess.Popen[bytes], count: int) -> list[str]:
    """The lines of so many steps of a rank, as soon as it has written them."""
    while True:
        lines = output.read_text().splitlines(keepends=True) if output.exists() else []
        if len(whole := [line.strip() for line in lines if line.endswith("\n")]) >= count:
            return whole[:count]
        if rank.poll() is not None:
            raise RuntimeError(f"a reader ended with exit code {rank.returncode}")
        time.sleep(0.05)


def _bar(figure: str, ours: float, bar: float, *, at_least: bool = False, peers: dict[str, float] | None = None) -> Row:
    """A figure with a bar of its own, not one relative to peers."""
    return Row(figure, ours, peers or {}, None, bar, ours >= bar if at_least else ours <= bar)
