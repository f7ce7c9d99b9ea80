"""Every key of every job, with its type, default and meaning. Standard library only.

YAML files under ``conf/`` choose and override; this file is the single owner of defaults, and ``conf/check.py`` of what
values must be and which go together. ``gemcutter config`` prints the keys.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

FORMAT = 1

JOBS = ("curate", "tokenize", "train", "evaluate", "export", "import", "plan", "demo")


def key(default: Any, doc: str) -> Any:
    """A configuration key: its default and one sentence of meaning."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def section(kind: type, doc: str) -> Any:
    """A nested group of keys."""
    return field(default_factory=kind, metadata={"doc": doc})


@dataclass
class Source:
    """One place documents come from."""

    kind: str = key("local", "python_env, local or huggingface")
    name: str = key("", "name written to the column `source` (empty: what the record states, else the kind)")
    paths: list[str] = key([], "local: globs of txt, md, html, jsonl, jsonl.zst, parquet, warc or warc.gz files")
    dataset: str = key("", "huggingface: dataset name or local dataset folder")
    config: Optional[str] = key(None, "huggingface: configuration of the dataset")
    split: str = key("train", "huggingface: split to stream")
    text_field: str = key("text", "field of a jsonl, Parquet or dataset row that holds the text")
    license: str = key("", "licence written to each document that states none itself")
    limit_bytes: Optional[int] = key(None, "stop reading this source after so many bytes of UTF-8 text")


@dataclass
class Quality:
    model: Optional[str] = key(None, "a classifier that an earlier curation trained: quality.npz in its output")
    good: list[Source] = key([], "where there is no model, one is trained: from documents as all should be")
    bad: list[Source] = key([], "and from documents as none should be")
    least: Optional[float] = key(None, "drop what is less probably good than this, 0 to 1 (null: a column only)")


@dataclass
class Toxicity:
    model: Optional[str] = key(None, "a classifier that an earlier curation trained: toxicity.npz in its output")
    toxic: list[Source] = key([], "where there is no model, one is trained: from texts with offence")
    clean: list[Source] = key([], "and from texts without")
    most: Optional[float] = key(
        None, "drop a document of which more is toxic, 0 to 1 of its text (null: a column only)"
    )


@dataclass
class Duplicates:
    similarity: Optional[float] = key(
        0.75, "share of their runs of five words that makes two documents near-duplicates (null: only equal ones go)"
    )
    repeated_in: Optional[int] = key(
        100, "cut lines and paragraphs that so many documents hold out of all but the first of them (null: none)"
    )
    earlier: list[str] = key([], "folders of earlier curated text, whose documents must not come again")


@dataclass
class Decontaminate:
    folder: Optional[str] = key(None, "keep out the benchmarks of this folder, each in a folder of its name")
    benchmarks: dict[str, str] = key({}, "keep out others, too: name -> glob of files in any form")
    action: str = key("drop", "drop a document that holds an item, or cut the item out of it")


@dataclass
class Private:
    key_file: Optional[str] = key(
        None, "file of a secret of 16 bytes or more: equal values get equal pseudonyms (null: placeholders)"
    )
    most_items: Optional[int] = key(None, "drop a document that held more personal data and secrets (null: none goes)")


@dataclass
class Harm:
    most_words: Optional[int] = key(
        None, "drop a document with more entries of its language's list of bad words (null: a column only)"
    )
    blocked: list[str] = key([], "files of URLs, domains and SHA-256 of texts that must not come in")
    prohibited: list[str] = key([], "the same of what must be kept nowhere, not even among what was removed")
    lexicons: list[str] = key([], "files of more terms for what must be kept nowhere: `minor TERM` or `sexual TERM`")


@dataclass
class Extract:
    seconds: float = key(10.0, "of the processor that a web page may take")
    memory_bytes: int = key(2**30, "of memory that web pages may take, beside the worker")
    largest_bytes: int = key(16 * 2**20, "of one document as it lies in its file; larger ones are not read")


