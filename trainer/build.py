"""Configuration -> the parts of a training run. The only file that knows both."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conf import schema
from conf.exits import ConfigError
from conf.json_lines import writing
from data_pipeline.disk_cache import DiskCache
from data_pipeline.files import redacted
from data_pipeline.ramp import Ramp
from data_pipeline.stream import TokenStream
from data_pipeline.tokenizer import Tokenizer
from trainer import checkpoint, lineage
from trainer.backend import Backend
from trainer.checkpoint import committed_steps
from trainer.liveness.reading import Reading, opened_by
from trainer.model import Gemma, GemmaConfig, build_config
from trainer.model.gemma import init_weights
from trainer.optim.average import Average
from trainer.optim.optimizer import build_optimizer
from trainer.report import Stopwatch
from trainer.run import Run, cursor_of, ramp_of
from trainer.run_directory import RunDirectory, config_sha256, read_skips, refuse_other_identity
from trainer.sharded import Parted
from trainer.trained import Trained


@dataclass(frozen=True)
class Parts:
    """What `fit` works with besides the run itself."""

    backend: Backend
    directory: RunDirectory
    stream: TokenStream
    held_out: TokenStream | None
    ramp: Ramp


def build(job: schema.Job, backend: Backend, clock: Stopwatch) -> tuple[Run, Parts]:
    """Check all that can be checked, claim the run directory, and make the run: new, or from its last checkpoint.

    Raises ConfigError or DataError, on every process that sees the fault, before any step is taken.
    """
    directory = RunDirectory(job)
    tokenizer_path = Path(job.tokenizer.model or job.tokenizer.output)
    tokenizer = Tokenizer.load(tokenizer_path)
    stream = open_stream(job, job.data.manifest, tokenizer)
    held_out = None
    if job.data.held_out and job.evaluate.every:
        held_out = open_stream(job, job.data.held_out, tokenizer, held_out=True)
    for shards in (*stream.all_shards, *([held_out.shards] if held_out else [])):
        shards.check_tokenizer(tokenizer)
    ramp = ramp_of(job.tokens_per_step, job.batch_ramp, job.data.sequence_length)
    stream.refuse_repetitions(job.data.max_repetitions, ramp.before(job.steps))
    config = build_config(job.model, tokenizer.vocab_size)
    if problems := backend.problems(config):
        raise ConfigError("; ".join(problems))
    begin = None if any(map(committed_steps, directory.places)) else beginning(job, config, tokenizer, directory)
    attempt, last = claim(directory, tokenizer_path, backend, begin, clock)
    if last is not None:  # checkpoint.directory may hold another run's
        refuse_other_identity(last.state["identity"], job, str(last.payload))
    stream.skips = read_skips(directory.path)  # nobody changes it while the directory is claimed
    if last is not None:
        stream.check(cursor_of(last), last.state.get("order"))
        ramp.check(last.state.get("ramp"), last.step)
    if backend.processes.rank == 0:
        directory.keep_config()

    with torch.device("meta"):
        model = Gemma(config)
    backend.shard(model)
    optimizer = build_optimizer(model, job.optim, job.precision, backend.adamw)
    origin = {
        "run_id": directory.run_id,  # also the W&B id
        "config_sha256": config_sha256(job),
        "manifest_sha256": stream.shards.sha256,
        "tokenizer_sha256": tokenizer.sha256,
    }
    if last is not None and "init_sha256" in last.state["origin"]:
        origin["init_sha256"] = last.state["origin"]["init_sha256"]
    elif last is None and begin is not None:
        origin["init_sha256"] = begin.checkpoint.sha256
    identity = redacted(schema.identity(job))
    learnt = lineage.Lineage(lineage.before(last, None if begin is None else begin.checkpoint), stream.shards_begun)
    run = Run(model, optimizer, backend, stream.cursor(0), identity, origin, learnt, stream.describe(), ramp, attempt)
    if job.optim.ema is not None:
        run.average = Average(model, job.optim.ema, backend.zeros_like)
    if last is None:
        torch.manual_seed(job.seed)  # torch seeds itself by chance, and a checkpoint keeps the state
        weights = named_weights(model, backend)
        if begin is None:
            init_weights(model, job.seed, weights)
        else:
            begin = dataclasses.replace(begin, checkpoint=opened_by(clock, begin.checkpoint))
            checkpoint.verify_together(begin.checkpoint, backend)
            begin.load(weights)
        if run.average is not None:
            run.average.start(model)
    else:
        run.load(last)
    return run, Parts(backend, directory, stream, held_out, ramp)


def named_weights(model: Gemma, backend: Backend) -> dict[str, Tensor | Parted]:
    """Every weight under the name that checkpoints know it by."""
    named = (backend.named(name, parameter) for name, parameter in model.named_parameters())
    return {name: tensor for each in named for name, tensor in each.items()}


def beginning(job: schema.Job, config: GemmaConfig, tokenizer: Tokenizer, directory: RunDirectory) -> Trained | None:
    """What `init_from` names, for a run that has no checkpoint yet; None where weights begin at random.

    Raises ConfigError where it is another model or was trained with another tokenizer, or where an attempt before began
    with other weights; DataError where there is none.
    """
    if job.init_from is None:
        return None
    begin = Trained.at(schema.named_run(job.init_from), "init_from")
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(begin.config)
    differences = [
        f"  {name}: {theirs[name]!r} there, {ours[name]!r} here"
        for name in ours
        if name != "max_positions" and ours[name] != theirs[name]  # that changes no weight and no result
    ]
    if differences:
        raise ConfigError(
            f"init_from={job.init_from} is not the configured model:\n"
            + "\n".join(differences)
            + "\nchoose its size with model=<size>, and set what it has otherwise with model.<key>"
        )
    if (there := begin.tokenizer().sha256) != tokenizer.sha256:
        raise ConfigError(
            f"init_from={job.init_from} was trained with the tokenizer {begin.tokenizer_path} (sha256 {there[:12]}), "
            f"the token shards with another ({tokenizer.sha256[:12]}): tokenize with that one, by "
            f"tokenizer.model={begin.tokenizer_path}"
        )
    for event in directory.events():
        if event["event"] == "init" and event["checkpoint_sha256"] != begin.checkpoint.sha256:
            raise ConfigError(
                f"{directory.path} began with other weights than init_from={job.init_from} has now (checkpoint sha256 "
                f"{event['checkpoint_sha256'][:12]}, now {begin.checkpoint.sha256[:12]}): give this run another run_id"
            )
    return begin


def claim(
    directory: RunDirectory, tokenizer: Path, backend: Backend, begin: Trained | None, clock: Stopwatch
) -> tuple[int, checkpoint.Committed | None]:
    """The number of this attempt and the checkpoint it starts from, the same on every process.

    The first process claims the directory and only then is the latest checkpoint looked for: a job that is just ending
    may still commit one. One that is broken is put into quarantine, and told.
    """
    first, said = backend.processes.rank == 0, 0
    if first:
        said = directory.claim()
        keep_tokenizer(tokenizer, directory.path / "tokenizer.model")
    (attempt,) = map(int, backend.agree([said]))  # every process waits here for the first
    for place in directory.places:
        checkpoint.meet(place, backend)
    checkpoint.on_all(backend, lambda: withdraw_unsound(directory) if first else None)
    places = [Reading(place, clock) for place in directory.places]
    last = checkpoint.newest_sound(places, backend, functools.partial(directory.put_aside, attempt))
    if first and last is None:
        if directory.left_behind:
            raise ConfigError(
                f"{directory.checkpoints} has no checkpoint, but this run has some in {directory.left_behind}: move "
                "that folder there, or set checkpoint.directory as it was"
            )
        if begin is not None:
            directory.record(
                "init",
                attempt,
                path=str(begin.run),
                step=begin.checkpoint.step,
                checkpoint_sha256=begin.checkpoint.sha256,
            )
    backend.barrier()  # what the first refuses, none begins
    return attempt, last


def withdraw_unsound(directory: RunDirectory) -> None:
    """Complete what an attempt began that found bits wrong, and died before it withdrew what it had saved since."""
    if (sound := directory.sound_until()) is not None:
        checkpoint.withdraw(directory.places, after=sound)


def keep_tokenizer(model: Path, copy: Path) -> None:
    """Keep the tokenizer with the run, so that the run can be scored and exported wherever it lies."""
    if copy.exists() and copy.samefile(model):
        return
    partial = copy.with_suffix(".partial")
    with writing(copy):
        shutil.copyfile(model, partial)
        partial.replace(copy)


def open_stream(job: schema.Job, manifest: str, tokenizer: Tokenizer, *, held_out: bool = False) -> TokenStream:
    """The batches of a manifest in the order that this job defines; held-out text is neither mixed nor skipped."""
    return TokenStream(
        manifest,
        sequence_length=job.data.sequence_length,
        packing=job.data.packing,
        window_blocks=job.data.window_blocks,
        seed=job.seed,
        mixture=[] if held_out else job.data.mixture,
        workers=job.data.workers,
        cache=DiskCache(Path(job.data.cache).expanduser(), job.data.cache_bytes),
        tokenizer=tokenizer,
        skippable=not held_out,
    )
