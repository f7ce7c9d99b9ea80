"""What values a job's keys must have, and which of them cannot work together. Standard library only."""

from __future__ import annotations

import ipaddress
import math
import os
import posixpath
import re

from conf import hardware
from conf.schema import (
    AXES,
    BUCKETS,
    CHOICES,
    LANES,
    SOURCE_KINDS,
    SOURCE_LISTS,
    Data,
    Job,
    axes,
    batch_sizes,
    checkpoint_bucket,
    checkpoint_directory,
    get,
    planned_processes,
)

POSITIVE = (
    "steps", "tokens_per_step", "micro_batch", "data.sequence_length", "data.window_blocks", "checkpoint.every",
    "data.cache_bytes", "checkpoint.keep_last", "checkpoint.max_failed", "checkpoint.retry_seconds",
    "evaluate.batch_tokens", "evaluate.rows",
    "curate.workers", "curate.slice_bytes", "curate.extract.seconds", "curate.extract.memory_bytes",
    "curate.extract.largest_bytes", "curate.part_bytes",
    "tokenizer.vocab_size", "tokenizer.train_bytes", "tokenizer.threads", "tokenize.shard_tokens",
    "tokenize.block_documents", "optim.peak_lr", "optim.clip_norm", "optim.max_skipped",
    "hang.start_seconds", "launch.nodes", "spike.window",
)  # fmt: skip
POSITIVE_OR_NULL = (
    "launch.processes",
    "checkpoint.keep_every",
    "checkpoint.bucket_every",
    "checkpoint.keep_hours",
    "evaluate.every",
    "evaluate.limit",
    "optim.decay_steps",
    "plan.document_tokens",
    "spike.sigmas",
    "integrity.digest_every",
    "integrity.replay_every",
    "hang.seconds",
    "curate.duplicates.similarity",
)
NOT_NEGATIVE = (
    "seed", "data.workers", "optim.warmup_steps", "optim.weight_decay", "optim.z_loss", "optim.eps", "spike.margin",
    "spike.rollbacks", "launch.restarts.infrastructure", "launch.restarts.hang", "launch.restarts.data",
)  # fmt: skip
FRACTIONS = ("tokenize.held_out", "curate.language_confidence", "optim.final_lr_ratio")
FRACTIONS_OR_NULL = ("curate.quality.least", "curate.toxicity.most", "curate.duplicates.similarity")
NOT_NEGATIVE_OR_NULL = ("curate.harm.most_words", "curate.private.most_items")
DECAYS = ("optim.beta1", "optim.beta2", "optim.momentum", "optim.ema")  # of a mean, which 1 would never move; or null

XLA_ATTENTION = ("auto", "reference", "splash")

# A name is part of paths, and a run id is a directory and a W&B id, which takes 128 characters and not all of them.
LONGEST_NAME, LONGEST_RUN_ID = 100, 128  # a name gets nine characters more as a run id, and a suffix in a sweep
_SAME_STORE = {"gcs": "gs", "s3a": "s3"}  # other names of a protocol
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_LANGUAGE = re.compile("[a-z]{2,3}")
_ENDPOINT = re.compile(r"[A-Za-z0-9_.-]+:([0-9]{1,5})")


