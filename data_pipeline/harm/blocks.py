"""Block lists of the user: texts, URLs and domains that must not come in.

A list is a text file, an entry a line; blank lines and those that begin with `#` are skipped. An entry is

    a domain           blocks its hosts and those of its subdomains
    a URL              blocks that page: scheme, `www.`, port, fragment and a closing slash do not matter
    64 hex digits      the SHA-256 of a text, a URL or a domain in its normal form, so that a list need not hold what it
                       names (`digest_of_text`, `digest_of_url`, `digest_of_domain`)

Only digests are kept in memory, and no message quotes an entry.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from conf.exits import DataError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DOMAIN = re.compile(r"(?:[\w-]{1,63}\.)+[\w-]{2,63}")


class BlockList:
    """Digests of what is blocked. Raises ValueError where an entry is none of the three."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._digests = frozenset(map(_digest, entries))

    @staticmethod
    def read(*paths: Path) -> BlockList:
        """The entries of files. Raises DataError, with file and line, where one is no list."""
        digests: list[str] = []
        for path in paths:
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"the block list {path} cannot be read ({type(error).__name__}): check the path"
                ) from None
            for number, line in enumerate(lines, 1):
                entry = line.strip()
                if not entry or entry.startswith("#"):
                    continue
                try:
                    digests.append(_digest(entry).hex())
                except ValueError:
                    raise DataError(
                        f"{path}:{number} is neither a domain, a URL nor a SHA-256 in 64 hex digits: mend that line"
                    ) from None
        return BlockList(digests)

    def __len__(self) -> int:
        return len(self._digests)

    def reason(self, url: str, text: str) -> str:
        """What blocks a document: "blocked_url", "blocked_domain" or "blocked_text"; "" where nothing does."""
        if not self._digests:
            return ""
        if url and digest_of_url(url) in self._digests:
            return "blocked_url"
        if any(digest_of_domain(domain) in self._digests for domain in _domains(url)):
            return "blocked_domain"
        return "blocked_text" if digest_of_text(text) in self._digests else ""


def digest_of_text(text: str) -> bytes:
    """SHA-256 of the text in NFC with every run of white space as one blank."""
    return _sha256(" ".join(unicodedata.normalize("NFC", text).split()))


def digest_of_url(url: str) -> bytes:
    """SHA-256 of host, path and query; without scheme, user, `www.`, port, fragment and closing slash."""
    parts = _split(url)
    query = f"?{parts.query}" if parts.query else ""
    return _sha256(f"{_host(url)}{parts.path.rstrip('/') or '/'}{query}")


def digest_of_domain(domain: str) -> bytes:
    """SHA-256 of the domain in small letters, without `www.`."""
    return _sha256(_without_www(domain.lower().strip(".")))


def _digest(entry: str) -> bytes:
    entry = entry.strip()
    if _DIGEST.fullmatch(entry.lower()):
        return bytes.fromhex(entry)
    if "/" in entry and _host(entry):
        return digest_of_url(entry)
    if _DOMAIN.fullmatch(entry):
        return digest_of_domain(entry)
    raise ValueError("an entry of a block list is neither a domain, a URL nor a SHA-256 in 64 hex digits")


def _domains(url: str) -> Iterator[str]:
    """The host of a URL and every domain above it, but for the last label."""
    labels = _host(url).split(".")
    for first in range(len(labels) - 1):
        yield ".".join(labels[first:])


def _host(url: str) -> str:
    return _without_www((_split(url).hostname or "").strip("."))


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url if "://" in url else f"//{url}")
    except ValueError:  # broken brackets: no host
        return SplitResult("", "", url, "", "")


def _without_www(host: str) -> str:
    return host[4:] if host.startswith("www.") and host.count(".") > 1 else host


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
