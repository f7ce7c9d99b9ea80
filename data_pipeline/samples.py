"""Text samples in the WebDataset tars that others wrote: which members are a document, and what their texts are.

Knows nothing of tokens or indexes. A document is the run of members that share a name but for their last ending:
`0001.txt` is its text; without one, `0001.json` holds it in a field. Other endings belong to it and are left alone.
Only the last ending is cut off: at the first dot `v1.0.txt` and `v1.1.txt` would become one sample, and lose a text.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from conf.exits import DataError

_TAR_BLOCK = 512


@dataclass
class Sample:
    """A document and the bytes [start, end) of the tar that its members lie in."""

    id: str
    text: str
    url: str
    start: int
    end: int


def read_samples(file: IO[bytes], name: str, text_field: str, whole: bool = True) -> Iterator[Sample]:
    """The documents of a tar, or of a run of its members (`whole=False`), which lacks the end of the archive.

    Raises DataError, with the member, where the tar is broken, cut short, or holds no text where there should be one.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members: list[tarfile.TarInfo] = []
            for member in tar:
                if not member.isfile():
                    continue
                if members and _key(members[0]) != _key(member):
                    yield from _sample(tar, members, name, text_field)
                    members = []
                members.append(member)
            yield from _sample(tar, members, name, text_field)
            if whole:
                _check_end(file, tar.offset, name)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{name} is no tar, or is cut short ({error}): copy it again; compressed tars (.tar.gz) cannot be indexed, "
            "as they cannot be read from the middle: decompress them"
        ) from error


def _check_end(file: IO[bytes], end: int, name: str) -> None:
    """A tar that was cut between two members reads like a shorter one; only its end tells."""
    file.seek(end)
    if file.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
        raise DataError(
            f"{name} is cut short: it has no end-of-archive block after its last member, byte {end:,}: copy it again"
        )


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, base = member.name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def _sample(tar: tarfile.TarFile, members: list[tarfile.TarInfo], name: str, text_field: str) -> Iterator[Sample]:
    """The sample of some members, if it has a text."""
    by_ending = {member.name.rpartition(".")[2]: member for member in members}
    if not by_ending.keys() & {"txt", "json"}:
        return
    meta: dict[str, Any] = {}
    if "json" in by_ending:
        place = f"{name}, member {by_ending['json'].name}"
        try:
            meta = json.loads(_content(tar, by_ending["json"]))
        except ValueError as error:
            raise DataError(
                f"{place} is not JSON ({error}): mend it, or take the tar out of tokenize.webdataset"
            ) from error
        if not isinstance(meta, dict) or ("txt" not in by_ending and not isinstance(meta.get(text_field), str)):
            raise DataError(
                f"{place} has no text in the field {text_field!r}: set text_field of the source in tokenize.webdataset"
            )
    try:
        text = _content(tar, by_ending["txt"]).decode() if "txt" in by_ending else meta[text_field]
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, member {by_ending['txt'].name} is not UTF-8 ({error}): mend it") from error
    last = members[-1]
    end = last.offset_data + -(-last.size // _TAR_BLOCK) * _TAR_BLOCK
    url = meta.get("url")
    yield Sample(_key(members[0]), text, url if isinstance(url, str) else "", members[0].offset, end)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # only regular files come here
    data = file.read()
    if len(data) != member.size:
        raise tarfile.ReadError(f"member {member.name} ends early")
    return data