@dataclass
class Curate:
    sources: list[Source] = key([], "where documents come from, read in this order")
    output: str = key("data/${name}/text", "folder of curated Parquet")
    work: Optional[str] = key(
        None,
        "folder that keeps what was read and measured, so that other limits need no second reading (null: one beside "
        "the output, which goes when the text is published)",
    )
    languages: list[str] = key([], "ISO 639-1 codes to keep (empty: every language)")
    language_confidence: float = key(0.5, "drop a document whose best language is less certain than this (0 to 1)")
    thresholds: dict[str, Any] = key(
        {}, "changes to the limits of rules: language or `*` -> rule set -> limit -> value; a rule set may be null"
    )
    reference: list[Source] = key([], "good documents, from which the limits of their languages are taken")
    calibrated: Optional[str] = key(None, "limits that an earlier curation took: calibrated.json in its output")
    quality: Quality = section(Quality, "how much documents look like good ones")
    toxicity: Toxicity = section(Toxicity, "how much of documents offends")
    duplicates: Duplicates = section(Duplicates, "what says the same")
    decontaminate: Decontaminate = section(Decontaminate, "benchmarks that are kept out")
    private: Private = section(Private, "personal data and secrets")
    harm: Harm = section(Harm, "what must not come in")
    extract: Extract = section(Extract, "limits of one document")
    previous: Optional[str] = key(None, "folder of the version before, to which the data card compares this one")
    part_bytes: int = key(128 * 2**20, "UTF-8 bytes of text per Parquet part")
    slice_bytes: int = key(
        64 * 2**20, "bytes that a task reads of files that can be cut, and so what a lost worker costs"
    )
    engine: str = key("local", "local (processes of this machine) or ray (an existing cluster)")
    workers: int = key(1, "local: processes; output bytes do not depend on it")
    ray_address: str = key("auto", "ray: host:port of the cluster (auto: the one that this machine belongs to)")


@dataclass
class Tokenizer:
    model: Optional[str] = key(None, "an existing SentencePiece .model; null trains one")
    output: str = key("data/${name}/tokenizer.model", "where `tokenize` writes the model it trains")
    vocab_size: int = key(32_768, "pieces of a trained model, special and byte pieces included")
    train_bytes: int = key(256 * 2**20, "UTF-8 bytes of text sampled to train on")
    threads: int = key(1, "threads of the SentencePiece trainer; the file is byte-identical only with 1")


@dataclass
class Tokenize:
    input: str = key("data/${name}/text", "folder of curated Parquet")
    webdataset: list[Source] = key(
        [], "WebDataset tars of .txt or .json samples to index where they lie, instead of curated text: name and paths"
    )
    output: str = key("data/${name}/tokens", "folder of token shards; held-out documents go to its folder `held_out`")
    held_out: float = key(0.005, "fraction of documents, chosen by a hash of their id, that is never trained on")
    shard_tokens: int = key(64 * 2**20, "tokens per shard, about")
    block_documents: int = key(256, "documents per block: the unit that is read and verified")


@dataclass
class Stage:
    """Which sources are read, in which proportion, from a sample on."""

    from_sample: int = key(0, "first sample (row of the global order) of the stage; the first stage has 0")
    weights: dict[str, float] = key({}, "weight of each source that is read (empty: every source by its rows)")
    manifest: Optional[str] = key(None, "manifest of other token shards to read from then on (null: data.manifest)")


@dataclass
class RampStage:
    """How many tokens a step has, from a step on."""

    from_step: int = key(2, "first step of the stage, as metrics count them: the first of a run is 1")
    tokens_per_step: int = key(65_536, "tokens of the global batch from then on")


