"""A small collection in which there is one of everything that curation decides about, made from a seed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from conf.schema import Job, Source

# Invented texts are no good web pages, so only Gopher's rules look at them.
GOPHER_ALONE = {language: {"repetition": None, "c4": None, "fineweb": None} for language in ("en", "*")}
FOOTER = "Everything on this page may be copied by whoever says where it was found."
SECRET = b"the mill stands by the river and nobody knows since when"
EMAIL, PHONE, KEY = "ann.miller@mail.example", "+1 415-555-2671", "AKIA" + "QWERTYUIOPASDFGH"
_ZSTD = b"\x28\xb5\x2f\xfd"
PRIVATE = (EMAIL, "ann.miller", PHONE, "415-555-2671", KEY, SECRET.decode())
# Of what must leave no trace: words of the lexicon, of the text around them, and names.
UNSTORABLE = (
    "zorblings",
    "quaxish",
    "fluttermoor",
    "vexatious-id",
    "vexatious.example",
    "grimhollow",
    "torn-grimhollow",
)

_NOUNS, _ADJECTIVES, _VERBS = map(
    str.split,
    (
        "river bridge council harvest orchard market lantern ledger winter valley meadow tower stone ferry miller "
        "teacher garden letter station village window kitchen forest road shepherd engine barrel candle shoulder "
        "doctor captain library mountain island weather summer factory journey history morning evening neighbour",
        "old quiet narrow heavy golden early distant careful broken common gentle hollow bitter ancient proper curious "
        "modern simple wooden grateful northern sudden patient familiar empty serious ordinary",
        "crossed repaired remembered counted followed carried painted noticed described opened measured left",
    ),
)
_ASKED = ("why was it paid for by the council", "who was told first about the loss", "what was that work called")


def text(number: int, sentences: int = 11) -> str:
    """An English text that shares nothing but single words with another number's."""
    draw = random.Random(number)
    return " ".join(_sentence(draw) for _ in range(sentences))


def _sentence(draw: random.Random) -> str:
    one, two, three = (f"{draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}" for _ in range(3))
    place, did = draw.choice(_NOUNS), draw.choice(_VERBS)
    return f"The {one} of the {place} {did} the {two}, and the {three} was there."


def nearly(number: int) -> str:
    """The same text with a few words changed: at least nine of ten runs of five words stay."""
    words = text(number).split()
    words[60] = "surprising"
    return " ".join(words)


def question(number: int) -> str:
    """Of an invented benchmark."""
    draw = random.Random(f"question {number}")
    one, two = (f"{draw.choice(_ADJECTIVES)} {draw.choice(_NOUNS)}" for _ in range(2))
    return (
        f"When the {one} {draw.choice(_VERBS)} the {draw.choice(_NOUNS)} in {draw.randrange(1600, 1900)}, while the "
        f"{two} {draw.choice(_VERBS)} {draw.randrange(30, 900)} barrels, {draw.choice(_ASKED)}?"
    )


def asked(number: int, of: int) -> str:
    """A text that holds a question in its middle."""
    words = text(number).split(". ")
    return ". ".join([*words[:4], question(of), *words[4:]])


def jsonl(path: Path, rows: Iterable[Any]) -> str:
    """Write rows (texts are lines as they are); gives the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def parquet(path: Path, columns: dict[str, list[Any]], group: int = 8) -> str:
    """Write columns in row groups; gives the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=group)
    path.write_bytes(buffer.getvalue())
    return str(path)


