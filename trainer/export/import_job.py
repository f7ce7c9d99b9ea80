"""The `import` job: weights of other software as a run with one checkpoint, to train on from, to score and to export.

The checkpoint keeps the dtype and, but for rows of the embedding that no text uses, every bit of what was read.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]  # PyYAML ships neither annotations nor stubs
from torch import Tensor

from conf import schema
from conf.exits import DONE, ConfigError, DataError
from conf.json_lines import writing
from data_pipeline.files import redacted
from data_pipeline.tokenizer import Tokenizer
from trainer import checkpoint
from trainer.backend import choose
from trainer.export.hf_read import open_hf
from trainer.export.jax import open_jax
from trainer.export.keras import open_keras
from trainer.export.portable import Portable, check_names, check_shape, digest_of, shapes
from trainer.model.config import GemmaConfig
from trainer.model.sizes import ROW_MULTIPLE, SIZES
from trainer.run_directory import FORMAT, config_sha256, locked, read_config

READERS: dict[str, Callable[[Path], Portable]] = {"hf": open_hf, "keras": open_keras}


def import_weights(job: schema.Job) -> int:
    """Make the run and say where it is. Raises ConfigError or DataError."""
    folder = Path(job.pretrained.folder)
    if not job.pretrained.folder or not folder.is_dir():
        raise ConfigError(
            f"pretrained.folder={job.pretrained.folder} is no folder: name the one that holds the weights"
        )
    portable = open_jax(folder, job.model) if job.pretrained.format == "jax" else READERS[job.pretrained.format](folder)
    model = portable.tokenizer or (Path(job.tokenizer.model) if job.tokenizer.model else None)
    if model is None:
        raise ConfigError(
            f"{folder} has no tokenizer.model: set tokenizer.model to the SentencePiece model it goes with"
        )
    tokenizer = Tokenizer.load(model)
    config = dataclasses.replace(portable.config, vocab_size=rows(portable.config, tokenizer.vocab_size, model))
    weights = whole(config, portable.weights)
    digest = digest_of(weights)
    what = {"imported_sha256": digest, "model": dataclasses.asdict(config), "tokenizer_sha256": tokenizer.sha256}
    identity = json.loads(json.dumps(what))  # as it is read back
    run_id = job.run_id or schema.named_by(job.name, identity)
    run = schema.run_directory(run_id)
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    with locked(run):
        if (run / "config.yaml").is_file() and read_config(run)["identity"] != identity:
            raise ConfigError(f"{run} holds something else than {folder}: give the import another run_id or name")
        directory = checkpoint.open_store(schema.checkpoints_of(run, run_id, job.checkpoint.directory))
        if checkpoint.find(directory) is None:
            with writing(run):
                stated = yaml.safe_dump(document(job, run_id, identity), sort_keys=False).encode()
                for name, content in (("tokenizer.model", model.read_bytes()), ("config.yaml", stated)):
                    partial = run / f"{name}.partial"  # whole or not at all: a full disk must not leave half of it
                    partial.write_bytes(content)
                    partial.replace(run / name)
            commit(
                job, directory, weights, {"model": what["model"], "identity": identity, "origin": {"run_id": run_id}}
            )
    print(f"imported {folder} as {run}; a run begins there with init_from={run_id}", file=sys.stderr)
    return DONE


def commit(job: schema.Job, directory: checkpoint.Store, weights: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Save the weights as step 0. Raises DataError where the disk does not take them."""
    # Nothing is computed: one process writes, whatever the job that will train is to run on.
    alone = dataclasses.replace(job, backend=schema.Backend("cpu"), mesh=schema.Mesh())
    backend = choose(alone)
    try:
        attempt = checkpoint.new_attempt(0, backend)
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        checkpoint.save(directory, 0, attempt, named, {"step": 0, "tokens_seen": 0, **state}, backend)
    finally:
        backend.close()


def rows(config: GemmaConfig, pieces: int, tokenizer: Path) -> int:
    """Embedding rows of the imported model: a released size's own, else what is stored, up to a multiple of 128.

    Raises ConfigError where the stored rows cannot be those of the tokenizer.
    """
    stored = config.vocab_size
    if not pieces <= stored <= pieces + ROW_MULTIPLE:
        raise ConfigError(
            f"the weights have {stored} embedding rows and the tokenizer {tokenizer} has {pieces} pieces: use the "
            f"tokenizer they were trained with (rows are as many as pieces, or up to {ROW_MULTIPLE} more)"
        )
    for size in SIZES.values():
        alike = dataclasses.replace(
            size, vocab_size=stored, max_positions=config.max_positions
        )  # which change no weight
        if alike == config and size.vocab_size >= pieces:
            return size.vocab_size
    return -(-stored // ROW_MULTIPLE) * ROW_MULTIPLE


def whole(config: GemmaConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every parameter, checked; embedding rows that are not stored are zero, and those beyond the model's are left out.

    Raises DataError where the weights are not those of the configuration.
    """
    remedy = "restore the folder from where it came from"
    check_names(config, weights, remedy)
    tensors = {}
    for name, shape in shapes(config).items():
        tensor = weights[name]
        if name == "embedding.weight":
            tensor = torch.nn.functional.pad(tensor, (0, 0, 0, max(0, shape[0] - tensor.shape[0])))[: shape[0]]
        check_shape(name, tensor, shape, remedy)
        if not tensor.is_floating_point():
            raise DataError(
                f"the weight {name} is of {tensor.dtype}, and quantized weights cannot be trained on: {remedy}"
            )
        tensors[name] = tensor
    return tensors


def document(job: schema.Job, run_id: str, identity: dict[str, Any]) -> dict[str, Any]:
    """What config.yaml says of the run."""
    return {
        "format": FORMAT,
        "run_id": run_id,
        "sha256": config_sha256(job),
        "identity": identity,
        "config": redacted(dataclasses.asdict(job)),
    }