@dataclass
class Data:
    manifest: str = key("data/${name}/tokens/manifest.json", "manifest of the token shards to train on")
    held_out: Optional[str] = key(
        "data/${name}/tokens/held_out/manifest.json", "manifest of held-out shards; null for none"
    )
    sequence_length: int = key(2048, "positions per row")
    packing: str = key("best_fit", "best_fit, concat or pad: how documents fill rows")
    window_blocks: int = key(32, "blocks whose documents are packed together")
    mixture: list[Stage] = key([], "stages of source weights (empty: every document once an epoch); append to change")
    max_repetitions: dict[str, float] = key({}, "most epochs of a source within `steps`, by its name; `*`: any other")
    workers: int = key(0, "processes that prepare batches beside the trainer; 0 uses one thread")
    cache: str = key("~/.cache/gemcutter", "folder on this host's disk that keeps what is read of remote shards")
    cache_bytes: int = key(64 * 2**30, "most bytes in it; the least recently used go first")


@dataclass
class Model:
    size: str = key("tiny", "name in the table of sizes (trainer/model/sizes.py)")
    vocab_size: Optional[int] = key(None, "embedding rows; null: the size's own, or for tiny the tokenizer's pieces")
    num_layers: Optional[int] = key(None, "overrides the size's number of layers")
    d_model: Optional[int] = key(None, "overrides the size's width")
    d_ff: Optional[int] = key(None, "overrides the size's feed-forward width per branch")
    num_heads: Optional[int] = key(None, "overrides the size's query heads")
    num_kv_heads: Optional[int] = key(None, "overrides the size's key and value heads")
    head_dim: Optional[int] = key(None, "overrides the size's head width")
    window: Optional[int] = key(None, "overrides the size's sliding window")


@dataclass
class Optim:
    name: str = key("adamw", "adamw, or muon (matrices of blocks; adamw for norms and the embedding)")
    peak_lr: float = key(3e-4, "learning rate after warm-up")
    warmup_steps: int = key(100, "steps of linear warm-up from 0")
    schedule: str = key(
        "cosine", "cosine, wsd (warm-up, stable, decay) or constant, after warm-up; constant may become wsd on resume"
    )
    final_lr_ratio: float = key(0.1, "cosine, wsd: last learning rate over peak_lr")
    decay_steps: Optional[int] = key(None, "wsd: length of the final linear decay (null: a tenth of steps)")
    beta1: float = key(0.9, "adamw: decay of the first moment")
    beta2: float = key(0.95, "adamw: decay of the second moment")
    eps: float = key(1e-8, "adamw: added to the root of the second moment")
    momentum: float = key(0.95, "muon: decay of the momentum, which is Nesterov's")
    weight_decay: float = key(0.1, "decoupled decay of matrices; norms and embeddings have none")
    clip_norm: float = key(1.0, "largest global gradient norm")
    z_loss: float = key(0.0, "weight of the squared log-partition added to the loss")
    ema: Optional[float] = key(None, "decay of the moving average of the weights, kept beside them (null: none)")
    offload: bool = key(False, "GPU: keep masters, gradients and moments in host memory, and update there")
    max_skipped: int = key(10, "steps in a row skipped, after which the run goes back to a checkpoint, or ends (77)")


@dataclass
class Spike:
    sigmas: Optional[float] = key(
        None,
        "skip a step whose loss or gradient norm is so many deviations above the steps before, such as 10 (null: only "
        "what is not finite)",
    )
    window: int = key(128, "steps before whose median and deviation count")
    margin: int = key(100, "going back, pass over the data of so many steps before the first bad one, too")
    rollbacks: int = key(2, "times to go back to a checkpoint near one place before the run ends (77)")


@dataclass
class Integrity:
    digest_every: Optional[int] = key(
        None,
        "steps between comparisons of the bits of parameters and moments that processes hold copies of (null: never)",
    )
    replay_every: Optional[int] = key(
        None, "CPU: steps between those whose loss and gradients are computed twice and compared (null: never)"
    )


