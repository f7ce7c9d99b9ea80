"""The `export` job: a checkpoint of a run as a portable folder."""

from __future__ import annotations

import sys
from pathlib import Path

from conf import schema
from conf.exits import DONE
from conf.json_lines import writing
from trainer.export.hf import export_hf
from trainer.export.jax import export_jax
from trainer.export.keras import export_keras
from trainer.lineage import learnt_from
from trainer.trained import Trained

WRITERS = {"hf": export_hf, "jax": export_jax, "keras": export_keras}


def export(job: schema.Job) -> int:
    """Write the folder and say where it is. Raises ConfigError or DataError."""
    trained = Trained.open(job)
    default = trained.run / "exports" / f"{job.export.format}-{trained.label}"
    folder = Path(job.export.output or default)
    with writing(folder):
        WRITERS[job.export.format](
            config=trained.config,
            weights=trained.weights(),
            tokenizer_model=trained.tokenizer_path,
            vocab_size=trained.tokenizer().vocab_size,
            folder=folder,
            dtype=job.export.dtype,
            provenance=trained.provenance() | {"learnt_from": learnt_from(trained.checkpoint)},
        )
    print(f"exported step {trained.checkpoint.step} to {folder}", file=sys.stderr)
    return DONE
