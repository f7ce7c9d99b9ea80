"""The content of a record to plain, well-encoded text.

Decoding, HTML to text, docstrings out of Python source, the description out of package metadata, and encoding repair.
Knows nothing of quality, languages or where the record came from.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings

from data_pipeline.document import Record

BYTE_ORDER_MARKS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")
TERMINAL_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LINE_ENDS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e]")
NOT_PLAIN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
ASCII_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]")
# What is left after repair and cannot be part of a text: C1 controls, surrogates, noncharacters.
NOT_CHARACTERS = re.compile(
    "[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(p << 16 | 0xFFFE)}{chr(p << 16 | 0xFFFF)}" for p in range(17))
    + "]"
)
SURROGATE_PAIRS = re.compile("[\ud800-\udbff][\udc00-\udfff]")
SNIFFED_BYTES = 8192


class UnreadableError(Exception):
    """The content is not what its form says; the record is dropped as `unreadable`."""


def extract(record: Record) -> str | None:
    """The repaired text of a record; None where it holds no document at all (Python source without a docstring).

    Raises UnreadableError where the content is not of its form.
    """
    text = _plain(record)
    return None if text is None else repair(text)


def _plain(record: Record) -> str | None:
    if record.form == "docstrings":
        return docstrings(record.content) or None
    text = record.content if isinstance(record.content, str) else decode(record.content, record.form, record.charset)
    if record.form == "html":
        return main_text(text)
    if record.form == "metadata":
        return long_description(text) or None
    return text


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes of a file cannot be text in any encoding: NUL bytes without a UTF-16 or UTF-32 mark."""
    return b"\0" in head[:SNIFFED_BYTES] and not head.startswith(BYTE_ORDER_MARKS[:4])


def decode(content: bytes, form: str = "text", charset: str = "") -> str:
    """Bytes to text: byte order mark, then the declared charset, then UTF-8, then a guess by character statistics.

    A declared charset that does not decode the bytes is not believed. Raises UnreadableError on binary content.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    if looks_binary(content):
        raise UnreadableError("binary content")
    if content.startswith(BYTE_ORDER_MARKS):
        for mark, encoding in zip(BYTE_ORDER_MARKS, ("utf-32", "utf-32", "utf-16", "utf-16", "utf-8-sig"), strict=True):
            if content.startswith(mark):
                return content.decode(encoding, "replace")
    for encoding in filter(None, (charset, "utf-8")):
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return bytes_to_str(content, detect_encoding(content, from_html_meta=form == "html") or "utf-8")


def main_text(html: str) -> str:
    """The main content of an HTML page without menus, links and alternative texts, by resiliparse.

    Raises UnreadableError where its parser gives up.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLParserException

    # A lone surrogate cannot cross into the parser's UTF-8.
    html = html.encode("utf-8", "replace").decode() if not html.isascii() else html
    try:
        return extract_plain_text(html, main_content=True, links=False, alt_texts=False)
    except HTMLParserException as error:
        raise UnreadableError(f"not HTML: {error}") from error


def docstrings(source: bytes | str) -> str:
    """The docstrings of a Python file, of the module, its classes and its functions in order, parted by blank lines.

    Raises UnreadableError where the file is not Python.
    """
    quotes = (b'"""', b"'''") if isinstance(source, bytes) else ('"""', "'''")
    if not any(quote in source for quote in quotes):  # type: ignore[operator]
        return ""  # parsing is slow, and docstrings in single quotes are one-liners
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # invalid escapes in other people's code
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UnreadableError(f"not Python: {error}") from error
    found: list[str] = []
    _collect(tree, found)
    return "\n\n".join(found)


def _collect(node: ast.AST, found: list[str]) -> None:
    """Docstrings in source order. Looks into blocks only: an expression holds no definition."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            text = inspect.cleandoc(first.value.value)
            if text:
                found.append(text)
    for block in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, block, ()):
            if not isinstance(child, ast.Expr | ast.Assign | ast.Return):
                _collect(child, found)


def long_description(metadata: str) -> str:
    """The long description of a distribution's METADATA file: the body below its headers, or its Description header."""
    headers, _, body = metadata.replace("\r\n", "\n").partition("\n\n")
    if body.strip():
        return body
    match = re.search(r"^Description: *(.*(?:\n[ \t|].*)*)", headers, re.MULTILINE)
    return re.sub(r"\n(?: {7}\|| {8})", "\n", match[1]) if match else ""


def repair(text: str) -> str:
    """Text with mis-decoded passages put right, `\\n` line ends and no control characters; otherwise unchanged.

    Encoding repair is ftfy's (Speer 2019). All that ftfy can do beyond that is off: quotes stay curled, ligatures and
    wide characters stay, entities stay, and no Unicode normal form is imposed.
    """
    if NOT_PLAIN.search(text):  # one scan for the many texts that need none of this
        text = ASCII_CONTROLS.sub("", LINE_ENDS.sub("\n", TERMINAL_ESCAPES.sub("", text)))
    if not text.isascii():
        text = "\n".join(_repair_line(line) for line in text.split("\n"))
        text = SURROGATE_PAIRS.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
        text = NOT_CHARACTERS.sub("", text)
    return text.strip()


def _repair_line(line: str) -> str:
    if line.isascii():  # nothing in it was mis-decoded, and ftfy is slow to find that out
        return line
    import ftfy

    return ftfy.fix_text(
        line,
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=None,
        explain=False,
    )
