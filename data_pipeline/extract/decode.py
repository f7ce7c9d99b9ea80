"""Bytes to text: which encoding they are in."""

from __future__ import annotations

from data_pipeline.extract.errors import UnreadableError

BYTE_ORDER_MARKS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")
SNIFFED_BYTES = 8192


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes of a file cannot be text in any encoding: NUL bytes without a UTF-16 or UTF-32 mark."""
    return b"\0" in head[:SNIFFED_BYTES] and not head.startswith(BYTE_ORDER_MARKS[:4])


def decode(content: bytes, form: str = "text", charset: str = "") -> str:
    """Bytes to text: byte order mark, then the declared charset, then UTF-8, then a guess by character statistics.

    A declared charset is not believed where it does not decode the bytes, or where the web has none of that name: some
    of Python's take quadratic time or are no encodings of text. Raises UnreadableError on binary content.
    """
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

    if looks_binary(content):
        raise UnreadableError("binary content")
    if content.startswith(BYTE_ORDER_MARKS):
        for mark, encoding in zip(BYTE_ORDER_MARKS, ("utf-32", "utf-32", "utf-16", "utf-16", "utf-8-sig"), strict=True):
            if content.startswith(mark):
                return content.decode(encoding, "replace")
    of_the_web = charset.isascii() and map_encoding_to_html5(charset, fallback_utf8=False)
    for encoding in (charset, "utf-8") if of_the_web else ("utf-8",):
        try:
            return content.decode(encoding)
        except (ValueError, LookupError):  # UnicodeError that is no UnicodeDecodeError, and NUL characters in a name
            continue
    return bytes_to_str(content, detect_encoding(content, from_html_meta=form == "html") or "utf-8")
