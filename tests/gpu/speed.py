"""Tokens per second and memory of training on one device: ours, compiled and not, beside transformers, likewise.

All train one model from the same weights on the same rows, each row one document: float32 masters, bfloat16 compute (by
autocast in transformers, which attends by SDPA), AdamW, clipped gradients. Windows of some steps are interleaved, every
round begins with another contestant, and figures are medians of the windows. transformers compiled and not are one
model with one optimizer, which saves memory for larger ones.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from conf.hardware import peak_bf16_flops
from conf.schema import Job
from data_pipeline.batch import Batch, Cursor
from tests.bench.report import Row, compare
from tests.gpu.checks import Check, NotRun, Place
from trainer.backend.native import Native
from trainer.model import SIZES, Gemma, GemmaConfig, flops_per_token, init_weights
from trainer.optim.optimizer import build_optimizer, set_lr
from trainer.step import make_train_step

WINDOWS, STEPS, WARM_UP = 30, 3, 3
LEARNING_RATE = 1e-4
SAME = 2**-7  # bound of the relative difference of first losses, two units of bf16's last place: all train one model

OURS, OURS_EAGER = "ours compiled", "ours eager"
PEERS, EAGER_PEER = ("transformers compiled", "transformers eager"), "transformers eager"


@dataclass(frozen=True)
class Work:
    """A model, and the rows of a step."""

    name: str
    config: GemmaConfig
    rows: int
    sequence_length: int

    def __str__(self) -> str:
        return f"{self.name}, {self.rows} x {self.sequence_length}"


WORKS = (Work("gemma3_270m", SIZES["gemma3_270m"], 2, 4096), Work("gemma3_1b", SIZES["gemma3_1b"], 2, 2048))
QUICK = (Work("tiny", dataclasses.replace(SIZES["tiny"], vocab_size=512, num_layers=2), 2, 64),)

Step = Callable[[], Tensor]
"""One update; gives the mean loss of a token, on the device."""


@dataclass
class Contestant:
    """What trains, the bytes it always holds, and what its windows said."""

    step: Step
    resident: int
    first_loss: float
    seconds: list[float] = field(default_factory=list)  # of each window
    extra: int = 0  # most bytes beyond what all contestants hold between windows


def checks(place: Place) -> dict[str, Check]:
    """One for each work."""
    works = QUICK if place.quick else WORKS
    raced: dict[str, Check] = {
        str(work): partial(race, work, 1 / (len(works) - number), place) for number, work in enumerate(works)
    }
    return {**raced, "litgpt": litgpt}


def litgpt() -> dict[str, Any]:
    """It has pins that conflict with ours, so it would be a process of another environment."""
    raise NotRun("not measured: this benchmark starts no process in the environment .venv-bench/litgpt")


def race(work: Work, share: float, place: Place) -> dict[str, Any]:
    """Interleaved windows of all contestants that fit, for this share of the time that is left."""
    until = time.time() + share * place.left()
    torch.compiler.reset()
    gc.collect()  # models of the race before may hold themselves, and much memory, in cycles
    job = _job(work)
    with closing(Native(place.device, job)) as backend:
        return _race(work, job, backend, until, place)


def _race(work: Work, job: Job, backend: Native, until: float, place: Place) -> dict[str, Any]:
    present, absent = _contestants(work, job, backend, place)
    assert {OURS, OURS_EAGER} & set(present), f"ours cannot train: {absent}"
    losses = {name: each.first_loss for name, each in present.items() if name != PEERS[0]}  # that one began trained
    assert max(losses.values()) / min(losses.values()) - 1 <= SAME, f"first losses differ: {losses}"
    names, windows, steps = list(present), 2 if place.quick else WINDOWS, 1 if place.quick else STEPS
    for number in range(windows):
        if number and time.time() > until:
            break
        start = number % len(names)
        for name in names[start:] + names[:start]:
            _window(present[name], steps, place.device)
    tokens = steps * work.rows * work.sequence_length
    medians = {name: tokens / statistics.median(each.seconds) for name, each in present.items()}
    flops, peak = flops_per_token(work.config, work.sequence_length), _peak(place.device)
    return {
        "device": device_name(place.device),
        "windows": len(present[names[0]].seconds),
        "steps of a window": steps,
        "first losses": losses,
        "seconds": {name: each.seconds for name, each in present.items()},
        "tokens/s": medians,
        "FLOP/token": flops,
        "share of peak FLOP/s": {name: speed * flops / peak for name, speed in medians.items()} if peak else None,
        "peak bytes": _peak_bytes(present, place.device),
        "absent": absent,
    }


def _job(work: Work) -> Job:
    job = Job()
    job.micro_batch, job.data.sequence_length = work.rows, work.sequence_length
    job.tokens_per_step = work.rows * work.sequence_length
    return job


def _contestants(work: Work, job: Job, backend: Native, place: Place) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that are warm, and why others are absent."""
    batches = list(_batches(work, backend))
    present: dict[str, Contestant] = {}
    absent: dict[str, str] = {}
    theirs: list[tuple[nn.Module, Optimizer]] = []
    for name in (OURS_EAGER, EAGER_PEER, OURS, PEERS[0]):
        job.compile = name in (OURS, PEERS[0])
        if job.compile and place.quick:
            absent[name] = "compiling takes longer than all else that --quick does"
            continue
        try:
            if name in PEERS:
                theirs = theirs or [_transformers(work, place.device)]
                step, held = _their_step(*theirs[0], batches, job), theirs[0]
            else:
                step, held = _our_step(work, job, backend, batches)
            first = step().item()
            for _ in range(0 if place.quick else WARM_UP - 1):
                step()
            present[name] = Contestant(step, _bytes(*held), first)
        except (torch.OutOfMemoryError, ModuleNotFoundError) as error:
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return present, absent


