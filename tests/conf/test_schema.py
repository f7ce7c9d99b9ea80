"""Keys, their checks, and what makes a run the same run."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf import schema
from conf.check import DECAYS, FRACTIONS, LONGEST_NAME, NOT_NEGATIVE, POSITIVE, POSITIVE_OR_NULL, check

KEYS = schema.flatten(schema.Job())
PARTLY = {"data.mixture", "optim.schedule"}  # identity is a part of what they say: see below
IDENTITY = sorted(schema.identity(schema.Job()).keys() - PARTLY)
# name and run_id are the readable part of the id itself.
OTHERS = sorted(set(KEYS) - set(IDENTITY) - {"name", "run_id"} - PARTLY)


def with_value(job: schema.Job, path: str, value: Any) -> schema.Job:
    job = copy.deepcopy(job)
    *sections, last = path.split(".")
    setattr(schema.get(job, ".".join(sections)) if sections else job, last, value)
    return job


def other_value(path: str) -> Any:
    """A value of the key's own kind that is not its default."""
    default = KEYS[path]
    if isinstance(default, dict):
        return {**default, "another": 1.0}
    if isinstance(default, list):
        return [*default, "another"]
    if isinstance(default, (int, float)):
        return default + 1
    return "another" if default is None else default + "-another"


def test_every_key_has_a_meaning() -> None:
    def documented(node: type) -> None:
        for item in dataclasses.fields(node):
            assert item.metadata["doc"].strip(), f"{node.__name__}.{item.name}"
            default = getattr(node(), item.name)
            if dataclasses.is_dataclass(default):
                documented(type(default))

    documented(schema.Job)
    documented(schema.Source)
    documented(schema.Stage)
    documented(schema.RampStage)


def test_keys_named_in_the_checks_exist() -> None:
    checked = (POSITIVE, POSITIVE_OR_NULL, NOT_NEGATIVE, FRACTIONS, DECAYS)
    assert set(schema.CHOICES).union(*checked) <= set(KEYS)
    for prefix in schema.IDENTITY:
        assert any(path == prefix or path.startswith(prefix + ".") for path in KEYS), prefix


def test_defaults_are_sound() -> None:
    assert check(schema.Job()) == []


# The contract's own lists (ARCHITECTURE section 2), so that a key cannot change sides unseen.
@pytest.mark.parametrize(
    "path",
    ["init_from", "model.size", "model.num_layers", "data.manifest", "data.sequence_length", "data.packing", "seed",
     "tokens_per_step", "optim.name", "optim.peak_lr", "optim.momentum",
     "optim.beta1", "optim.beta2", "optim.eps", "optim.weight_decay"],
)  # fmt: skip
def test_identity_key_makes_another_run(path: str) -> None:
    job = schema.Job()
    assert schema.run_id(with_value(job, path, other_value(path))) != schema.run_id(job)


@pytest.mark.parametrize(
    "path",
    ["mesh.replica", "mesh.fsdp", "mesh.context", "mesh.tensor", "mesh.reduce_dtype",
     "micro_batch", "precision", "remat", "launch.processes", "launch.nodes", "launch.restarts.data", "hang.seconds",
     "data.workers", "backend.name", "steps", "data.held_out", "tracker.name", "tracker.project", "checkpoint.every",
     "checkpoint.directory", "evaluate.tasks", "evaluate.every", "profile.steps", "optim.decay_steps",
     "optim.final_lr_ratio", "optim.max_skipped", "optim.ema", "weights", "batch_ramp", "attention", "compile",
     "optim.offload", "spike.sigmas", "spike.window", "spike.margin", "spike.rollbacks", "integrity.digest_every",
     "integrity.replay_every"],
)  # fmt: skip
def test_elastic_and_free_keys_keep_the_run(path: str) -> None:
    job = schema.Job()
    assert schema.run_id(with_value(job, path, other_value(path))) == schema.run_id(job)


@given(changed=st.sets(st.sampled_from(sorted({*IDENTITY, *OTHERS})), max_size=8))
def test_run_id_follows_identity_keys_and_nothing_else(changed: set[str]) -> None:
    job = default = schema.Job()
    for path in changed:
        job = with_value(job, path, other_value(path))
    assert (schema.run_id(job) != schema.run_id(default)) == bool(changed & set(IDENTITY))


def test_constant_and_wsd_are_one_run_and_cosine_is_another() -> None:
    cosine, wsd, constant = (with_value(schema.Job(), "optim.schedule", name) for name in ("cosine", "wsd", "constant"))
    assert schema.run_id(wsd) == schema.run_id(constant) != schema.run_id(cosine)


