"""What a source hands over.

Knows nothing of where records come from, of rules or of files.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
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