def check(job: Job, kind: str = "train") -> list[str]:
    """Every combination of values that cannot work in a job of this kind, one sentence each; empty when it is sound."""
    problems = _check_name("name", job.name, LONGEST_NAME)
    if job.run_id is not None:
        problems += _check_name("run_id", job.run_id, LONGEST_RUN_ID)
    for path, choices in CHOICES.items():
        if get(job, path) not in choices:
            problems.append(f"{path}={get(job, path)} is not one of {', '.join(choices)}")
    for path in POSITIVE:
        if not get(job, path) > 0:
            problems.append(f"{path}={get(job, path)} must be greater than 0")
    for path in POSITIVE_OR_NULL:
        if (value := get(job, path)) is not None and not value > 0:
            problems.append(f"{path}={value} must be greater than 0, or null")
    for path in NOT_NEGATIVE:
        if get(job, path) < 0:
            problems.append(f"{path}={get(job, path)} must not be negative")
    for path in FRACTIONS:
        if not 0 <= get(job, path) <= 1:
            problems.append(f"{path}={get(job, path)} must lie between 0 and 1")
    for path in FRACTIONS_OR_NULL:
        if (value := get(job, path)) is not None and not 0 <= value <= 1:
            problems.append(f"{path}={value} must lie between 0 and 1, or be null")
    for path in NOT_NEGATIVE_OR_NULL:
        if (value := get(job, path)) is not None and value < 0:
            problems.append(f"{path}={value} must not be negative, or be null")
    for path in DECAYS:
        if (value := get(job, path)) is not None and not 0 <= value < 1:
            problems.append(f"{path}={value} must lie between 0 and 1, and below 1")
    if job.hardware is not None and (problem := hardware.problem(job.hardware)):
        problems.append(problem)
    problems += _check_curate(job)
    for index, source in enumerate(job.tokenize.webdataset):
        if not source.name or not source.paths:
            problems.append(
                f"tokenize.webdataset[{index}] needs a name and paths of tars, such as {{name: web, paths: [a.tar]}}"
            )
    names = [source.name for source in job.tokenize.webdataset]
    if len(set(names)) < len(names):
        problems.append(f"tokenize.webdataset names a source twice ({', '.join(names)}): give each all its paths")
    if (steps := job.profile.steps) is not None and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        problems.append(f"profile.steps={steps} must be the first and the last step to trace, such as [10,12], or null")
    protocol = re.match(r"([^/]*)://", job.checkpoint.directory or "")
    if protocol and protocol[1] not in (*BUCKETS, "file", "local"):
        problems.append(
            f"checkpoint.directory={job.checkpoint.directory}: {protocol[1]}:// has no way to create a file only where "
            "there is none, and COMMIT is such a file; use a folder, gs:// or s3://"
        )
    if problems:
        return problems  # the sums below would only repeat them
    found = _check_mixture(job.data) + _check_ramp(job) + _check_schedule(job) + _check_kernels(job) + _check_xla(job)
    found += _check_bucket(job)
    found += _check_hosts(job)
    # A plan is asked which batch to take, so it does not refuse one.
    return found + (_check_mesh(job) or ([] if kind == "plan" else _check_batch(job)))


def _check_curate(job: Job) -> list[str]:
    problems = []
    for path in SOURCE_LISTS:
        for index, source in enumerate(get(job, path)):
            if source.kind not in SOURCE_KINDS:
                problems.append(f"{path}[{index}].kind={source.kind} is not one of {', '.join(SOURCE_KINDS)}")
            elif source.kind == "local" and not source.paths:
                problems.append(f"{path}[{index}].paths is empty: name at least one glob")
            elif source.kind == "huggingface" and not source.dataset:
                problems.append(f"{path}[{index}].dataset is empty: name a dataset or a local dataset folder")
    curate = job.curate
    others = [language for language in curate.thresholds if language != "*"]
    for path, codes in (("curate.languages", curate.languages), ("curate.thresholds", others)):
        if wrong := [str(code) for code in codes if not _LANGUAGE.fullmatch(str(code))]:
            problems.append(
                f"{path} names {', '.join(wrong)}: languages are ISO 639 codes in small letters, such as en"
            )
    if (least := curate.duplicates.repeated_in) is not None and least < 2:
        problems.append(
            f"curate.duplicates.repeated_in={least} must be 2 or more, or null: one document repeats nothing"
        )
    for name, model, positive, negative, limit in (
        ("quality", curate.quality.model, "good", "bad", "least"),
        ("toxicity", curate.toxicity.model, "toxic", "clean", "most"),
    ):
        section = getattr(curate, name)
        given = [bool(getattr(section, kind)) for kind in (positive, negative)]
        if any(given) and model:
            problems.append(
                f"curate.{name}.model={model} is there, so nothing is trained: leave out "
                f"curate.{name}.{positive} and curate.{name}.{negative}, or the model"
            )
        elif any(given) and not all(given):
            missing = negative if given[0] else positive
            problems.append(f"curate.{name}.{missing} is empty: a classifier is trained from documents of both kinds")
        elif getattr(section, limit) is not None and not model and not any(given):
            problems.append(
                f"curate.{name}.{limit}={getattr(section, limit)} asks for a classifier: name curate.{name}.model, or "
                f"curate.{name}.{positive} and curate.{name}.{negative} to train one"
            )
    if curate.reference and curate.calibrated:
        problems.append(
            f"curate.calibrated={curate.calibrated} holds limits, and curate.reference asks for others: give one"
        )
    return problems


