"""Items of benchmarks, from the files they are published in and from any other file of questions.

What identifies an item is its question, in each form in which it may stand in a text; answers tell a question that was
copied from one that anybody might ask.
"""

from __future__ import annotations

import ast
import bz2
import csv
import fnmatch
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from conf.exits import ConfigError, DataError
from data_pipeline.document import require
from data_pipeline.sources import lines

Record = dict[str, Any]
Rows = Literal["by suffix", "no header", "tabs", "six lines"]


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    name     within the benchmark: its id, else the file and its number there
    forms    texts of which each is the question: with and without its context, a gap left open and filled
    answers  right ones, in any of their spellings
    others   what else stands near the question where it was copied: wrong choices, a passage to read
    """

    benchmark: str
    name: str
    forms: tuple[str, ...]
    answers: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Texts without anything in them are none, and none counts twice."""
        for field in ("forms", "answers", "others"):
            object.__setattr__(self, field, tuple(dict.fromkeys(filter(str.strip, getattr(self, field)))))


@dataclass(frozen=True)
class Evaluation:
    """The items of one benchmark, the files they come from (name -> sha256), and which of their fields were taken."""

    benchmark: str
    files: dict[str, str]
    items: list[Item]
    fields: str


# Names by which fields of unknown files are recognised, the first that a record has.
QUESTIONS = ("question", "prompt", "query", "problem", "goal", "question_stem", "stem", "sentence", "input", "text")
CONTEXTS = ("context", "ctx")
PASSAGES = ("passage", "article", "support")
ANSWERS = ("answer", "answers", "target", "targets", "solution", "canonical_solution", "code", "output", "completion")
CHOICES = ("choices", "options", "endings")
KEYS = ("answerKey", "answer_key", "label", "gold", "correct", "answer")
NAMES = ("id", "task_id", "qid", "question_id", "name", "doc.id")


@dataclass(frozen=True)
class Fields:
    """Which fields of a record hold what; an empty tuple where none does. Names may lead inside: `doc.query`."""

    question: tuple[str, ...] = QUESTIONS
    context: tuple[str, ...] = CONTEXTS
    passage: tuple[str, ...] = PASSAGES
    answers: tuple[str, ...] = ANSWERS
    choices: tuple[str, ...] = CHOICES
    key: tuple[str, ...] = KEYS


def read(benchmark: str, paths: Sequence[Path], fields: Fields | None = None) -> Evaluation:
    """Items of any files: JSON, JSON lines, CSV, TSV, Parquet, Arrow, a text of one item a line; plain or compressed.

    With `fields` None they are recognised by their names, and where no question is, each field of text is taken for a
    question. Raises ConfigError where a file is of no such form or lacks the question, DataError where one does not
    parse.
    """
    files, items, taken = {}, [], ""
    for path in _with_names(paths):
        files[path[0]] = _digest(path[1])
        records = list(_records(path[1]))
        used = fields or Fields()
        if fields is None and records and not any(_first(record, QUESTIONS) for _, record in records[:10]):
            texts = sorted({name for _, record in records for name, value in record.items() if isinstance(value, str)})
            how = f"every field of text: {', '.join(texts)}"
            items += [
                Item(benchmark, _name(record, path[0], n), tuple(record[t] for t in texts if _is_text(record.get(t))))
                for n, (_, record) in enumerate(records)
            ]
        else:
            asked = sorted({found for _, r in records for found in [_which(r, used.question)] if found})
            how = f"question: {', '.join(asked)}"
            for n, (place, record) in enumerate(records):
                if fields is not None and not _first(record, fields.question):
                    raise ConfigError(
                        f"{path[1]}, {place}: there is no text in {' or '.join(fields.question)}; the fields are "
                        f"{', '.join(record)}: name the field that holds the question"
                    )
                items.append(_item(benchmark, _name(record, path[0], n), record, used))
        taken = how if not taken or taken == how else f"{taken}; {how}"
    if not any(item.forms for item in items):
        raise DataError(f"{', '.join(map(str, paths))}: no item of benchmark {benchmark!r} in there: correct the paths")
    return Evaluation(benchmark, files, _named_once([item for item in items if item.forms]), taken)