def test_the_first_stage_of_a_mixture_is_identity_and_later_ones_are_appended() -> None:
    def run_id(*stages: schema.Stage) -> str:
        return schema.run_id(with_value(schema.Job(), "data.mixture", list(stages)))

    first = schema.Stage(weights={"web": 1.0})
    assert run_id(first) == run_id(first, schema.Stage(from_sample=5000, weights={"code": 1.0}))
    assert run_id(first) != run_id(schema.Stage(weights={"web": 2.0}))
    assert run_id(schema.Stage()) == run_id()  # every source by its rows, whether it is said or not


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ([{"from_sample": 5}], "mixture[0].from_sample=5 must be 0"),
        ([{}, {"from_sample": 7}, {"from_sample": 7}], "mixture[2].from_sample=7 must be at least 8"),
        ([{"manifest": "a"}], "mixture[0].manifest=a must be null"),
        ([{"weights": {"a": -1.0}}], "mixture[0].weights.a=-1.0 must be"),
        ([{"weights": {"a": float("nan")}}], "mixture[0].weights.a=nan must be"),
        ([{"weights": {"a": 0.0}}], "mixture[0].weights={'a': 0.0} are all 0"),
    ],
)
def test_a_mixture_that_cannot_work_is_refused(stages: list[dict[str, Any]], problem: str) -> None:
    job = with_value(schema.Job(), "data.mixture", [schema.Stage(**stage) for stage in stages])
    assert any(problem in found for found in check(job))


def test_run_id_reads_name_and_eight_hex_digits() -> None:
    assert schema.run_id(with_value(schema.Job(), "name", "first")).startswith("first-")
    suffix = schema.run_id(schema.Job()).removeprefix("dev-")
    assert len(suffix) == 8
    assert int(suffix, 16) >= 0


