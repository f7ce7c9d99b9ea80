"""The text that comes with the user's own Python: documentation, package descriptions and docstrings.

Real, messy and on every machine, so that a first run needs no download. What it holds depends on what is installed.
Test suites are left out: their docstrings are labels.
"""

from __future__ import annotations

import email.parser
import os
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.document import Form, Record

FORMS: dict[str, Form] = {
    ".txt": "text",
    ".rst": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".py": "docstrings",
}
LEFT_OUT = frozenset(("__pycache__", "test", "tests", "idle_test"))
# Another installation's packages, which may lie inside the standard library's folder.
PACKAGES = frozenset(("site-packages", "dist-packages"))
STANDARD_LIBRARY_LICENSE = "PSF-2.0"
PIECE_FILES = 2000
LONGEST_LICENSE_NAME = 64  # characters; longer fields hold the licence's text


@dataclass(frozen=True)
class File:
    """An installed file, its name on every machine, the licence of what it belongs to, and its size and time of change
    (ns) when it was listed."""

    path: str
    locator: str
    form: Form
    license: str
    version: tuple[int, int]


def pieces() -> list[tuple[File, ...]]:
    """The files of the standard library, then of the installed packages, each folder sorted by name, some at a time.

    Symbolic links are not followed, so nothing comes twice.
    """
    found = list(_listed("stdlib", Path(sysconfig.get_path("stdlib")), {}))
    roots = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    for root in sorted(roots):
        found += _listed("site-packages", root, licenses(root))
    return [tuple(found[first : first + PIECE_FILES]) for first in range(0, len(found), PIECE_FILES)]


def records(files: Iterable[File]) -> Iterator[Record]:
    """A record a file. `url` is `python:` and the path within the installation."""
    for file in files:
        try:
            content = Path(file.path).read_bytes()
        except OSError:  # gone or not ours to read: installations change under us
            yield Record("", file.form, file.locator, url=file.locator, reason="unreadable")
            continue
        yield Record(content, file.form, file.locator, url=file.locator, license=file.license)


def _listed(prefix: str, root: Path, owners: dict[str, str]) -> Iterator[File]:
    default = STANDARD_LIBRARY_LICENSE if prefix == "stdlib" else ""
    for path in _files(root):
        relative = path.relative_to(root)
        form = "metadata" if path.name == "METADATA" else FORMS[path.suffix]
        locator = f"python:{prefix}/{os.fsencode(relative.as_posix()).decode(errors='replace')}"
        seen = path.stat()
        version = seen.st_size, seen.st_mtime_ns
        yield File(str(path), locator, form, owners.get(relative.parts[0], default), version)


def _files(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in LEFT_OUT and entry.name not in PACKAGES:
                yield from _files(Path(entry.path))
        elif Path(entry.name).suffix in FORMS or (entry.name == "METADATA" and folder.suffix == ".dist-info"):
            yield Path(entry.path)


def licenses(site_packages: Path) -> dict[str, str]:
    """Top-level file or folder in `site_packages` -> licence of the one distribution that owns it, where it names one.

    A folder that several distributions with different licences share has none.
    """
    stated: dict[str, set[str]] = {}
    for info in sorted(site_packages.glob("*.dist-info")):
        license_ = _license(info / "METADATA")
        record = info / "RECORD"
        lines = record.read_text("utf-8", "replace").splitlines() if record.is_file() else []
        for top in {line.split("/", 1)[0].split(",", 1)[0] for line in lines} | {info.name}:
            stated.setdefault(top, set()).add(license_)
    return {top: names.pop() for top, names in stated.items() if len(names) == 1}


def _license(metadata: Path) -> str:
    """SPDX expression, short licence field or classifiers of a METADATA file, in that order; "" without any."""
    if not metadata.is_file():
        return ""
    headers = email.parser.HeaderParser().parsestr(metadata.read_text("utf-8", "replace"))
    for name in ("License-Expression", "License"):
        value = str(headers.get(name, "")).strip()
        if value and value != "UNKNOWN" and len(value) <= LONGEST_LICENSE_NAME and "\n" not in value:
            return value
    classifiers = [str(value) for value in headers.get_all("Classifier", [])]
    return " OR ".join(
        c.rsplit(" :: ", 1)[1] for c in classifiers if c.startswith("License :: ") and c.count(" :: ") > 1
    )
