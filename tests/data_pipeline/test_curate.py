"""The curate job keeps its promises: every document accounted for, equal bytes, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.exits import ConfigError, DataError
from conf.schema import Job, Source
from data_pipeline import document
from data_pipeline.curate import columns, curate, reading
from data_pipeline.private.scrub import scrub

SENTENCES = "The mill of {0} stands by the river, and people of {0} come to have their grain ground there. "
GERMAN = "Die Mühle von {0} steht am Fluss, und die Leute aus {0} lassen dort ihr Korn mahlen. "
KEY = "AKIA" + "QWERTYUIOPASDFGH"


# These texts repeat themselves.
GOPHER_ALONE = {language: {"repetition": None, "c4": None, "fineweb": None} for language in ("en", "*")}


def prose(number: int) -> str:
    """Its lines are its own: numbers alone would not make them so."""
    return SENTENCES.format("Village" + "".join(chr(ord("a") + int(digit)) for digit in str(number))) * 5


def rows() -> list[dict[str, Any]]:
    return [
        {"id": "good", "text": prose(1), "license": "CC0-1.0", "language": "fr", "source": "village"},
        {"id": "short", "text": "Too short to keep."},
        {"id": "good", "text": prose(2) + " Write to ann@mail.example."},
        {"id": "again", "text": prose(1).replace(". ", ".\n")},
        {"id": "leak", "text": f"Key {KEY} of bob@mail.example, too short."},
        {"id": "german", "text": GERMAN.format("Aue") * 5},
        {"id": "blank", "text": " \n "},
        {"id": "numbers", "text": "3.14 2.71 " * 60},
        {"url": "https://docs.example/x", "text": prose(3)},
        {"text": prose(4)},
    ]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job over one JSON lines file with a document for each fate, one record of it broken."""
    source = tmp_path / "in" / "rows.jsonl"
    source.parent.mkdir()
    source.write_text("".join(json.dumps(row) + "\n" for row in rows()) + '{"text": "torn\n')
    job = Job()
    job.curate.output = str(tmp_path / "out" / "text")
    job.curate.sources = [Source(kind="local", name="", paths=[str(source)], license="MIT")]
    job.curate.thresholds = GOPHER_ALONE
    return job


