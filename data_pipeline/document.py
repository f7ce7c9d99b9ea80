"""What travels through curation: a record as a source hands it over, and the verdict on it.

Knows nothing of where records come from, of rules or of files.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Literal

from conf.exits import ConfigError

# How the content of a record becomes text (see `extract/plain.py`).
Form = Literal["text", "html", "docstrings", "metadata"]


@dataclass(frozen=True)
class Record:
    """One candidate document, before anything was done to it.

    content   bytes of unknown encoding, or text that is already decoded
    form      how to turn the content into text
    locator   names the record within its source, the same on every machine and in every run
    charset   encoding that the transport declared, if any
    reason    set when the source already knows that the record is no document (`broken_record`, ...)

    `id`, `url`, `source`, `language` and `license` are what the record states about itself; empty where it states
    nothing.
    """

    content: bytes | str
    form: Form
    locator: str
    id: str = ""
    url: str = ""
    source: str = ""
    language: str = ""
    license: str = ""
    charset: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The text of a record, what was measured on it, and why it is dropped ("" where it is kept).

    record            without its content; `locator` is its url where it states one that holds nothing personal
    extracted_bytes   UTF-8 bytes of the repaired text before scrubbing: what `limit_bytes` counts
    language          what language identification found, not what the record stated
    signals           name -> number, a column each; empty where the text was never measured
    fingerprint       equal for texts that are equal but for Unicode form and white space; empty where not needed
    """

    record: Record
    text: str
    reason: str = ""
    extracted_bytes: int = 0
    language: str = "und"
    quality: float | None = None
    signals: dict[str, float] = field(default_factory=dict)
    fingerprint: bytes = b""


# Optional packages that curation needs, and the extra that installs each.
EXTRAS = {
    "ftfy": "curate",
    "pycld2": "curate",
    "resiliparse": "curate",
    "lxml_html_clean": "curate",  # each before the next, which imports it
    "justext": "curate",
    "trafilatura": "curate",
    "fastwarc": "curate",
    "zstandard": "curate",
    "phonenumbers": "curate",
    "numba": "curate",
    "datasets": "hf",
}


def require(*modules: str) -> None:
    """Raise a ConfigError that names the extra to install, unless every one of these optional packages is present."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise  # the package is there, but broken: its own message says more
            extra = EXTRAS[module]
            raise ConfigError(
                f"curation needs the package {module}, which is not installed: pip install 'gemcutter[{extra}]'"
            ) from None