def collect(folder: Path) -> None:
    """Write the files of the collection into `made` in a folder."""
    made = folder / "made"
    # Lines of many documents, equal and near texts in other tasks, ids that are stated again, a torn line.
    web: list[Any] = [{"id": f"web/{n}", "text": f"{text(n)}\n\n{FOOTER}"} for n in range(40)]
    web += [{"id": "same", "text": text(n), "license": "CC0-1.0"} for n in (100, 101)]
    web += [{"id": "same~2", "text": text(102)}, '{"id": "torn", "text": "Ask ann.miller\\u0040mail.example, and']
    web += [{"id": f"asked/{n}", "text": asked(200 + n, n)} for n in range(3)]
    web += [{"id": "mail", "text": f"{text(103)} Write to {EMAIL} or call {PHONE}.", "license": EMAIL}]
    web += [{"id": "key", "text": f"{text(104)} The key is {KEY}.", "url": f"https://a.example/?of={EMAIL}"}]
    web += [{"id": PHONE, "text": text(105)}]
    web += [{"id": "blocked", "text": text(106), "url": "https://www.blocked.example/a"}]
    web += unstorable()
    web += [{"id": "short", "text": "Too short."}, {"id": "blank", "text": " "}, {"id": "same", "text": text(3)}]
    books = {"id": [f"book/{n}" for n in range(30)], "text": [text(300 + n) for n in range(30)]}
    books["text"][5], books["text"][25] = text(2), nearly(300)  # of the first source, and of another row group
    books["text"][7] = f"{text(307)} Ask {EMAIL}."
    notes = [*(text(500 + n) for n in range(10)), nearly(4), text(101), "Ein Dorf am Fluss, niemand weiß seit wann."]
    limited = [{"id": "same", "text": text(600 + n)} for n in range(60)]
    limited[50]["text"] = asked(650, 4)  # behind the limit
    questions = ({"question": question(n), "answer": f"{n} crowns"} for n in range(12))
    (made / "notes").mkdir(parents=True)
    for n, one in enumerate(notes):
        (made / "notes" / (f"{n:02d} {EMAIL} (1).txt" if n == 3 else f"{n:02d}.txt")).write_text(one)
    jsonl(made / "web.jsonl", web)
    parquet(made / "books.parquet", books)
    jsonl(made / "limited.jsonl", limited)
    jsonl(made / "mill.jsonl", questions)
    (made / "key").write_bytes(SECRET)
    (made / "blocked.txt").write_text("blocked.example\n")
    (made / "prohibited.txt").write_text("vexatious.example\n")
    (made / "lexicon.txt").write_text("minor zorblings\nsexual quaxish\n")


def job_of(folder: Path, output: Path) -> Job:
    """To curate what was collected there: four sources in about twenty pieces, with all that may be asked for without a
    classifier."""
    made = folder / "made"
    job = Job()
    job.name = "invented"
    keys = job.curate
    keys.sources = [
        Source(name="web", paths=[str(made / "web.jsonl")]),
        Source(name="books", paths=[str(made / "books.parquet")], license="CC-BY-4.0"),
        Source(name="notes", paths=[str(made / "notes" / "*.txt")]),
        Source(name="limited", paths=[str(made / "limited.jsonl")], limit_bytes=30_000),
    ]
    keys.output = str(output)
    keys.thresholds = {language: dict(sets) for language, sets in GOPHER_ALONE.items()}
    keys.slice_bytes, keys.part_bytes = 6_000, 20_000
    keys.duplicates.repeated_in = 5
    keys.decontaminate.benchmarks = {"mill": str(made / "mill.jsonl")}
    keys.private.key_file = str(made / "key")
    keys.harm.blocked = [str(made / "blocked.txt")]
    keys.harm.prohibited = [str(made / "prohibited.txt")]
    keys.harm.lexicons = [str(made / "lexicon.txt")]
    return job


def unstorable() -> list[Any]:
    """Rows of which nothing may be stored: named by a lexicon, by a list, and one that is torn."""
    return [
        {
            "id": "vexatious-id",
            "text": f"{text(107)} The zorblings of fluttermoor are quaxish.",
            "url": "https://fluttermoor.example/1",
        },
        {"id": "grimhollow-id", "text": f"{text(108)} It is called grimhollow.", "url": "https://vexatious.example/a"},
        '{"id": "torn-grimhollow", "text": "The zorblings of fluttermoor are quaxish, and',
    ]


def traces(folder: Path, words: Iterable[str]) -> list[tuple[str, str]]:
    """Which of some words stand in which file below a folder: in its name, its bytes, or what is packed in it."""
    wanted = [(word, word.lower().encode()) for word in words]
    found = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        name = path.relative_to(folder).as_posix()
        content = name.encode() + b"\0" + _unpacked(path.read_bytes())
        found += [(name, word) for word, sought in wanted if sought in content.lower()]
    return found


def _unpacked(content: bytes) -> bytes:
    """The bytes of a file, and those of every Zstandard frame in it: so Parquet too that was never finished is read."""
    frames = [content]
    at = content.find(_ZSTD)
    while at >= 0:
        with contextlib.suppress(zstandard.ZstdError):
            frames.append(zstandard.ZstdDecompressor().decompressobj().decompress(content[at:]))
        at = content.find(_ZSTD, at + 1)
    return b"\0".join(frames)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of all parts in a folder."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]