def table(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*.parquet")):
        found += pq.read_table(path).to_pylist()
    return found


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_document_is_kept_or_removed_with_its_reason(job: Job) -> None:
    summary = curate(job)
    output = Path(job.curate.output)
    kept, removed = table(output), table(output / "removed")
    assert [row["id"] for row in kept[:3]] == ["good", "good~2", "german"]
    assert [(row["id"], row["reason"]) for row in removed[:5]] == [
        ("short", "gopher_too_few_words"),
        ("again", "exact_duplicate"),
        ("leak", "gopher_too_few_words"),
        ("blank", "empty"),
        ("numbers", "language_uncertain"),
    ]
    assert removed[5]["reason"] == "broken_record"
    assert removed[5]["text"] == ""  # it cannot be read well enough to be sure what it holds
    assert summary["documents_in"] == 11 == len(kept) + len(removed)
    assert summary["documents_kept"] == 5 == len(kept)
    assert sum(summary["dropped"].values()) == 6
    assert summary["sources"]["local"]["dropped"] == summary["dropped"]
    assert summary["languages"] == {"en": 4, "de": 1}
    assert summary["reused"] is False


def test_rows_have_the_columns_that_others_read(job: Job) -> None:
    curate(job)
    first, second, *_, last = table(Path(job.curate.output))
    names = list(first)
    assert names[:7] == ["id", "text", "url", "source", "language", "license", "quality"]
    assert (first["source"], first["language"], first["stated_language"], first["license"]) == (
        "village",
        "en",
        "fr",
        "CC0-1.0",
    )
    assert (second["source"], second["license"], second["scrubbed_email"]) == ("local", "MIT", 1)
    assert second["text"].endswith("Write to <EMAIL>.")
    assert last["url"] == "file:in/rows.jsonl#10"
    assert last["id"] == "local/" + hashlib.sha256(last["url"].encode()).hexdigest()[:16]
    assert 0 <= first["quality"] <= 1
    assert first["words"] == 95


def test_nothing_that_is_stored_holds_an_address_or_a_key(job: Job) -> None:
    curate(job)
    texts = [row["text"] for folder in ("", "removed") for row in table(Path(job.curate.output, folder))]
    assert "Key <KEY> of <EMAIL>, too short." in texts
    assert not any(KEY in text or "@mail" in text for text in texts)


def test_records_whose_names_are_personal_are_named_by_their_place(job: Job, tmp_path: Path) -> None:
    """Whatever comes before them: placeholders are alike, and would be told apart by who came first."""
    stated = [
        {"id": "+1 415-555-2671"},
        {"id": "+1 415-555-2672"},
        {"url": "https://forum.example/?of=ann@mail.example"},
        {"url": "https://forum.example/?of=bob@mail.example"},
        {"id": "+1 415-555-2673", "url": "https://forum.example/3"},
        {"id": "forum/4", "url": "https://forum.example/?of=bob@mail.example"},
    ]
    path = tmp_path / "in" / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": prose(n)} | one) + "\n" for n, one in enumerate(stated)))
    curate(job)
    found = table(Path(job.curate.output))
    places = [*(f"file:in/rows.jsonl#{n}" for n in (1, 2, 3, 4)), "https://forum.example/3"]
    named = [f"local/{hashlib.sha256(place.encode()).hexdigest()[:16]}" for place in places]
    assert [row["id"] for row in found] == [*named, "forum/4"]
    assert [row["url"] for row in found][2:4] == ["https://forum.example/?of=<EMAIL>"] * 2


def test_what_records_state_alike_is_scrubbed_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(reading, "scrub", lambda text, *more, **keys: seen.append(text) or scrub(text, *more, **keys))
    reading._scrubbed_again.cache_clear()
    path = Path(job.curate.sources[0].paths[0])
    stated = {"source": "a forum", "language": "en", "license": "CC0-1.0"}
    path.write_text("".join(json.dumps({"text": prose(n)} | stated) + "\n" for n in range(5)))
    curate(job)
    assert {text: seen.count(text) for text in stated.values()} == dict.fromkeys(stated.values(), 1)


def test_the_manifest_is_true(job: Job) -> None:
    job.curate.part_bytes = 1000
    summary = curate(job)
    output = Path(job.curate.output)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert len(manifest["files"]) == summary["parts"] > 1
    for folder, files in ((output, manifest["files"]), (output / "removed", manifest["removed"])):
        assert [file["name"] for file in files] == sorted(path.name for path in folder.glob("*.parquet"))
        for file in files:
            content = (folder / file["name"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
            part = pq.read_table(folder / file["name"])
            assert part.num_rows == file["documents"]
            assert sum(len(text.encode()) for text in part["text"].to_pylist()) == file["text_bytes"]
    assert manifest["counts"]["bytes_kept"] == sum(file["text_bytes"] for file in manifest["files"])
    assert manifest["config"]["language_confidence"] == 0.5
    assert manifest["lineage"] == summary["lineage"]


def test_bytes_do_not_depend_on_workers(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tmp_path / "in" / "many.jsonl"
    many.write_text("".join(json.dumps({"text": prose(n % 700)}) + "\n" for n in range(1000)))
    job.curate.sources[0].paths.append(str(many))
    job.curate.part_bytes = 50_000
    curate(job)
    one, job.curate.output, job.curate.workers = Path(job.curate.output), str(tmp_path / "three"), 3
    curate(job)
    assert digests(one) == digests(tmp_path / "three")
    assert len(list(one.glob("part-*"))) > 3


def test_limit_bytes_stops_a_source_the_same_way_for_any_workers(job: Job, tmp_path: Path) -> None:
    many = tmp_path / "in" / "many.jsonl"
    many.write_text("".join(json.dumps({"text": prose(n)}) + "\n" for n in range(3000)))
    job.curate.sources = [Source(paths=[str(many)], limit_bytes=100_000)]
    summary = curate(job)
    assert 100_000 <= summary["bytes_in"] < 101_000
    job.curate.output, job.curate.workers = str(tmp_path / "two"), 2
    assert curate(job)["documents_in"] == summary["documents_in"]


def test_a_second_call_reports_and_writes_nothing(job: Job) -> None:
    first = curate(job)
    before = {path: path.stat().st_mtime_ns for path in Path(job.curate.output).rglob("*")}
    job.curate.workers = 2
    assert curate(job) == first | {"reused": True}
    assert before == {path: path.stat().st_mtime_ns for path in Path(job.curate.output).rglob("*")}


def test_another_configuration_is_refused_and_named(job: Job) -> None:
    curate(job)
    before = digests(Path(job.curate.output))
    job.curate.language_confidence = 0.2
    job.curate.sources[0].license = "X"
    with pytest.raises(ConfigError) as error:
        curate(job)
    for part in (
        "curate.language_confidence was 0.5, is 0.2",
        "curate.sources[0].license was 'MIT', is 'X'",
        "choose another curate.output",
    ):
        assert part in str(error.value)
    assert digests(Path(job.curate.output)) == before


def test_other_input_files_are_refused_and_named(job: Job, tmp_path: Path) -> None:
    curate(job)
    with (tmp_path / "in/rows.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(ConfigError, match=r"curated from other files .*bytes was \d+, is \d+"):
        curate(job)


def test_a_foreign_folder_is_left_alone(job: Job) -> None:
    output = Path(job.curate.output)
    output.mkdir(parents=True)
    (output / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="exists and holds no curated text"):
        curate(job)
    assert (output / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda job: job.curate.sources.clear(), ConfigError, "curate.sources is empty"),
        (
            lambda job: setattr(job.curate, "languages", ["fi"]),
            DataError,
            r"none of 11 documents was kept \(.*unwanted 8",
        ),
        (
            lambda job: setattr(
                job.curate, "thresholds", {"*": {"gopher": {"max_words": 3}}, "en": {"gopher": {"max_words": 3}}}
            ),
            DataError,
            "none of 11 documents was kept",
        ),
        (
            lambda job: job.curate.sources[0].paths.append("/none/*.txt"),
            ConfigError,
            "'/none/\\*.txt' .* matches no file",
        ),
    ],
)
def test_when_there_is_nothing_to_keep_nothing_is_left_behind(
    job: Job, change: Callable[[Job], None], error: type[Exception], message: str
) -> None:
    change(job)
    with pytest.raises(error, match=message):
        curate(job)
    assert not Path(job.curate.output).exists()
    assert not Path(job.curate.output + ".partial").exists()


def test_a_source_without_documents_is_named(job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    job.curate.sources.append(Source(name="void", paths=[str(tmp_path / "empty.jsonl")]))
    with pytest.raises(DataError, match=r"source 'void' \(paths=.*empty\.jsonl.* gave no document"):
        curate(job)
    assert not Path(job.curate.output + ".partial").exists()


def test_of_a_torn_file_what_is_whole_is_curated_and_the_rest_counted(job: Job, tmp_path: Path) -> None:
    import zstandard

    torn = zstandard.compress("".join(json.dumps({"text": prose(n)}) + "\n" for n in range(5000)).encode())[:-10]
    (tmp_path / "in/torn.jsonl.zst").write_bytes(torn)
    before = curate(job)
    job.curate.output += "-torn"
    job.curate.sources[0].paths.append(str(tmp_path / "in/torn.jsonl.zst"))
    summary = curate(job)
    assert summary["dropped"]["damaged"] == 1
    assert summary["documents_in"] > before["documents_in"] + 100


@pytest.mark.parametrize("languages", [["de"], ["en"]])
def test_languages_keeps_only_those(job: Job, languages: list[str]) -> None:
    job.curate.languages = languages
    assert list(curate(job)["languages"]) == languages


def test_min_and_max_words_and_confidence_matter(job: Job, tmp_path: Path) -> None:
    words = {"gopher": {"min_words": 4, "max_words": 95}, "repetition": None, "c4": None, "fineweb": None}
    job.curate.thresholds, job.curate.language_confidence = {"en": words, "*": words}, 0.0
    summary = curate(job)
    assert "language_uncertain" not in summary["dropped"]
    assert summary["dropped"]["gopher_too_many_words"] >= 1
    assert "gopher_too_few_words" not in summary["dropped"]


def test_a_missing_extra_names_what_to_install(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycld2", None)
    with pytest.raises(ConfigError, match=r"pycld2, which is not installed: pip install 'gemcutter\[curate\]'"):
        curate(job)
    assert set(document.EXTRAS.values()) == {"curate", "hf"}


@pytest.mark.parametrize("module", ["numba", "phonenumbers", "trafilatura", "justext", "lxml_html_clean"])
def test_without_a_package_of_the_extra_curate_says_what_to_install(module: str, tmp_path: Path) -> None:
    """In a process that has imported none of them yet."""
    (tmp_path / "a.txt").write_text("A text.")
    program = f"import sys\nsys.modules[{module!r}] = None\n{PROGRAM}"
    command = [sys.executable, "-c", program, str(tmp_path / "out"), str(tmp_path / "a.txt")]
    message = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()[-1]
    assert f"ConfigError: curation needs the package {module}, which is not installed" in message


def test_every_package_of_the_extra_is_asked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    named = {re.split("[^a-z0-9_]", package)[0] for package in project["project"]["optional-dependencies"]["curate"]}
    assert named == {module for module, extra in document.EXTRAS.items() if extra == "curate"}


PROGRAM = """
import sys
from conf.schema import Job, Source
from data_pipeline.curate import curate
job = Job()
job.curate.thresholds = {language: {"repetition": None, "c4": None, "fineweb": None} for language in ("en", "*")}
job.curate.output = sys.argv[1]
job.curate.sources = [Source(paths=[sys.argv[2]])]
job.curate.part_bytes = 200_000
curate(job)
"""


def start(output: Path, source: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(output), str(source)], stderr=subprocess.PIPE)


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_run_publishes_nothing_and_the_next_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps({"text": prose(n)}) + "\n" for n in range(6000)))
    killed = start(tmp_path / "a", source)
    wait_for(tmp_path / "a.work", "read-*/000000", killed)

    # While it works, nobody else may.
    os.kill(killed.pid, signal.SIGSTOP)
    second = start(tmp_path / "a", source)
    _, message = second.communicate(timeout=60)
    assert b"another process is at work on" in message

    killed.kill()
    killed.communicate()
    assert not (tmp_path / "a").exists()
    for name in ("a", "b"):
        assert start(tmp_path / name, source).wait(120) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "many.jsonl"]


def test_a_full_disk_publishes_nothing_and_says_so(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    source.write_text("".join(json.dumps({"text": prose(n)}) + "\n" for n in range(2000)))
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n" + PROGRAM
    command = [sys.executable, "-c", limited, str(tmp_path / "a"), str(source)]
    message = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "DataError: writing" in message
    assert "nothing was published, and what was done is kept in" in message
    assert "free space or choose another curate.output" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.work", "many.jsonl"]


def test_schema_of_parts_and_removed_agree() -> None:
    assert columns.REMOVED.names == [*columns.KEPT.names, "reason"]
    assert columns.KEPT.field("text").type == pa.string()
