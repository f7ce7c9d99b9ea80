"""Our own trainer in the protocol of `peers/training.py`: its stream, backend and step as `gemcutter train` joins them.

    python -m tests.bench.ours_training prepare DOCS FOLDER

writes the documents of `tests/bench/corpus.py` as token shards with their plan, and what the peers read. Reading,
verifying and packing are inside the timing; reports and checkpoints are not.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from conf import schema
from conf.compose import compose
from data_pipeline.batch import Batch
from data_pipeline.feeder import settle
from data_pipeline.plan import Packing, dump_plan, make_plan, plan_name
from data_pipeline.reader import Shards
from tests.bench import corpus
from tests.bench.ours import shards_of
from tests.bench.peers import training
from tests.bench.peers.protocol import Documents
from tests.bench.peers.training import BETAS, Step, Variant, run
from trainer.backend import choose
from trainer.build import build
from trainer.export.hf_weights import hf_names
from trainer.optim.optimizer import lr_at, set_lr
from trainer.report import Stopwatch
from trainer.step import make_train_step
from trainer.train import micro_batches_from

MICRO_BATCHES = 64  # kept for the peers: more than a run of the benchmark takes


def job(folder: Path, *overrides: str) -> schema.Job:
    """What we train. One process takes the step in one micro-batch, several share its rows."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return compose(
        "train",
        [
            "model=gemma_2b", f"model.d_model={training.D}", f"model.num_layers={training.LAYERS}",
            f"model.num_heads={training.HEADS}", f"model.num_kv_heads={training.KV_HEADS}",
            f"model.head_dim={training.HEAD_DIM}", f"model.d_ff={training.FF}", f"model.vocab_size={training.VOCAB}",
            f"tokenizer.model={folder / 'tokenizer.model'}", f"data.manifest={folder / 'tokens' / 'manifest.json'}",
            "data.held_out=null", f"data.sequence_length={training.S}", f"tokens_per_step={training.B * training.S}",
            f"micro_batch={training.B // processes}", f"mesh.fsdp={processes}",
            f"optim.peak_lr={training.LEARNING_RATE}", "optim.schedule=constant", "optim.warmup_steps=0",
            f"optim.beta1={BETAS[0]}", f"optim.beta2={BETAS[1]}",
            f"optim.eps={training.EPS}", f"optim.weight_decay={training.WEIGHT_DECAY}",
            f"optim.clip_norm={training.CLIP_NORM}", "precision=bf16", "backend=cpu", "tracker=none", *overrides,
        ],
    )  # fmt: skip


def prepare(documents: Path, folder: Path) -> None:
    """Token shards and their plan, and for the peers the first micro-batches and the initial weights."""
    about = corpus.about(documents)
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes((documents / "tokenizer.model").read_bytes())
    made_by = {"tokenizer_sha256": about["tokenizer_sha256"], "vocab_size": about["vocab_size"]}
    shards_of(Documents.open(documents), documents, folder / "tokens", mixed=True, **made_by)
    asked = job(folder)
    shards = Shards.open(asked.data.manifest)
    how = Packing(training.S, asked.data.packing, asked.data.window_blocks)
    (folder / "tokens" / plan_name(how)).write_bytes(dump_plan(shards, how, make_plan(shards, how)))
    os.chdir(folder)  # a run directory lies under the working directory
    backend = choose(asked)
    made, parts = build(dataclasses.replace(asked, run_id="prepare"), backend, Stopwatch())
    names = hf_names(made.model.config)
    save_file(
        {names[name]: parameter.full_tensor().contiguous() for name, parameter in made.model.named_parameters()},
        folder / "weights.safetensors",
    )
    stream = micro_batches_from(asked, made, parts)
    first = [next(stream) for _ in range(MICRO_BATCHES)]
    arrays = {
        name: np.stack([getattr(batch, f"{name}_BS").numpy() for batch in first])
        for name in ("tokens", "targets", "weights", "segments")
    }
    np.savez(folder / "micro_batches.npz", **arrays)
    stream.close()
    backend.close()


def _start(name: str, overrides: tuple[str, ...], whole_rows: bool, folder: Path) -> Step:
    os.chdir(folder)
    asked = dataclasses.replace(job(folder, *overrides), run_id=f"{name}-{os.environ.get('WORLD_SIZE', '1')}")
    backend = choose(asked)
    made, parts = build(asked, backend, Stopwatch())
    settle()
    train_step = make_train_step(made.model, made.optimizer, asked.optim.clip_norm, asked.optim.z_loss, backend)
    stream: Iterable[Batch] = micro_batches_from(asked, made, parts)
    batches = backend.feed(_as_one_document(stream) if whole_rows else stream)

    def step() -> dict[str, float]:
        set_lr(made.optimizer, lr_at(asked.optim, made.step, asked.steps))
        metrics = train_step([next(batches)])
        made.step += 1
        return {"loss": metrics["loss"].item()}

    return step


def _as_one_document(batches: Iterable[Batch]) -> Iterator[Batch]:
    """What the peers see: every token sees all before it in its row."""
    for batch in batches:
        positions_BS = torch.arange(training.S, dtype=batch.positions_BS.dtype).expand_as(batch.positions_BS)
        segments_BS = torch.ones_like(batch.segments_BS)
        yield dataclasses.replace(batch, segments_BS=segments_BS, positions_BS=positions_BS)


def _variant(name: str, settings: str, *overrides: str, whole_rows: bool = False) -> tuple[str, Variant]:
    return name, Variant(partial(_start, name, overrides, whole_rows), settings)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), Path(sys.argv[3]).absolute())
    else:
        run(
            dict(
                [
                    _variant(
                        "compiled", "precision=bf16 compile=true remat=selective", "compile=true", "remat=selective"
                    ),
                    _variant("eager", "precision=bf16"),
                    _variant(
                        "one-document",
                        "precision=bf16 compile=true, each row taken for one document",
                        "compile=true",
                        whole_rows=True,
                    ),
                ]
            )
        )