def _check_bucket(job: Job) -> list[str]:
    keys, bucket = job.checkpoint, checkpoint_bucket(job)
    if bucket is None:
        every = keys.bucket_every
        return (
            [] if every is None else [f"checkpoint.bucket_every={every} has no checkpoint.bucket to copy to: name one"]
        )
    problems = []
    if keys.bucket_every is not None and keys.bucket_every % keys.every:
        problems.append(
            f"checkpoint.bucket_every={keys.bucket_every} must be a multiple of checkpoint.every={keys.every}: what is "
            "copied is a checkpoint"
        )
    directory = checkpoint_directory(job)
    if _resolved(bucket) == _resolved(directory):
        problems.append(
            f"checkpoint.bucket={keys.bucket} puts checkpoints into {bucket}, and so does checkpoint.directory="
            f"{'null' if keys.directory is None else keys.directory} ({directory}): name a second place, or none"
        )
    return problems


def _resolved(place: str) -> str:
    """The same text for the same folder or URL, however it was written."""
    protocol, separator, path = place.rpartition("://")
    if protocol in ("", "file", "local"):
        return os.path.realpath(path)
    return f"{_SAME_STORE.get(protocol, protocol)}{separator}{posixpath.normpath(path)}"


def _check_mixture(data: Data) -> list[str]:
    problems = []
    for number, stage in enumerate(data.mixture):
        path = f"data.mixture[{number}]"
        least = data.mixture[number - 1].from_sample + 1 if number else 0
        if number == 0 and stage.from_sample != 0:
            problems.append(f"{path}.from_sample={stage.from_sample} must be 0: the first stage begins the run")
        elif stage.from_sample < least:
            problems.append(
                f"{path}.from_sample={stage.from_sample} must be at least {least}: stages follow each other"
            )
        if number == 0 and stage.manifest is not None:
            problems.append(f"{path}.manifest={stage.manifest} must be null: the first stage reads data.manifest")
        for source, weight in stage.weights.items():
            if not (0 <= weight < math.inf):
                problems.append(f"{path}.weights.{source}={weight} must be a number from 0 on")
        if stage.weights and not any(stage.weights.values()):
            problems.append(f"{path}.weights={stage.weights} are all 0: give at least one source a weight, or none")
    for source, most in data.max_repetitions.items():
        if not most > 0:
            problems.append(f"data.max_repetitions.{source}={most} must be greater than 0")
    return problems


def _check_schedule(job: Job) -> list[str]:
    warmup, decay = job.optim.warmup_steps, job.optim.decay_steps
    if job.optim.schedule != "wsd" or decay is None or warmup + decay <= job.steps:
        return []
    return [
        f"optim.decay_steps={decay} after optim.warmup_steps={warmup} does not fit steps={job.steps}, and the rate "
        f"would fall at once: use steps={warmup + decay} or more, or fewer steps of decay"
    ]


def _check_kernels(job: Job) -> list[str]:
    problems = []
    if job.attention == "flex" and job.backend.name == "cpu":
        problems.append("attention=flex has no gradients on a CPU: use attention=auto")
    if job.attention == "documents" and job.mesh.context != 1:
        problems.append(
            f"attention=documents with mesh.context={job.mesh.context}: documents lie on several processes; "
            "use attention=auto"
        )
    if job.backend.name == "cuda":
        problems += integrity_problems(job, "cuda")
    if job.attention == "splash":
        if job.backend.name in ("cpu", "cuda"):
            problems.append(f"attention=splash with backend={job.backend.name} is a kernel for TPU: use attention=auto")
        if rest := job.data.sequence_length % LANES:
            nearest = max(LANES, job.data.sequence_length - rest)
            problems.append(
                f"attention=splash takes rows of multiples of {LANES} positions, not data.sequence_length="
                f"{job.data.sequence_length}: use attention=auto, or data.sequence_length={nearest}"
            )
    return problems


def _check_xla(job: Job) -> list[str]:
    """What runs on other devices only."""
    if job.backend.name != "xla":
        return []
    problems = []
    if job.mesh.context != 1:
        problems.append(
            f"mesh.context={job.mesh.context} with backend=xla: chips share positions of rows along mesh.tensor only; "
            "use mesh.context=1"
        )
    if job.optim.name != "adamw":
        problems.append(f"optim.name={job.optim.name} does not run with backend=xla: use optim=adamw")
    if job.optim.offload:
        problems.append("optim.offload=true is for GPUs, not for backend=xla: use optim.offload=false")
    if job.compile:
        problems.append("compile=true is for torch.compile; backend=xla compiles each step anyway: use compile=false")
    if job.attention not in XLA_ATTENTION:
        problems.append(
            f"attention={job.attention} does not run with backend=xla: use attention={'|'.join(XLA_ATTENTION)}"
        )
    if job.profile.steps is not None:
        problems.append(
            f"profile.steps={job.profile.steps} with backend=xla: torch.profiler does not see what a TPU does; "
            "use profile.steps=null"
        )
    problems += integrity_problems(job, "xla")
    if job.launch.processes is not None:
        problems.append(
            f"launch.processes={job.launch.processes} with backend=xla: one process drives all chips of a host; "
            "use launch.processes=null"
        )
    return problems