def _batches(work: Work, backend: Native) -> Iterator[Batch]:
    """Rows of random words, the same for all."""
    draw, shape = torch.Generator().manual_seed(1), (work.rows, work.sequence_length)
    made = []
    for _ in range(4):
        tokens_BS = torch.randint(1, work.config.vocab_size, (shape[0], shape[1] + 1), generator=draw)
        ones_BS, positions_BS = torch.ones(shape), torch.arange(shape[1], dtype=torch.int32).expand(shape)
        arrays = (tokens_BS[:, :-1], tokens_BS[:, 1:], ones_BS.int(), positions_BS, ones_BS)
        ends = torch.arange(shape[0] + 1, dtype=torch.int32) * shape[1]
        cursor = Cursor(0, "", "", "", "")
        made.append(Batch(*map(Tensor.contiguous, arrays), ends, shape[1], torch.tensor([shape[0]]), cursor))
    return backend.feed(made)


def _our_step(work: Work, job: Job, backend: Native, batches: list[Batch]) -> tuple[Step, tuple[Gemma, Optimizer]]:
    """As `trainer.build` and `fit` join the parts."""
    with torch.device("meta"):
        model = Gemma(work.config)
    backend.shard(model)
    optimizer = build_optimizer(model, job.optim, job.precision)
    init_weights(model, seed=0)
    set_lr(optimizer, LEARNING_RATE)
    train_step = make_train_step(model, optimizer, job.optim.clip_norm, 0.0, backend)
    following = _cycle(batches)
    return (lambda: train_step([next(following)])["loss"]), (model, optimizer)


def _transformers(work: Work, device: str) -> tuple[nn.Module, Optimizer]:
    """Their model with our initial weights."""
    import transformers

    from trainer.export.hf_config import hf_config
    from trainer.export.hf_weights import hf_names

    theirs_config = transformers.Gemma3TextConfig(**hf_config(work.config, work.config.vocab_size))
    theirs_config._attn_implementation, theirs_config.use_cache = "sdpa", False
    with torch.device(device):
        ours = Gemma(work.config)
        theirs = transformers.Gemma3ForCausalLM(theirs_config).float().train()
    init_weights(ours, seed=0)
    names, parameters = hf_names(work.config), dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameters[names[name]].copy_(parameter)
    optim = Job().optim
    optimizer = torch.optim.AdamW(
        theirs.parameters(), LEARNING_RATE, (optim.beta1, optim.beta2), optim.eps, optim.weight_decay, fused=True
    )
    return theirs, optimizer


def _their_step(model: nn.Module, optimizer: Optimizer, batches: list[Batch], job: Job) -> Step:
    """Plain PyTorch around their model with its own loss."""
    forward = torch.compile(model) if job.compile else model
    following, parameters = _cycle(batches), list(model.parameters())

    def step() -> Tensor:
        batch = next(following)
        with torch.autocast(batch.tokens_BS.device.type, torch.bfloat16):
            loss: Tensor = forward(
                input_ids=batch.tokens_BS, labels=batch.targets_BS, shift_labels=batch.targets_BS
            ).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, job.optim.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _cycle(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def _window(each: Contestant, steps: int, device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        each.step()
    if device == "cuda":
        torch.cuda.synchronize()
        each.extra = max(each.extra, torch.cuda.max_memory_allocated() - before)
    each.seconds.append(time.perf_counter() - began)


def _bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Of parameters and the optimizer's state."""
    state = [value for of in optimizer.state.values() for value in of.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *state))


def _peak_bytes(present: dict[str, Contestant], device: str) -> dict[str, int] | None:
    """What each would need alone. A CPU does not tell it of several in one process: `make bench NAME=train` does."""
    return {name: each.resident + each.extra for name, each in present.items()} if device == "cuda" else None


def device_name(device: str) -> str:
    """As figures name it."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _peak(device: str) -> float | None:
    return peak_bf16_flops(device_name(device))


def rows(raced: dict[str, Any]) -> list[Row]:
    """The figures of what `race` found, by work."""
    found = []
    for work, said in raced.items():
        where, speeds = f"{work}, on {said['device']}", said["tokens/s"]
        found.append(_row(f"tokens/s: {where}", speeds, OURS, PEERS))
        found.append(_row(f"tokens/s, none compiled: {where}", speeds, OURS_EAGER, (EAGER_PEER,)))
        if said["share of peak FLOP/s"]:
            found.append(_row(f"model FLOP/s over peak: {where}", said["share of peak FLOP/s"], OURS, PEERS))
        if said["peak bytes"]:
            found.append(_row(f"peak bytes: {where}", said["peak bytes"], OURS, PEERS, lower_is_better=True))
    return found


def _row(
    figure: str, values: dict[str, float], ours: str, peers: tuple[str, ...], *, lower_is_better: bool = False
) -> Row:
    others = {name: values[name] for name in peers if name in values}
    return compare(figure, values.get(ours), others, lower_is_better=lower_is_better)
