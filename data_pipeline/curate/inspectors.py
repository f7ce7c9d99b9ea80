"""What documents are held against while they are read: lists of the user, classifiers, the index of benchmarks.

A task names files; a process loads each once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from conf.exits import ConfigError, DataError
from data_pipeline.classify.linear import Linear
from data_pipeline.decontaminate.index import Index
from data_pipeline.harm.blocks import BlockList
from data_pipeline.harm.prohibited import Lexicon, is_prohibited
from data_pipeline.private.pseudonym import SHORTEST_KEY


@dataclass(frozen=True)
class Files:
    """Where they lie; None or nothing where there are none.

    contents   stands for what is in them: where that is another, a process that loaded them once loads them again
    """

    key: str | None = None
    blocked: tuple[str, ...] = ()
    prohibited: tuple[str, ...] = ()
    lexicons: tuple[str, ...] = ()
    quality: str | None = None
    toxicity: str | None = None
    index: str | None = None
    contents: str = ""


@dataclass(frozen=True)
class Inspectors:
    """The same, loaded. `key` is "" where there are no pseudonyms."""

    key: bytes
    blocked: BlockList
    is_prohibited: Callable[[str, str, str], bool]  # of url, text, language
    quality: Linear | None
    toxicity: Linear | None
    index: Index | None


@cache
def load(files: Files) -> Inspectors:
    """Raises ConfigError or DataError where a file is missing or is not what it should be."""
    listed = _listed(files.prohibited, "prohibited")
    lexicons = [Lexicon.read(Path(path)) for path in files.lexicons]

    def prohibited(url: str, text: str, language: str) -> bool:
        return is_prohibited(url, text, _packaged(language), listed) or any(one.holds(text) for one in lexicons)

    return Inspectors(
        key=key_of(files.key),
        blocked=_listed(files.blocked, "blocked"),
        is_prohibited=prohibited,
        quality=_classifier(files.quality),
        toxicity=_classifier(files.toxicity),
        index=index_of(files.index),
    )


def _listed(paths: tuple[str, ...], key: str) -> BlockList:
    """The entries of all files. Raises DataError where one holds none: it is more likely lost than meant."""
    for path in paths:
        if not len(BlockList.read(Path(path))):
            raise DataError(f"the block list {path} holds no entry: get it again, or leave it out of curate.harm.{key}")
    return BlockList.read(*map(Path, paths))


@cache
def index_of(path: str | None) -> Index | None:
    """The index of benchmarks in a file, which processes share."""
    return None if path is None else Index.open(Path(path))


def key_of(path: str | None) -> bytes:
    """The secret in a file, without white space at its ends. Raises ConfigError where there is none, or too short."""
    if path is None:
        return b""
    try:
        key = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"curate.private.key_file={path} cannot be read ({error.strerror}): correct the path"
        ) from error
    if len(key) < SHORTEST_KEY:
        raise ConfigError(
            f"curate.private.key_file={path} holds {len(key)} bytes: pseudonyms need a secret of {SHORTEST_KEY} or "
            "more, such as `openssl rand -hex 32` writes"
        )
    return key


def mark_of_key(key: bytes) -> str:
    """What tells that the same secret was used, and nothing else of it; "" without one."""
    return hmac.digest(key, b"which secret this is", hashlib.sha256).hex()[:16] if key else ""


def _classifier(path: str | None) -> Linear | None:
    if path is None:
        return None
    try:
        return Linear.load(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the classifier {path} cannot be used ({error}): correct the path, or train it again"
        ) from None


@cache
def _packaged(language: str) -> Lexicon | None:
    return Lexicon.packaged(language)