def published(benchmark: str, folder: Path) -> Evaluation:
    """Items of one of the benchmarks in `LAYOUTS`, from a folder with its files as they are published.

    Raises ConfigError where it is not known or the folder holds none of its files, DataError where one does not parse.
    """
    if benchmark not in LAYOUTS:
        raise ConfigError(
            f"no layout is known for benchmark {benchmark!r}; there are {', '.join(LAYOUTS)}: read its files"
        )
    layout = LAYOUTS[benchmark]
    inside = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    names = [name for name in inside if any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.files)]
    if not names:
        raise ConfigError(f"{folder} holds none of the files of benchmark {benchmark!r}: {', '.join(layout.files)}")
    items: list[Item] = []
    for name in names:
        for n, (place, record) in enumerate(_records(inside[name], layout.rows)):
            try:
                # Names hold no folders above the benchmark's.
                items.append(Item(benchmark, _name(record, name, n), *map(tuple, layout.item(record))))
            except (AttributeError, KeyError, IndexError, SyntaxError, TypeError, ValueError) as error:
                raise DataError(
                    f"{inside[name]}, {place}: this is no item as {benchmark} is published ({error!r}): get the file "
                    "again, or name its fields as of an unknown benchmark"
                ) from error
    return Evaluation(
        benchmark, {name: _digest(inside[name]) for name in names}, _named_once(items), f"as {benchmark} is published"
    )


# ---- records of a file -----------------------------------------------------------------------------------------------


def _records(path: Path, rows: Rows = "by suffix") -> Iterator[tuple[str, Record]]:
    """(place in the file, record). Rows of tables without a header have their columns by number: `0`, `1`."""
    content = _content(path)
    suffix = path.suffix.lower()
    kind = Path(path.stem).suffix.lower() if suffix in (".gz", ".bz2", ".zst") else suffix
    if kind in (".parquet", ".arrow", ".feather"):
        yield from _columns(path, content, kind)
        return
    if suffix != kind:
        content = _unpacked(path, content, suffix)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}): convert the file to UTF-8") from error
    if rows == "tabs":
        yield from _rows(path, text, "\t", header=False)
    elif rows == "six lines":
        yield from _six_lines(path, text)
    elif kind in (".jsonl", ".ndjson"):
        yield from _json_lines(path, text)
    elif kind == ".json":
        yield from _json(path, text)
    elif kind in (".csv", ".tsv"):
        yield from _rows(path, text, "," if kind == ".csv" else "\t", header=rows != "no header")
    elif kind in (".txt", ".lst"):
        yield from _lines(text)
    else:
        raise ConfigError(
            f"{path}: items are read from .jsonl, .json, .csv, .tsv, .parquet, .arrow and .txt, also with .gz, .bz2 or "
            ".zst behind: convert the file, or correct the path"
        )


