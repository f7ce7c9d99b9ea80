"""What a restart needs, all of it: if it is not in `Run`, it is not saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from conf import schema
from data_pipeline.batch import Cursor
from data_pipeline.ramp import Ramp
from trainer.anomaly.spikes import Taken
from trainer.backend import Backend
from trainer.checkpoint import Committed, load_tensors
from trainer.lineage import Lineage
from trainer.model import Gemma
from trainer.optim.average import Average
from trainer.optim.optimizer import moments_of, set_updates
from trainer.sharded import Parted


@dataclass
class Run:
    """A run in progress.

    identity   the identity keys and their values
    origin     run id and digests of configuration, shards and tokenizer
    lineage    what the weights learn from
    order      what the order of samples depends on, in words, to show what differs where it is another one
    ramp       samples of each step
    attempt    counts the starts of the run and its returns to a checkpoint, 1 for the first
    tokens_of  targets seen so far, of each source
    skipped    steps so far whose update was left out, since loss or gradient were not finite or too high
    in_a_row   how many of these are the last ones
    recent     the last steps, which the limits of those to come follow from
    digested   the last step whose bits were compared and found equal; 0: none
    average    of the weights, if one is kept
    """

    model: Gemma
    optimizer: torch.optim.Optimizer
    backend: Backend
    cursor: Cursor
    identity: dict[str, Any]
    origin: dict[str, str]
    lineage: Lineage
    order: dict[str, Any]
    ramp: Ramp
    attempt: int
    step: int = 0
    tokens_seen: int = 0
    tokens_of: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    in_a_row: int = 0
    recent: list[Taken] = field(default_factory=list)
    digested: int = 0
    average: Average | None = None

    def tensors(self) -> dict[str, Tensor | Parted]:
        """Parameters, the optimizer's moments and averages, under names that no wrapper changes."""
        kept: list[tuple[str, str, Tensor]] = []
        for name, parameter in self.model.named_parameters():
            kept.append(("model", name, parameter))
            moments = moments_of(self.optimizer, parameter)
            kept += [(f"optimizer.{moment}", name, tensor) for moment, tensor in moments.items()]
        if self.average is not None:
            kept += [("ema", name, average) for name, average in self.average.tensors.items()]
        return {
            f"{what}.{each}": part
            for what, name, tensor in kept
            for each, part in self.backend.named(name, tensor).items()
        }

    def state(self) -> dict[str, Any]:
        """Everything that is not a tensor, as JSON."""
        return {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "tokens_of": dict(self.tokens_of),  # a save writes it while steps go on to count
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "recent": [taken.to_json() for taken in self.recent],
            "digested": self.digested,
            "order": self.order,
            "ramp": self.ramp.stages,
            "cursor": dataclasses.asdict(self.cursor),
            "random": torch.get_rng_state().numpy().tobytes().hex(),
            "model": dataclasses.asdict(self.model.config),
            "identity": self.identity,
            "origin": self.origin,
            "learnt_from": self.lineage.at(self.cursor.samples_done),
        }

    def load(self, checkpoint: Committed) -> None:
        """Continue from a checkpoint. Raises DataError where it does not fit or is broken."""
        averaged = any(name.startswith("ema.") for name in checkpoint.tensors)
        tensors = self.tensors().items()
        load_tensors(
            checkpoint,
            {name: held for name, held in tensors if averaged or not name.startswith("ema.")},
            left=lambda name: self.average is None and name.startswith("ema."),
        )
        if self.average is not None and not averaged:
            self.average.start(self.model)  # the run keeps one from here on
        state = checkpoint.state
        self.step, self.tokens_seen = state["step"], state["tokens_seen"]
        self.tokens_of = dict(state["tokens_of"])
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        self.recent = [Taken.from_json(taken) for taken in state.get("recent", [])]
        self.digested = state.get("digested", 0)
        self.cursor = cursor_of(checkpoint)
        set_updates(self.optimizer, self.step - self.skipped)
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["random"]), dtype=torch.uint8))


def ramp_of(tokens_per_step: int, stages: Sequence[schema.RampStage], sequence_length: int) -> Ramp:
    """The samples of each step, from the keys that say how many tokens it has."""
    later = ((stage.from_step - 1, stage.tokens_per_step // sequence_length) for stage in stages)
    return Ramp(((0, tokens_per_step // sequence_length), *later))


def cursor_of(checkpoint: Committed) -> Cursor:
    """Where a checkpoint stands in the order of samples. One of an order without mixtures fits no order of today."""
    return Cursor(**{"mixture": "", "skips": ""} | checkpoint.state["cursor"])