@dataclass
class Mesh:
    replica: int = key(1, "replicas of the sharded model, across slices or nodes; -1: the rest")
    fsdp: int = key(-1, "processes (xla: chips) that share one copy of the parameters; -1: the rest")
    context: int = key(1, "processes that share the positions of each row, for long rows; -1: the rest")
    tensor: int = key(1, "processes (xla: chips) that share heads and hidden units of each layer; -1: the rest")
    reduce_dtype: str = key("fp32", "fp32 or bf16: precision in which gradients are summed over processes")


@dataclass
class Backend:
    name: str = key("auto", "auto, cpu, cuda or xla (TPU: one process per host drives all its chips)")
    cache: str = key("~/.cache/gemcutter/xla", "xla: folder on this host that keeps compiled programs between starts")


@dataclass
class Tracker:
    name: str = key("wandb", "wandb (online), offline (W&B files for a later `wandb sync`) or none")
    project: str = key("gemcutter", "W&B project")
    entity: Optional[str] = key(None, "W&B team or user")
    group: Optional[str] = key(None, "W&B group")
    tags: list[str] = key([], "W&B tags")


@dataclass
class Checkpoint:
    every: int = key(1000, "steps between checkpoints; the last step is always saved")
    keep_last: int = key(3, "newest committed checkpoints that are kept")
    keep_every: Optional[int] = key(None, "keep each checkpoint whose step is a multiple of this for good")
    keep_hours: Optional[float] = key(None, "keep the newest checkpoint of each span of so many hours for good")
    directory: Optional[str] = key(
        None,
        "a folder or bucket (gs://..., s3://...) where each run's checkpoints get a folder of their own, named by run "
        "id (null: runs/<run_id>/checkpoints)",
    )
    bucket: Optional[str] = key(
        None,
        "a second place, such as gs://bucket/folder, that committed checkpoints are copied to in the background; the "
        "newest of both places is what a run resumes from, and what is scored and exported (null: none)",
    )
    bucket_every: Optional[int] = key(
        None, "steps between checkpoints that are copied to checkpoint.bucket (null: each); the last step always is"
    )
    max_failed: int = key(3, "failed saves in a row, to one place, before the run stops with exit code 79")
    retry_seconds: float = key(30.0, "pause before a failed save is tried again; doubles with each failure in a row")


@dataclass
class Hang:
    seconds: Optional[float] = key(
        None,
        "seconds without progress in a step or its data after which a process counts as hung, and all end (76) (null: "
        "ten times the longest wait so far, at least 300, which storage that stalls may take before it is given up)",
    )
    start_seconds: float = key(
        1800.0, "the same for all that is no step: start, the first steps (compiling), loads, saves and evaluations"
    )


@dataclass
class Evaluate:
    tasks: list[str] = key(["piqa", "arc_easy"], "benchmark tasks to score; empty for none")
    benchmarks: Optional[str] = key(None, "folder with the benchmark files (null: the variable GEMCUTTER_BENCHMARKS)")
    limit: Optional[int] = key(None, "score only the first so many items of each task")
    batch_tokens: int = key(4096, "tokens per forward pass while scoring")
    every: Optional[int] = key(None, "steps between held-out losses while training (null: never)")
    rows: int = key(64, "rows of held-out text per held-out loss")


@dataclass
class Profile:
    steps: Optional[list[int]] = key(
        None,
        "[first, last] step of which each process writes a torch.profiler trace to profiles/; not with backend=xla",
    )


@dataclass
class Export:
    format: str = key("hf", "hf: for transformers; jax: for the package gemma; keras: a preset of keras-hub")
    dtype: str = key("fp32", "fp32 or bf16: precision of the exported weights")
    output: Optional[str] = key(None, "folder to write (null: runs/<run_id>/exports/<format>-step-<step>)")


@dataclass
class Pretrained:
    folder: str = key("", "import: folder of the weights to take over")
    format: str = key(
        "hf", "hf: Hugging Face safetensors; jax: Orbax of the package gemma; keras: a preset of keras-hub"
    )