def test_given_run_id_is_kept() -> None:
    assert schema.run_id(with_value(schema.Job(), "run_id", "mine")) == "mine"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        # each message names the value and what to do
        ({"precision": "fp16"}, ["precision=fp16", "bf16, fp32"]),
        ({"optim.max_skipped": 0}, ["optim.max_skipped=0", "greater than 0"]),
        ({"spike.sigmas": 0.0}, ["spike.sigmas=0.0", "greater than 0, or null"]),
        ({"spike.window": 0}, ["spike.window=0", "greater than 0"]),
        ({"spike.rollbacks": -1}, ["spike.rollbacks=-1", "must not be negative"]),
        ({"integrity.digest_every": 0}, ["integrity.digest_every=0", "greater than 0, or null"]),
        (
            {"optim.schedule": "wsd", "optim.decay_steps": 950, "steps": 1000},
            ["optim.decay_steps=950", "optim.warmup_steps=100", "steps=1050"],
        ),
        ({"optim.schedule": "linear"}, ["optim.schedule=linear", "cosine, wsd, constant"]),
        ({"steps": 0}, ["steps=0", "greater than 0"]),
        ({"seed": -1}, ["seed=-1", "not be negative"]),
        ({"optim.beta2": 1.5}, ["optim.beta2=1.5", "between 0 and 1"]),
        ({"optim.beta1": 1.0}, ["optim.beta1=1.0", "below 1"]),
        ({"optim.beta2": 1.0}, ["optim.beta2=1.0", "below 1"]),
        ({"tokens_per_step": 5000}, ["tokens_per_step=5000", "data.sequence_length=2048", "use tokens_per_step=4096"]),
        ({"micro_batch": 5}, ["micro_batch=5", "32 rows", "use micro_batch=1|2|4|8|16|32"]),
        ({"mesh.fsdp": 5}, ["5 processes cannot share evenly", "32 rows", "use one of [1, 2, 4, 8, 16, 32] processes"]),
        ({"mesh.fsdp": 3, "launch.processes": 2}, ["mesh.fsdp=3", "launch.processes=2", "set mesh.fsdp=-1"]),
        pytest.param(
            {"mesh.fsdp": 0},
            ["mesh.fsdp=0", "-1 (the rest) or at least 1"],
        ),
        pytest.param(
            {"launch.processes": 0},
            ["launch.processes=0", "greater than 0"],
        ),
        (
            {"launch.nodes": 2},
            ["launch.nodes=2 hosts need a place to meet", "launch.rendezvous=<first host>:<free port>"],
        ),
        ({"launch.rendezvous": "node-0:29400"}, ["launch.rendezvous=node-0:29400", "set launch.nodes"]),
        ({"launch.nodes": 2, "launch.rendezvous": "node-0"}, ["launch.rendezvous=node-0 is not host:port"]),
        ({"launch.nodes": 2, "launch.rendezvous": "node-0:99999"}, ["launch.rendezvous=node-0:99999 is not host:port"]),
        *(
            ({"launch.nodes": 2, "launch.rendezvous": f"{host}:29400"}, [f"{host}:29400 is each host's own loopback"])
            for host in ("localhost", "LocalHost.localdomain", "127.0.0.1", "127.8.0.1", "0.0.0.0")
        ),
        (
            {"launch.nodes": 3, "launch.rendezvous": "node-0:29400", "mesh.fsdp": 4},
            ["mesh.fsdp=4 is 4 processes, which launch.nodes=3 hosts cannot share evenly", "a multiple of 3"],
        ),
        (
            {"launch.nodes": 2, "launch.rendezvous": "node-0:29400", "mesh.fsdp": 4, "launch.processes": 4},
            ["mesh.fsdp=4 does not match launch.processes x launch.nodes=8"],
        ),
        ({"launch.restarts.hang": -1}, ["launch.restarts.hang=-1", "not be negative"]),
        *(
            (
                {"run_id": "checkpoints", "checkpoint.directory": one, "checkpoint.bucket": other},
                [f"checkpoint.bucket={other}", "so does checkpoint.directory", "name a second place, or none"],
            )
            for one, other in [
                ("gs://a/b", "gs://a/b/"),
                ("gs://a/b", "gcs://a//b"),
                ("all/here", "./all/x/../here"),
                ("all/here", f"file://{os.getcwd()}/all/here"),
                (None, "runs/checkpoints"),  # where that run has its own
            ]
        ),
        ({"hang.seconds": 0.0}, ["hang.seconds=0.0", "greater than 0"]),
        ({"mesh.fsdp": -1, "mesh.replica": -1}, ["only one axis may be -1", "mesh.replica and mesh.fsdp"]),
        ({"mesh.fsdp": -1, "mesh.tensor": -1}, ["only one axis may be -1", "mesh.fsdp and mesh.tensor"]),
        ({"mesh.tensor": 3, "launch.processes": 2}, ["x mesh.tensor=3 does not match launch.processes=2"]),
        (
            {"mesh.context": 3, "mesh.tensor": 5},
            ["data.sequence_length=2048 is not a multiple of mesh.context=3 x mesh.tensor=5"],
        ),
        ({"attention": "splash", "backend.name": "cuda"}, ["attention=splash with backend=cuda", "use attention=auto"]),
        ({"attention": "splash", "backend.name": "cpu"}, ["attention=splash with backend=cpu", "use attention=auto"]),
        (
            {"attention": "splash", "data.sequence_length": 4000, "tokens_per_step": 64_000},
            ["multiples of 128", "data.sequence_length=4000", "data.sequence_length=3968"],
        ),
        (
            {"mesh.tensor": 3, "backend.name": "cuda"},
            ["data.sequence_length=2048 is not a multiple of mesh.context=1 x mesh.tensor=3"],
        ),
        ({"profile.steps": [12, 10]}, ["profile.steps=[12, 10]", "such as [10,12], or null"]),
        ({"profile.steps": [10]}, ["profile.steps=[10]", "the first and the last step"]),
        ({"profile.steps": [0, 2]}, ["profile.steps=[0, 2]", "the first and the last step"]),
        ({"curate.sources": [schema.Source(kind="web")]}, ["kind=web", "python_env, local, huggingface"]),
        ({"curate.sources": [schema.Source(kind="local")]}, ["curate.sources[0].paths", "name at least one glob"]),
        ({"curate.languages": ["en", "english"]}, ["curate.languages names english", "such as en"]),
        ({"curate.thresholds": {"*": {}, "EN": {}}}, ["curate.thresholds names EN", "such as en"]),
        ({"curate.quality.least": 0.3}, ["curate.quality.least=0.3", "curate.quality.good"]),
        (
            {"curate.quality.good": [schema.Source()], "curate.quality.bad": [schema.Source(kind="python_env")]},
            ["curate.quality.good[0].paths is empty"],
        ),
        (
            {"curate.toxicity.toxic": [schema.Source(paths=["a.txt"])]},
            ["curate.toxicity.clean is empty", "documents of both kinds"],
        ),
        ({"curate.duplicates.repeated_in": 1}, ["curate.duplicates.repeated_in=1", "2 or more"]),
        ({"curate.duplicates.similarity": 1.5}, ["curate.duplicates.similarity=1.5", "between 0 and 1"]),
        ({"curate.engine": "spark"}, ["curate.engine=spark", "local, ray"]),
        (
            {"curate.calibrated": "a.json", "curate.reference": [schema.Source(paths=["a.txt"])]},
            ["curate.calibrated=a.json", "give one"],
        ),
        ({"curate.sources": [schema.Source(kind="huggingface")]}, ["curate.sources[0].dataset", "name a dataset"]),
    ],
)
def test_impossible_combination_names_value_and_remedy(values: dict[str, Any], told: list[str]) -> None:
    job = schema.Job()
    for path, value in values.items():
        job = with_value(job, path, value)
    problems = check(job)
    assert len(problems) == 1, problems
    for words in told:
        assert words in problems[0]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("mesh.context", 2, ["mesh.context=2", "use mesh.context=1"]),
        ("mesh.tensor", 3, ["data.sequence_length=2048 is not a multiple of", "mesh.tensor=3"]),
        ("optim.name", "muon", ["optim.name=muon", "use optim=adamw"]),
        ("optim.offload", True, ["optim.offload=true", "use optim.offload=false"]),
        ("compile", True, ["compile=true", "use compile=false"]),
        ("attention", "sdpa", ["attention=sdpa", "use attention=auto|reference|splash"]),
        ("attention", "flex", ["attention=flex", "use attention=auto|reference|splash"]),
        ("profile.steps", [10, 12], ["profile.steps=[10, 12]", "torch.profiler", "use profile.steps=null"]),
        ("launch.nodes", 2, ["launch.nodes=2", "learns the other hosts", "use launch.nodes=1"]),
        ("launch.processes", 4, ["launch.processes=4", "all chips of a host", "use launch.processes=null"]),
    ],
)
def test_what_does_not_run_on_xla_is_refused_with_a_remedy(path: str, value: Any, told: list[str]) -> None:
    xla = with_value(schema.Job(), "backend.name", "xla")
    assert check(xla) == []
    problems = check(with_value(xla, path, value))
    assert len(problems) == 1, problems
    for words in told:
        assert words in problems[0]