def _lines(text: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", {"text": line.rstrip("\r")}


def _unpacked(path: Path, content: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        require("zstandard")
    try:
        if suffix == ".bz2":
            return bz2.decompress(content)
        unpack = lines.zstd if suffix == ".zst" else lines.gzip
        return b"".join(unpack(io.BytesIO(content), len(content)))
    except (OSError, EOFError, ValueError, lines.DamagedError) as error:
        raise DataError(f"{path} does not unpack ({error}): get the file again") from error


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: no JSON ({error.msg} in column {error.colno}): repair the line"
            ) from error
        except (ValueError, RecursionError) as error:  # a number too long, lists too deep
            raise DataError(f"{path}, line {number}: no item ({error}): repair the line") from error
        yield f"line {number}", _object(path, f"line {number}", record)


def _json(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    """A list of objects, or the one list of objects that an object holds."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: no JSON ({error.msg}): repair the file; of JSON lines, name it .jsonl"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no items ({error}): repair the file") from error
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        content = lists[0] if len(lists) == 1 else [content]
    if not isinstance(content, list):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a list of items: rewrite it as one")
    for number, record in enumerate(content, 1):
        yield f"item {number}", _object(path, f"item {number}", record)


def _object(path: Path, place: str, record: object) -> Record:
    if isinstance(record, str):
        return {"text": record}
    if not isinstance(record, dict):
        raise DataError(f"{path}, {place}: holds a {type(record).__name__}, not an object of fields: rewrite it as one")
    return record


def _rows(path: Path, text: str, delimiter: str, *, header: bool) -> Iterator[tuple[str, Record]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for row in rows:
            if not row:
                continue
            if header and names is None:
                names = row
                continue
            if names is not None and len(row) != len(names):
                raise DataError(
                    f"{path}, line {rows.line_num}: {len(row)} columns, where the header has {len(names)}: "
                    "repair the line"
                )
            yield f"line {rows.line_num}", dict(zip(names or map(str, range(len(row))), row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {rows.line_num}: no {path.suffix[1:].upper()} ({error}): repair the line"
        ) from error


def _six_lines(path: Path, text: str) -> Iterator[tuple[str, Record]]:
    """A question, the number of the right choice, four choices."""
    lines = text.rstrip("\n").split("\n")
    if len(lines) % 6:
        raise DataError(f"{path}: {len(lines)} lines, which are no items of six: get the file again")
    for at in range(0, len(lines), 6):
        yield f"line {at + 1}", {"question": lines[at], "label": lines[at + 1], "choices": lines[at + 2 : at + 6]}


def _columns(path: Path, content: bytes, kind: str) -> Iterator[tuple[str, Record]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if kind == ".parquet":
            table = pq.read_table(io.BytesIO(content))
        else:  # `datasets` writes streams
            reader = pa.ipc.open_file if content.startswith(b"ARROW1") else pa.ipc.open_stream
            table = reader(pa.BufferReader(content)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} does not read as {kind[1:]} ({str(error).splitlines()[0]}): get the file again"
        ) from error
    for number, record in enumerate(table.to_pylist()):
        yield f"row {number}", record


# ---- an item of a record ---------------------------------------------------------------------------------------------


def _item(benchmark: str, name: str, record: Record, fields: Fields) -> Item:
    question, context = _first(record, fields.question), _first(record, fields.context)
    offered = _value(record, fields.choices)
    choices = _texts(offered)
    answers = _texts(_value(record, fields.answers))
    key = _value(record, fields.key)
    right = _chosen(choices, key, _labels(offered))
    if right is not None:
        answers = [choices[right]]
    return Item(
        benchmark,
        name,
        (f"{context} {question}".strip(),),
        tuple(answers),
        (*(choice for n, choice in enumerate(choices) if n != right), _first(record, fields.passage)),
    )


def _chosen(choices: Sequence[str], key: object, labels: Sequence[str] = ()) -> int | None:
    """Which choice a label, or a letter or a number where they have none, names; None where it names none."""
    text = str(key).strip().strip("()").upper()
    if len(labels) == len(choices) > 0:
        return labels.index(text) if text in labels else None
    number = ord(text) - ord("A") if len(text) == 1 and text.isalpha() else int(text) if text.isdecimal() else -1
    return number if 0 <= number < len(choices) else None


def _value(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    for name in names:
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value not in (None, "", []):
            return value
    return None


def _which(record: Record, names: Iterable[str]) -> str:
    return next((name for name in names if isinstance(_value(record, (name,)), str)), "")


def _first(record: Record, names: Iterable[str]) -> str:
    """The first of these fields that holds a text; "" where none does."""
    name = _which(record, names)
    return str(_value(record, (name,))) if name else ""


def _texts(value: object) -> list[str]:
    """Texts of a field: one, a list of them, objects with a `text`, an object of lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int | float):
        return [str(value)]
    if isinstance(value, Mapping):
        return _texts(value.get("text") or value.get("aliases"))
    if isinstance(value, Sequence):
        return [text for one in value for text in _texts(one)]
    return []


def _labels(choices: object) -> list[str]:
    """How the choices are named, where they are an object of lists or a list of objects that says so."""
    if isinstance(choices, Mapping):
        named = choices.get("label")
    elif isinstance(choices, Sequence):
        named = [one["label"] for one in choices if isinstance(one, Mapping) and "label" in one]
    else:
        named = None
    return [str(label).strip().strip("()").upper() for label in named] if isinstance(named, list) else []


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _name(record: Record, file: str, number: int) -> str:
    """The item's own name, else its number in the file."""
    own = next((own for name in NAMES if isinstance(own := _value(record, (name,)), str | int)), None)
    return f"{file}:{number}" if own is None else f"{file}:{own}"


def _named_once(items: list[Item]) -> list[Item]:
    """None twice: rows of a dump repeat an item for each of its choices."""
    return list({item.name: item for item in reversed(items)}.values())[::-1]


def _with_names(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Each path behind its shortest name that no other has."""
    names = [path.name for path in paths]
    return [(path.name if names.count(path.name) == 1 else path.as_posix(), path) for path in paths]


def _digest(path: Path) -> str:
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; correct the path of the benchmark's files"
        ) from error


# ---- benchmarks as they are published --------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What makes an `Item`."""

    forms: Sequence[str]
    answers: Sequence[str] = ()
    others: Sequence[str] = ()


class Layout(NamedTuple):
    """The files of a benchmark that hold items, as patterns inside its folder, and what a record of them is."""

    files: tuple[str, ...]
    item: Callable[[Record], Parts]
    rows: Rows = "by suffix"


_LETTERED = re.compile(r"\(([A-Z])\)\s*")
_MOST_SPELLINGS = 32  # of one answer; Wikipedia's redirects run into hundreds


def _chosen_parts(forms: Sequence[str], choices: Sequence[str], key: object, *more: str) -> Parts:
    right = _chosen(choices, key)
    return Parts(
        forms, [choices[right]] if right is not None else [], [*(c for n, c in enumerate(choices) if n != right), *more]
    )


def _agieval(row: Record) -> Parts:
    """Several questions share a passage, and many passages are published texts: alone they prove nothing."""
    options = [_LETTERED.sub("", option, count=1) for option in row["options"]]
    return _chosen_parts([row["question"].strip()], options, row["label"], row["passage"] or "")


def _arc(row: Record) -> Parts:
    doc = row.get("doc", row)
    question = doc.get("query") or doc["question"]
    question = question.removeprefix("Question: ").removesuffix("\nAnswer:")
    choices = _texts(doc["choices"])
    if "gold" in doc:
        return _chosen_parts([question], choices, str(doc["gold"]))
    return _chosen_parts([question], choices, str(doc["choices"]["label"].index(doc["answerKey"])))


def _bbh(row: Record) -> Parts:
    """Of a question with options, the question without them, too."""
    question, _, options = row["input"].partition("\nOptions:")
    target = row["target"]
    if not target.startswith("("):
        return Parts([row["input"], question], [target])
    return _chosen_parts([row["input"], question], _LETTERED.split(options)[2::2], target)


def _boolq(row: Record) -> Parts:
    return Parts([row["question"]], _texts(row["answer"]), [row["passage"]])


def _commonsense(row: Record) -> Parts:
    inside = row["question"] if isinstance(row["question"], dict) else {"stem": row["question"], **row}
    return _chosen_parts([inside["stem"]], _texts(inside["choices"]), row.get("answerKey", ""))


def _gsm8k(row: Record) -> Parts:
    solution, _, number = row["answer"].partition("####")
    return Parts([row["question"]], [re.sub(r"<<.*?>>", "", solution), row["answer"], number])


def _hellaswag(row: Record) -> Parts:
    """With and without the name of the activity, which stands before a colon."""
    _, _, context = row["question"].partition(": ")
    return _chosen_parts([row["question"], context], row["choices"], row["label"])


def _humaneval(row: Record) -> Parts:
    return Parts([row["prompt"]], [row["canonical_solution"]])


def _mbpp(row: Record) -> Parts:
    return Parts([row.get("text") or row["prompt"]], [row["code"]], row["test_list"])


def _mmlu(row: Record) -> Parts:
    return _chosen_parts([row["0"]], [row[str(n)] for n in range(1, 5)], row["5"])


def _openbookqa(row: Record) -> Parts:
    if "choices" in row:
        return _chosen_parts([row["question_stem"]], _texts(row["choices"]), row["answerKey"])
    return _chosen_parts([row["Question Stem"]], _LETTERED.split(row["Choices"])[2::2], row["Answer Key"])


def _piqa(row: Record) -> Parts:
    """Which solution is right stands in a file of its own, and does not matter: each tells of a copy."""
    return Parts([row["goal"]], [row["sol1"], row["sol2"]])


def _siqa(row: Record) -> Parts:
    answers = [row[f"answer{letter}"] for letter in "ABC"]
    return _chosen_parts([f"{row['context']} {row['question']}"], answers, str(int(row["label"]) - 1))


def _triviaqa(row: Record) -> Parts:
    return Parts([row["0"]], ast.literal_eval(row["1"])[:_MOST_SPELLINGS])


def _winogrande(row: Record) -> Parts:
    """The gap left open, and filled by each option."""
    options = [row["option1"], row["option2"]]
    sentence = row["sentence"]
    filled = [sentence.replace("_", option) for option in options]
    return _chosen_parts([sentence, *filled], options, str(int(row["answer"] or 1) - 1))


LAYOUTS: dict[str, Layout] = {
    "agieval": Layout(("*.jsonl", "*.jsonl.gz"), _agieval),
    "arc_challenge": Layout(("*requests.jsonl.gz", "*/*.arrow", "*.parquet"), _arc),
    "arc_easy": Layout(("*requests.jsonl.gz", "*/*.arrow", "*.parquet"), _arc),
    "bbh": Layout(("bbh/*.json",), _bbh),
    "boolq": Layout(("*/*.arrow", "*.parquet"), _boolq),
    "commonsense_qa": Layout(("*.jsonl", "*.jsonl.gz", "*/*.arrow"), _commonsense),
    "gsm8k": Layout(("*.jsonl", "*.jsonl.gz"), _gsm8k),
    "hellaswag": Layout(("*.txt", "*.txt.bz2"), _hellaswag, "six lines"),
    "humaneval": Layout(("*.jsonl", "*.jsonl.gz"), _humaneval),
    "mbpp": Layout(("*.jsonl", "*.jsonl.gz", "*.json"), _mbpp),
    "mmlu": Layout(("dev/*.csv", "val/*.csv", "test/*.csv"), _mmlu, "no header"),
    "openbookqa": Layout(("*.tsv", "*.tsv.gz", "*/*.arrow"), _openbookqa),
    "piqa": Layout(("*.jsonl", "*.jsonl.gz"), _piqa),
    "siqa": Layout(("*/*.arrow", "*.jsonl"), _siqa),
    "triviaqa": Layout(("topics.*.txt", "topics.*.txt.gz"), _triviaqa, "tabs"),
    "winogrande": Layout(("*/*.arrow", "*.jsonl"), _winogrande),
}