def integrity_problems(job: Job, device: str) -> list[str]:
    """Which checks of bits do not work on a device (cpu, cuda or xla)."""
    digest, replay = job.integrity.digest_every, job.integrity.replay_every
    problems = []
    if device == "xla" and digest is not None:
        problems.append(
            f"integrity.digest_every={digest} with backend=xla: a process sees a tensor as one, not the copies on its "
            "chips; use integrity.digest_every=null"
        )
    if device != "cpu" and replay is not None:
        problems.append(
            f"integrity.replay_every={replay} with backend={device}: only on a CPU is it known that a step computed "
            "twice gives the same bits; use integrity.replay_every=null"
        )
    return problems


def _check_hosts(job: Job) -> list[str]:
    """Whether several hosts can meet, and share the processes evenly."""
    nodes, rendezvous = job.launch.nodes, job.launch.rendezvous
    problems = []
    if rendezvous is not None:
        endpoint = _ENDPOINT.fullmatch(rendezvous)
        if endpoint is None or not 0 < int(endpoint[1]) < 2**16:
            problems.append(f"launch.rendezvous={rendezvous} is not host:port, such as node-0:29400")
        elif nodes > 1 and _loops_back(rendezvous.rpartition(":")[0]):
            problems.append(
                f"launch.rendezvous={rendezvous} is each host's own loopback, where none meets another: name the first "
                "host as the others know it"
            )
    if nodes == 1:
        if rendezvous is not None:
            problems.append(
                f"launch.rendezvous={rendezvous} is where several hosts meet, and launch.nodes=1: set launch.nodes to "
                "their number"
            )
        return problems
    if job.backend.name == "xla":
        return [
            f"launch.nodes={nodes} with backend=xla: torch_xla learns the other hosts from the TPU; use launch.nodes=1"
        ]
    if rendezvous is None:
        problems.append(
            f"launch.nodes={nodes} hosts need a place to meet: set launch.rendezvous=<first host>:<free port>"
        )
    if (processes := planned_processes(job)) is not None and processes % nodes:
        problems.append(
            f"{_product(job)} is {processes} processes, which launch.nodes={nodes} hosts cannot share evenly: set axes "
            f"whose product is a multiple of {nodes}, or launch.processes"
        )
    return problems


