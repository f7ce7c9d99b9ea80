"""YAML files and overrides become one checked job; every mistake is listed at once, with what was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conf import compose, schema
from conf.exits import ConfigError

OPTIONS = [(group, option) for group, options in compose.groups().items() for option in options]
GOLDEN = {"train": ["train"], "train_experiment_demo": ["train", "experiment=demo"]}


def test_every_file_is_a_job_or_an_option(root: Path) -> None:
    files = {file.relative_to(root / "conf").with_suffix("").as_posix() for file in (root / "conf").rglob("*.yaml")}
    assert len(files) >= 32
    assert files == {"job", *schema.JOBS, *(f"{group}/{option}" for group, option in OPTIONS)}


@pytest.mark.parametrize("job", schema.JOBS)
def test_every_option_composes_for_every_job(job: str) -> None:
    assert len(OPTIONS) >= 25
    for group, option in OPTIONS:
        composed = compose.compose(job, [f"{group}={option}", "micro_batch=1"])  # so that each mesh divides the rows
        assert isinstance(composed, schema.Job)


def test_options_choose_what_they_are_called() -> None:
    """An option of a group with a name or a size is that name: `model=gemma_2b` trains gemma_2b."""
    for group, option in OPTIONS:
        section = getattr(compose.compose("train", [f"{group}={option}"]), group, None)
        for attribute in ("name", "size"):
            if hasattr(section, attribute):
                assert getattr(section, attribute) == option


def test_every_released_size_is_an_option() -> None:
    from trainer.model import SIZES

    assert set(compose.groups()["model"]) == set(SIZES)


@pytest.mark.parametrize("name", GOLDEN)
def test_composed_tree_is_the_golden_one(name: str, update_goldens: bool) -> None:
    """A default that changes shows up in review. Rewrite with `pytest tests/conf --update-goldens`."""
    command = [sys.executable, "-P", "-m", "launch", *GOLDEN[name], "--cfg", "job"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip("\n") + "\n"
    golden = Path(__file__).parent / "golden" / f"{name}.yaml"
    if update_goldens:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(shown)
    assert shown == golden.read_text()


def test_jobs_share_one_tree() -> None:
    """So that one run's keys can be given to any of them."""
    train, demo = compose.compose("train", []), compose.compose("train", ["experiment=demo"])
    for job in schema.JOBS:
        assert compose.compose(job, []) == (demo if job == "demo" else train)
        assert compose.compose(job, ["experiment=demo"]) == demo


def test_defaults_of_the_files_are_those_of_the_schema() -> None:
    """Files without overrides choose nothing else than schema.py says, so that `gemcutter config` tells the truth."""
    composed, default = schema.flatten(compose.compose("train", [])), schema.flatten(schema.Job())
    names = {"data.manifest", "data.held_out", "tokenizer.output", "tokenize.input", "tokenize.output", "curate.output"}
    assert {key for key in default if composed[key] != default[key]} == names  # `${name}` is filled in
    assert composed["data.manifest"] == "data/dev/tokens/manifest.json"


def test_issue_example() -> None:
    job = compose.compose("train", ["experiment=demo", "optim.peak_lr=1e-3", "mesh.fsdp=2", "model=tiny"])
    assert (job.name, job.optim.peak_lr, job.mesh.fsdp, job.model.size) == ("demo", 1e-3, 2, "tiny")
    plain = compose.compose("train", ["experiment=demo"])
    assert schema.run_id(job) != schema.run_id(plain)
    assert schema.run_id(compose.compose("train", ["experiment=demo", "mesh.fsdp=2"])) == schema.run_id(plain)


def test_all_mistakes_are_listed_at_once() -> None:
    wrong = [
        "optim.peak_ir=1e-3",
        "mesh.fsdp=two",
        "model=gema3_1b",
        "modle=tiny",
        "steps",
        "optim=5",
        "tracker.tags=7",
    ]
    with pytest.raises(ConfigError) as refusal:
        compose.compose("train", ["steps=10", *wrong, "seed=1"])
    head, *lines = str(refusal.value).splitlines()
    assert head == f"{len(wrong)} problems with the configuration:"
    assert len(lines) == len(wrong)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.peak_ir=1e-3", ["optim.peak_ir=1e-3", "no such key", "did you mean optim.peak_lr"]),
        ("peak_lr=1e-3", ["peak_lr=1e-3", "did you mean optim.peak_lr?"]),
        ("optim.sequence_length=8", ["did you mean", "data.sequence_length"]),
        ("modle=tiny", ["did you mean model"]),
        ("model=gemma3_1", ["model=gemma3_1", "no such option", "did you mean gemma3_1b"]),
        ("tracker=zzz", ["tracker=zzz", "known: none, offline, wandb"]),
        ("qqqqqq=1", ["qqqqqq=1", "`gemcutter config` lists every key"]),
        ("steps=ten", ["steps=ten", "could not be converted to Integer", "gemcutter config"]),
        ("optim.peak_lr=fast", ["optim.peak_lr=fast", "could not be converted to Float"]),
        ("steps=1.5", ["steps=1.5", "could not be converted to Integer"]),
        ("steps=null", ["steps", "not Optional"]),
        ("tracker.tags=7", ["tracker.tags=7"]),
        ("optim.beta1=[1,2]", ["optim.beta1"]),
        ("steps", ["'steps' is not an override", "write key=value"]),
        ("data=tonkens", ["data=tonkens", "known: own"]),
        ("steps=10,ten", ["steps=ten", "could not be converted to Integer"]),
        ("model=tiny,tinny", ["model=tinny", "did you mean tiny?"]),
    ],
)
def test_mistake_names_value_and_remedy(override: str, told: list[str]) -> None:
    (problem,) = compose.override_problems([override])
    for words in told:
        assert words in problem


@pytest.mark.parametrize(
    "override",
    ["steps=10", "steps=10,20", "optim.peak_lr=1", "run_id=null", "model=tiny", "model=tiny,gemma_2b",
     "experiment=demo", "tracker.tags=[a,b]", "curate.sources=[{kind: python_env, limit_bytes: 1000}]",
     "hydra.verbose=true", "data.manifest=data/${name}/x.json", "+experiment=demo", "checkpoint.keep_every=5"],
)  # fmt: skip
def test_sound_override_passes(override: str) -> None:
    assert compose.override_problems([override]) == []


def test_mappings_are_set_on_the_command_line() -> None:
    job = compose.compose("curate", ["data.max_repetitions={code: 4}", "curate.thresholds={*: {c4: null}, en: {}}"])
    assert job.data.max_repetitions == {"code": 4}
    assert job.curate.thresholds == {"*": {"c4": None}, "en": {}}
    command = [sys.executable, "-P", "-m", "launch", "train", "data.max_repetitions={code: 4}", "--cfg", "job"]
    assert "max_repetitions:\n    code: 4" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    again = compose.for_hydra(["data.max_repetitions={code: 4}"])  # as a worker gets them
    assert compose.compose("train", again).data.max_repetitions == {"code": 4}


def test_wrong_key_inside_a_source_is_told() -> None:
    with pytest.raises(ConfigError, match="pahts"):
        compose.compose("curate", ["curate.sources=[{kind: local, pahts: [a.txt]}]"])


def test_impossible_combination_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"micro_batch=3 .* use micro_batch=1\|2\|4"):
        compose.compose("train", ["micro_batch=3"])


def test_interpolation_that_does_not_resolve_is_told() -> None:
    with pytest.raises(ConfigError, match="nmae"):
        compose.compose("train", ["data.manifest=data/${nmae}/x.json"])