@pytest.mark.parametrize("path", ["attention", "mesh.tensor", "mesh.fsdp", "remat", "precision", "optim.ema"])
def test_what_runs_on_xla_passes(path: str) -> None:
    values = {"attention": "splash", "mesh.tensor": 4, "mesh.fsdp": 5, "remat": "block", "precision": "fp32"}
    xla = with_value(schema.Job(), "backend.name", "xla")
    assert check(with_value(xla, path, values.get(path, 0.999))) == []


def test_chips_of_a_slice_are_no_processes_of_a_host() -> None:
    job = schema.Job(backend=schema.Backend("xla"), mesh=schema.Mesh(replica=2, fsdp=128, tensor=2))
    assert schema.planned_processes(job) is None
    assert schema.planned_processes(with_value(job, "backend.name", "cpu")) == 512


@pytest.mark.parametrize(
    ("mesh", "hardware", "backend", "sound"),
    [
        ({"fsdp": 256}, "v5e-256", "xla", True),
        ({"fsdp": 64, "tensor": 4}, "v5e-256", "auto", True),
        ({"fsdp": 256}, "v5p-512", "xla", True),  # which has 256 chips
        ({"replica": 2, "fsdp": 256}, "v5e-256", "xla", True),
        ({"fsdp": 16}, "v5e-256", "xla", False),
        ({"fsdp": 16}, "v5e-256", "auto", False),
        ({"replica": 3, "fsdp": 128}, "v5e-256", "xla", False),
        ({"replica": 2, "fsdp": -1}, "v5e-256", "xla", True),
        ({"fsdp": 16}, "v5e-256", "cpu", True),  # a plan may ask what a small run would cost there
        ({"fsdp": 16}, "a3-mega", "auto", True),
    ],
)
def test_mesh_is_one_of_whole_slices(mesh: dict[str, int], hardware: str, backend: str, sound: bool) -> None:
    job = schema.Job(hardware=hardware, backend=schema.Backend(backend), mesh=schema.Mesh(**mesh))
    problems = check(job, "plan")
    assert (problems == []) == sound
    if not sound:
        assert f"hardware={hardware} has 256: set mesh.fsdp=-1" in problems[0]