@dataclass
class Plan:
    document_tokens: Optional[int] = key(
        None,
        "plan: tokens of a document, of which attention sees its own (null: the mean of data.manifest, else a row)",
    )
    sweep: bool = key(
        False,
        "plan: try micro_batch, remat and mesh on hardware, and recommend the fastest that fits (TPUs: each compiled)",
    )
    compile: bool = key(
        True,
        "plan: on TPU hardware, compile the step with libtpu for that slice; where the packages of make setup-tpu are "
        "missing, or with false, formulas only",
    )
    output: Optional[str] = key(None, "plan: file that gets the plan as JSON (null: none)")


@dataclass
class Restarts:
    infrastructure: int = key(10, "after a kill, a crash, a lost host or connection")
    hang: int = key(5, "after a hang (76)")
    data: int = key(0, "after an error of data or storage (79)")


@dataclass
class Launch:
    name: str = key("local", "local: this machine")
    processes: Optional[int] = key(
        None,
        "training processes of each host (null: its share of the product of the mesh axes on CPU, one per GPU on CUDA, "
        "one on a TPU host)",
    )
    nodes: int = key(
        1, "hosts that run this same command, in a folder that all of them see; TPU hosts need no such key"
    )
    rendezvous: Optional[str] = key(None, "host:port where these hosts meet: of the first one, and free there")
    restarts: Restarts = section(
        Restarts,
        "train: how often it is started again by itself, in a row without a checkpoint of a later step in between",
    )


@dataclass
class Job:
    name: str = key("dev", "human name of the run; part of the default run_id and of the default data paths")
    run_id: Optional[str] = key(None, "directory under runs/ and W&B id (null: <name>-<8 hex of the identity keys>)")
    run: Optional[str] = key(None, "evaluate, export: run id or run directory (null: the run this configuration names)")
    step: Optional[int] = key(None, "evaluate, export: step of the checkpoint (null: the latest committed one)")
    weights: str = key("model", "evaluate, export: model, or ema (the average that a run with optim.ema keeps)")
    init_from: Optional[str] = key(
        None, "run id or run directory, such as `import` makes, whose latest weights a new run begins with; identity"
    )
    seed: int = key(0, "seed of initial weights and data order")
    steps: int = key(1000, "optimizer steps")
    tokens_per_step: int = key(65_536, "tokens of the global batch, until a stage of batch_ramp begins")
    batch_ramp: list[RampStage] = key([], "stages of other batch sizes; append to change")
    micro_batch: int = key(4, "rows per process (xla: per place of mesh.replica x mesh.fsdp) and forward pass")
    precision: str = key("bf16", "bf16 (compute; masters are fp32) or fp32")
    remat: str = key(
        "none", "none, selective (keep matrix products and attention) or block: what the backward pass computes again"
    )
    attention: str = key(
        "auto",
        "auto, reference, sdpa, documents, flex or splash (TPU: fused kernel, needs data.sequence_length to be a "
        "multiple of 128): what computes attention",
    )
    compile: bool = key(False, "compile blocks and loss with torch.compile: faster steps after a slower first one")
    data: Data = section(Data, "which tokens, in which order")
    model: Model = section(Model, "which Gemma")
    tokenizer: Tokenizer = section(Tokenizer, "train a SentencePiece model, or use one")
    optim: Optim = section(Optim, "optimizer and schedule")
    spike: Spike = section(Spike, "losses and gradients that stand out, and going back from them")
    integrity: Integrity = section(Integrity, "bits that nobody meant to change")
    mesh: Mesh = section(Mesh, "how processes share the model")
    backend: Backend = section(Backend, "device")
    tracker: Tracker = section(Tracker, "where metrics go besides metrics.jsonl")
    checkpoint: Checkpoint = section(Checkpoint, "when state is saved")
    hang: Hang = section(Hang, "how long a process may stand still")
    evaluate: Evaluate = section(Evaluate, "scoring")
    profile: Profile = section(Profile, "where the time of steps goes")
    export: Export = section(Export, "portable weights")
    pretrained: Pretrained = section(Pretrained, "weights of other software")
    curate: Curate = section(Curate, "raw text to curated text")
    tokenize: Tokenize = section(Tokenize, "curated text to token shards")
    plan: Plan = section(Plan, "what a job needs before anything is rented")
    launch: Launch = section(Launch, "where the job runs")
    hardware: Optional[str] = key(
        None, "plan: a machine or slice of conf/hardware.py, such as a3-mega or v5p-512 (null: memory only)"
    )