def _loops_back(host: str) -> bool:
    """Whether a name or address leads from each host to itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower().removesuffix(".")
        return name in ("localhost", "localhost.localdomain", "ip6-loopback") or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _check_slice(job: Job) -> list[str]:
    """Whether the mesh is one of whole slices, where all its axes and a slice are named."""
    machine = None if job.hardware is None else hardware.find(job.hardware)
    sizes = [getattr(job.mesh, axis) for axis in AXES]
    if machine is None or machine.chip.kind != "xla" or job.backend.name not in ("auto", "xla") or -1 in sizes:
        return []
    if math.prod(sizes) % machine.joined == 0:
        return []
    return [
        f"{_product(job)} is {math.prod(sizes)} chips, and hardware={machine.name} has {machine.joined}: set "
        "mesh.fsdp=-1, or axes whose product is that of one slice, or of mesh.replica slices"
    ]


def _check_ramp(job: Job) -> list[str]:
    problems, least = [], 2
    for number, stage in enumerate(job.batch_ramp):
        if stage.from_step < least:
            why = "stages follow each other" if number else "the first step is 1, and has tokens_per_step"
            problems.append(f"batch_ramp[{number}].from_step={stage.from_step} must be at least {least}: {why}")
        if not stage.tokens_per_step > 0:
            problems.append(f"batch_ramp[{number}].tokens_per_step={stage.tokens_per_step} must be greater than 0")
        least = stage.from_step + 1
    return problems


def _check_name(path: str, value: str, longest: int) -> list[str]:
    if not _NAME.fullmatch(value):
        return [
            f"{path}={value!r} cannot name a directory and a W&B run: use letters, digits, - _ and . only, "
            "at least one of them, and no . in front"
        ]
    if len(value) > longest:
        return [f"{path}={value!r} has {len(value)} characters: use at most {longest}"]
    return []


def _check_batch(job: Job) -> list[str]:
    length = job.data.sequence_length
    problems = [
        f"{path}={tokens} is not a multiple of data.sequence_length={length}: use {path}="
        f"{max(1, round(tokens / length)) * length}"
        for path, tokens in batch_sizes(job).items()
        if tokens % length
    ]
    if problems:
        return problems
    feeders = planned_processes(job)
    if feeders is None:  # known only where the devices are; the trainer checks again there
        return []
    return check_rows(job, feeders)


def check_rows(job: Job, processes: int) -> list[str]:
    """Whether so many processes can share the rows of a step evenly; those that share rows count as one."""
    mesh = axes(job, processes)
    shared = mesh["context"] * mesh["tensor"]
    return [
        problem
        for path, tokens in batch_sizes(job).items()
        for problem in _check_rows(job, path, tokens, processes // shared, shared)
    ]


def _check_rows(job: Job, path: str, tokens: int, feeders: int, shared: int) -> list[str]:
    rows, share = tokens // job.data.sequence_length, job.micro_batch * feeders
    if rows % share == 0:
        return []
    if rows % feeders:
        legal = [n for n in range(1, rows + 1) if rows % n == 0][:12]
        return [
            f"a step of {path}={tokens} holds {rows} rows of data.sequence_length="
            f"{job.data.sequence_length}, which {feeders} processes cannot share evenly: use one of {legal} processes"
            + (" (mesh.replica x mesh.fsdp; those of mesh.context and mesh.tensor share rows)" if shared > 1 else "")
        ]
    legal = [n for n in range(1, rows // feeders + 1) if (rows // feeders) % n == 0]
    return [
        f"micro_batch={job.micro_batch} on {feeders} processes does not divide the {rows} rows of a step "
        f"({path}={tokens} / data.sequence_length={job.data.sequence_length}): "
        f"use micro_batch={'|'.join(map(str, legal))}"
    ]


def _check_mesh(job: Job) -> list[str]:
    sizes = {f"mesh.{axis}": getattr(job.mesh, axis) for axis in AXES}
    problems = [f"{path}={n} must be -1 (the rest) or at least 1" for path, n in sizes.items() if n == 0 or n < -1]
    if list(sizes.values()).count(-1) > 1:
        rest = " and ".join(path for path, n in sizes.items() if n == -1)
        problems.append(f"only one axis may be -1 (the rest), not {rest}")
    if problems:
        return problems
    if (processes := planned_processes(job)) is not None:
        origin = "the product of the axes"
        if job.launch.processes is not None:
            origin = "launch.processes" if job.launch.nodes == 1 else "launch.processes x launch.nodes"
        problems += check_mesh_size(job, processes, origin)
    elif -1 not in (job.mesh.context, job.mesh.tensor):
        problems += _check_positions(job, job.mesh.context, job.mesh.tensor)
    return problems + _check_slice(job)


def check_mesh_size(job: Job, processes: int, origin: str) -> list[str]:
    """Whether the mesh axes multiply to the number of processes, and the rows can be shared as they say."""
    fixed = math.prod(n for axis in AXES if (n := getattr(job.mesh, axis)) != -1)
    rest = any(getattr(job.mesh, axis) == -1 for axis in AXES)
    if fixed != processes and not (rest and processes % fixed == 0):
        return [
            f"{_product(job)} does not match {origin}={processes}: set mesh.fsdp=-1, or axes whose product is "
            f"{processes}"
        ]
    mesh = axes(job, processes)
    return _check_positions(job, mesh["context"], mesh["tensor"])


def _check_positions(job: Job, context: int, tensor: int) -> list[str]:
    if job.data.sequence_length % (context * tensor) == 0:
        return []
    return [
        f"data.sequence_length={job.data.sequence_length} is not a multiple of mesh.context={context} x "
        f"mesh.tensor={tensor}, which share the positions of each row"
    ]


def _product(job: Job) -> str:
    """The axes as a user wrote them."""
    shown = [axis for axis in AXES if axis in ("replica", "fsdp") or getattr(job.mesh, axis) != 1]
    return " x ".join(f"mesh.{axis}={getattr(job.mesh, axis)}" for axis in shown)