@pytest.mark.parametrize(
    ("attention", "device", "context", "length", "kernel"),
    [
        ("auto", "xla", 1, 2048, "splash"),
        ("auto", "xla", 1, 2000, "reference"),
        ("reference", "xla", 1, 2048, "reference"),
        ("auto", "cuda", 1, 2048, "sdpa"),
        ("auto", "cpu", 1, 2048, "documents"),
        ("auto", "cpu", 2, 2048, "sdpa"),
    ],
)
def test_kernel_of_attention_follows_the_device(
    attention: str, device: str, context: int, length: int, kernel: str
) -> None:
    job = schema.Job(attention=attention, data=schema.Data(sequence_length=length))
    assert schema.attention_kernel(job, device, context) == kernel


def test_all_impossible_values_are_listed() -> None:
    job = with_value(with_value(with_value(schema.Job(), "steps", 0), "precision", "fp8"), "seed", -4)
    assert len(check(job)) == 3


@given(
    rows=st.integers(1, 96),
    micro_batch=st.integers(1, 96),
    replica=st.integers(1, 4),
    fsdp=st.integers(1, 4),
)
def test_every_remedy_works(rows: int, micro_batch: int, replica: int, fsdp: int) -> None:
    """A step is refused exactly when it cannot be shared evenly, and what the message proposes is taken."""
    job = schema.Job(tokens_per_step=rows * 2048, micro_batch=micro_batch, mesh=schema.Mesh(replica=replica, fsdp=fsdp))
    problems = check(job)
    assert (problems == []) == (rows % (micro_batch * replica * fsdp) == 0)
    if problems and "use micro_batch=" in problems[0]:
        for remedy in problems[0].rsplit("=", 1)[1].split("|"):
            assert check(dataclasses.replace(job, micro_batch=int(remedy))) == []


def test_user_names_a_run_by_id_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert schema.named_run("dev-01234567") == Path("runs/dev-01234567")
    assert schema.named_run("elsewhere/dev") == Path("elsewhere/dev")
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "config.yaml").touch()
    assert schema.named_run("copied") == Path("copied")


def test_own_run_directory_is_never_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").touch()
    assert schema.run_directory("mine") == Path("runs/mine")


@pytest.mark.parametrize("path", ["name", "run_id"])
@pytest.mark.parametrize(
    "value",
    ["", ".", "..", ".hidden", "../out", "a/b", "/tmp/a", "a b", "a:b", "a#b", "a?", "100%", "a\\b", "é", "a\n"],
)
def test_name_that_leaves_runs_or_breaks_an_id_is_refused(path: str, value: str) -> None:
    (problem,) = check(with_value(schema.Job(), path, value))
    assert f"{path}={value!r}" in problem
    assert "use letters, digits, - _ and ." in problem


@pytest.mark.parametrize("value", ["dev", "a.b", "_x", "-x", "gemma3-1b_v2.1", "7"])
def test_plain_names_pass(value: str) -> None:
    assert check(schema.Job(name=value, run_id=value)) == []


def test_longest_name_still_gives_a_run_id_that_passes() -> None:
    """Also when the id is given back, as a sweep does."""
    job = schema.Job(name="n" * LONGEST_NAME)
    assert check(schema.Job(name=job.name, run_id=schema.run_id(job))) == []
    (problem,) = check(schema.Job(name=job.name + "n"))
    assert "has 101 characters: use at most 100" in problem
    (problem,) = check(schema.Job(run_id="n" * 129))
    assert "has 129 characters: use at most 128" in problem


def test_runs_that_share_a_folder_of_checkpoints_do_not_mix(tmp_path: Path) -> None:
    """`run_id=a steps=100` and `run_id=b steps=200` are alike in every identity key."""
    shared = schema.Checkpoint(directory=str(tmp_path))
    first, second = (schema.Job(run_id=run_id, checkpoint=shared) for run_id in ("a", "b"))
    assert schema.checkpoint_directory(first) == f"{tmp_path}/a"
    assert schema.checkpoint_directory(second) == f"{tmp_path}/b"
    assert schema.checkpoint_directory(schema.Job(run_id="a")) == "runs/a/checkpoints"
    # A run directory that was moved finds the same checkpoints.
    assert schema.checkpoints_of(tmp_path / "moved", "a", str(tmp_path)) == f"{tmp_path}/a"
    assert schema.checkpoints_of(tmp_path / "moved", "a", "gs://bucket/runs/") == "gs://bucket/runs/a"
    assert schema.checkpoints_of(tmp_path / "moved", "a", None) == f"{tmp_path}/moved/checkpoints"