CHOICES = {
    "weights": ("model", "ema"),
    "precision": ("bf16", "fp32"),
    "remat": ("none", "selective", "block"),
    "attention": ("auto", "reference", "sdpa", "documents", "flex", "splash"),
    "data.packing": ("best_fit", "concat", "pad"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("cosine", "wsd", "constant"),
    "mesh.reduce_dtype": ("fp32", "bf16"),
    "backend.name": ("auto", "cpu", "cuda", "xla"),
    "tracker.name": ("wandb", "offline", "none"),
    "export.format": ("hf", "jax", "keras"),
    "pretrained.format": ("hf", "jax", "keras"),
    "export.dtype": ("fp32", "bf16"),
    "launch.name": ("local",),
    "curate.engine": ("local", "ray"),
    "curate.decontaminate.action": ("drop", "cut"),
}
SOURCE_KINDS = ("python_env", "local", "huggingface")
SOURCE_LISTS = (
    "curate.sources", "curate.reference", "curate.quality.good", "curate.quality.bad", "curate.toxicity.toxic",
    "curate.toxicity.clean",
)  # fmt: skip

# What a run is. A change of one of these makes another run, and is refused when a run is resumed. Everything else may
# change between restarts, and a change is logged. Of that is elastic, how the same run is computed: micro_batch,
# precision, remat, attention and compile, optim.offload, mesh, backend and launch, data.workers, data.cache. The result
# differs by rounding only; the state that is kept, masters and moments, is fp32 under every precision. And free, what
# is done with it: name, run_id, run, step, weights, steps, data.held_out, data.max_repetitions, optim.ema,
# optim.max_skipped, spike, integrity, tracker, checkpoint, hang, evaluate, profile, export, pretrained, plan, hardware,
# and the keys of curate, tokenizer and tokenize, whose effect on training is in the shards that data.manifest names.
# Of data.mixture the first stage is identity; later ones may be appended, at samples that the run has not reached. Of
# the batch size likewise: tokens_per_step is identity, and stages of batch_ramp may be appended. Learning rates so far
# are history, and those to come may be planned anew: steps, optim.decay_steps and optim.final_lr_ratio are free, and so
# is the choice between the schedules constant and wsd, which are one curve until the decay begins. `cosine` is another
# from the start.
IDENTITY = (
    "init_from", "model", "data.manifest", "data.sequence_length", "data.packing", "data.window_blocks", "seed",
    "tokens_per_step",
    "optim.name", "optim.peak_lr", "optim.warmup_steps", "optim.beta1", "optim.beta2", "optim.eps",
    "optim.momentum", "optim.weight_decay", "optim.clip_norm", "optim.z_loss",
)  # fmt: skip


LANES = 128  # of a TPU's vector registers: splash attention takes rows of whole multiples of it
# Object stores that can create a file only where there is none: gcsfs asks with ifGenerationMatch=0, s3fs with
# If-None-Match. `memory` ends with its process.
BUCKETS = ("gs", "gcs", "s3", "s3a", "memory")
AXES = ("replica", "fsdp", "context", "tensor")  # of the mesh, outermost first: processes of the last are neighbours


def get(job: Any, path: str) -> Any:
    """The value at a dotted path."""
    for part in path.split("."):
        job = getattr(job, part)
    return job


def batch_sizes(job: Job) -> dict[str, int]:
    """Tokens of a step, by the key that says so, in the order of the steps."""
    later = {f"batch_ramp[{n}].tokens_per_step": stage.tokens_per_step for n, stage in enumerate(job.batch_ramp)}
    return {"tokens_per_step": job.tokens_per_step, **later}


def tokens_of_step(job: Job, step: int) -> int:
    """Tokens of the global batch of a step; the first is 1."""
    begun = [stage.tokens_per_step for stage in job.batch_ramp if stage.from_step <= step]
    return begun[-1] if begun else job.tokens_per_step


def axes(job: Job, processes: int) -> dict[str, int]:
    """The size of each mesh axis, outermost first, where so many processes run."""
    sizes = {axis: getattr(job.mesh, axis) for axis in AXES}
    rest = processes // math.prod(n for n in sizes.values() if n != -1)
    return {axis: rest if n == -1 else n for axis, n in sizes.items()}


def attention_kernel(job: Job, device: str, context: int) -> str:
    """What computes attention on a device (cpu, cuda or xla) where so many processes share each row."""
    if job.attention != "auto":
        return job.attention
    if device == "cuda":
        return "flex" if job.compile else "sdpa"
    if device == "xla":
        return "reference" if job.data.sequence_length % LANES else "splash"
    return "documents" if device == "cpu" and context == 1 else "sdpa"


def planned_processes(job: Job) -> int | None:
    """Training processes of all hosts as far as configuration alone tells; None where it depends on the devices.

    With backend=xla the mesh is one of chips, of all hosts, and a host has one process.
    """
    if job.backend.name == "xla":
        return None
    if job.launch.processes is not None:
        return job.launch.processes * job.launch.nodes
    if job.backend.name == "cuda":
        return None
    sizes = [getattr(job.mesh, axis) for axis in AXES]
    fixed = math.prod(n for n in sizes if n != -1)
    return math.lcm(fixed, job.launch.nodes) if -1 in sizes else fixed  # each host has at least one


def identity(job: Job) -> dict[str, Any]:
    """The identity keys and their values, flat: what must not change when a run is resumed."""
    keys = {path: value for path, value in flatten(job).items() if path.startswith(IDENTITY)}
    return keys | {
        "optim.schedule": "constant or wsd" if job.optim.schedule in ("constant", "wsd") else job.optim.schedule,
        "data.mixture": dict(job.data.mixture[0].weights) if job.data.mixture else {},
    }


def run_id(job: Job) -> str:
    """The run's stable name: given, or `<name>-<8 hex of the identity keys>`."""
    return job.run_id if job.run_id is not None else named_by(job.name, identity(job))


def named_by(name: str, identity: dict[str, Any]) -> str:
    """The run id that follows from a name and what the run is."""
    return f"{name}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]}"


def run_directory(run_id: str) -> Path:
    """Where the run of this id lies."""
    return Path("runs", run_id)


def named_run(run: str) -> Path:
    """The run directory that a user names by its path or by the run's id."""
    return Path(run) if "/" in run or Path(run, "config.yaml").is_file() else run_directory(run)


def checkpoint_directory(job: Job) -> str:
    """Where the run's checkpoints go: a folder or a URL."""
    return checkpoints_of(run_directory(run_id(job)), run_id(job), job.checkpoint.directory)


def checkpoint_bucket(job: Job) -> str | None:
    """Where copies of the run's checkpoints go: a URL or a folder; None: nowhere."""
    bucket = job.checkpoint.bucket
    return None if bucket is None else checkpoints_of(run_directory(run_id(job)), run_id(job), bucket)


def checkpoints_of(run: Path, run_id: str, directory: str | None) -> str:
    """Where a run's checkpoints lie: `directory` is its `checkpoint.directory`, which runs may share."""
    return str(run / "checkpoints") if directory is None else f"{directory.rstrip('/')}/{run_id}"


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A (nested) dataclass as dotted paths to plain values."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(node):
        value, path = getattr(node, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, path + ".")
        elif isinstance(value, list):
            flat[path] = [dataclasses.asdict(v) if isinstance(v, (Source, Stage, RampStage)) else v for v in value]
        else:
            flat[path] = value
    return flat
