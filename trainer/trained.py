"""A checkpoint of a run, opened to be used: scored or exported. Never written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf import schema
from conf.exits import ConfigError, DataError
from data_pipeline.tokenizer import Tokenizer
from trainer import checkpoint
from trainer.model import Gemma, GemmaConfig
from trainer.run_directory import checkpoint_places, read_config
from trainer.sharded import Parted


@dataclass(frozen=True)
class Trained:
    """One committed step of a run and what belongs to it.

    keys         the configuration the run was last started with
    weights_are  model, or ema: their average
    """

    run: Path
    checkpoint: checkpoint.Committed
    config: GemmaConfig
    keys: dict[str, Any]
    config_sha256: str
    weights_are: str

    @classmethod
    def open(cls, job: schema.Job) -> Trained:
        """The checkpoint that `run` and `step` name: by default the latest of the run that this configuration is of.

        Raises DataError where there is none, or it is broken; ConfigError where it has not the weights asked for.
        """
        run = schema.named_run(job.run) if job.run else schema.run_directory(schema.run_id(job))
        return cls.at(run, "run", job.step, job.weights, every_byte=True)

    @classmethod
    def at(
        cls, run: Path, key: str, step: int | None = None, weights: str = "model", *, every_byte: bool = False
    ) -> Trained:
        """A step of the run in a directory (default: the latest); `key` is the key of the configuration that names it.

        One whose manifest is broken is passed over, or whose files are, where `every_byte` is looked at here. Raises as
        `open` does.
        """
        if not run.is_dir():
            known = sorted(path.parent.name for path in Path("runs").glob("*/config.yaml"))
            raise DataError(
                f"there is no run at {run}: set {key}=<run id or run directory>"
                + (f"; runs here: {', '.join(known)}" if known else "")
            )
        document = read_config(run)
        keys = document["config"]
        places = checkpoint_places(run, document)
        found = checkpoint.newest(places, step, every_byte=every_byte)
        if found is None:
            where = " or ".join(map(str, places))
            raise DataError(f"{where} holds no committed checkpoint yet: train on, or set {key} to another run")
        shape = found.state["model"]
        config = GemmaConfig(**{**shape, "pattern": tuple(shape["pattern"])})
        if not any(name.startswith(f"{weights}.") for name in found.tensors):
            raise ConfigError(
                f"weights={weights}, but step {found.step} of {run} has no average of the weights: use "
                "weights=model, or train on with optim.ema"
            )
        return cls(run, found, config, keys, document["sha256"], weights)

    @property
    def label(self) -> str:
        """The step, and which weights of it where they are not the model's own, as a part of file names."""
        return f"step-{self.checkpoint.step:08d}" + ("" if self.weights_are == "model" else f"-{self.weights_are}")

    @property
    def tokenizer_path(self) -> Path:
        """The SentencePiece model the run was trained with, kept in its directory."""
        return self.run / "tokenizer.model"

    def tokenizer(self) -> Tokenizer:
        """That model, loaded."""
        return Tokenizer.load(self.tokenizer_path)

    def weights(self) -> Mapping[str, Tensor]:
        """Every parameter under the model's own name, read and verified when it is asked for."""
        return _Weights(self.checkpoint, self.weights_are)

    def model(self) -> Gemma:
        """The model on the host, in float32."""
        with torch.device("meta"):
            model = Gemma(self.config)
        model.to_empty(device="cpu")
        self.load(dict(model.named_parameters()))
        return model.eval()

    def load(self, weights: Mapping[str, Tensor | Parted]) -> None:
        """Fill these, by their own names and however they are sharded."""
        checkpoint.load_tensors(
            self.checkpoint,
            {f"{self.weights_are}.{name}": each for name, each in weights.items()},
            left=lambda name: not name.startswith(f"{self.weights_are}."),
        )

    def provenance(self) -> dict[str, Any]:
        """What says where scores and exports come from."""
        return {
            "run_id": self.run.name,
            "step": self.checkpoint.step,
            "tokens_seen": self.checkpoint.state["tokens_seen"],
            "checkpoint_sha256": self.checkpoint.sha256,
            "config_sha256": self.config_sha256,
            **({} if self.weights_are == "model" else {"weights": self.weights_are}),
        }


class _Weights(Mapping[str, Tensor]):
    def __init__(self, committed: checkpoint.Committed, which: str) -> None:
        self._committed, self._prefix = committed, f"{which}."

    def __getitem__(self, name: str) -> Tensor:
        if self._prefix + name not in self._committed.tensors:
            raise KeyError(name)
        return checkpoint.read_tensor(self._committed, self._prefix + name)

    def __iter__(self) -> Iterator[str]:
        names = (name for name in self._committed.tensors if name.startswith(self._prefix))
        return (name.removeprefix(self._prefix) for name in names)

    def __len__(self) -> int:
        return sum(1 for _ in self)
