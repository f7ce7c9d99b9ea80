"""The main content of an HTML page: resiliparse finds it, and where it finds little, two others are asked too.

Extractors lose different pages. The first is 20 times faster than the others, so these see only pages
of which it kept a small part; and they must find clearly more, for they also differ in what they call content.
"""

from __future__ import annotations

from data_pipeline.extract.errors import ParserMemoryError

# Characters of the main content over those that a reader of the page sees; below it, second opinions are asked.
LITTLE = 0.2
# A second opinion wins with more than so many times the characters of the first.
GAIN = 1.5


def main_text(html: str) -> tuple[str, str]:
    """The main content of a page without menus, links and alternative texts, and the extractor that found it.

    The longest second opinion counts, trafilatura's of two equally long ones. Raises ParserMemoryError where the
    parser gives up.
    """
    # A lone surrogate cannot cross into the parser's UTF-8.
    html = html.encode("utf-8", "replace").decode() if not html.isascii() else html
    first = _resiliparse(html, main_content=True)
    # Nobody sees more characters than the page has: most pages need no second look.
    if len(first) >= LITTLE * len(html) or len(first) >= LITTLE * len(_resiliparse(html, main_content=False)):
        return first, "resiliparse"
    opinions = ((_trafilatura(html), "trafilatura"), (_justext(html), "justext"))
    text, extractor = max(opinions, key=lambda opinion: len(opinion[0]))
    return (text, extractor) if len(text) > GAIN * len(first) else (first, "resiliparse")


def _resiliparse(html: str, main_content: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLParserException

    try:
        text: str = extract_plain_text(html, main_content=main_content, links=False, alt_texts=False)
    except HTMLParserException as error:
        raise ParserMemoryError(str(error)) from error
    return text


def _trafilatura(html: str) -> str:
    """Barbaresi 2021. "" where it finds nothing, or cannot read the page."""
    import trafilatura

    # `fast` leaves out its own second opinions, one of which is jusText.
    return trafilatura.extract(html.replace("\0", ""), include_comments=False, fast=True) or ""


def _justext(html: str) -> str:
    """Pomikálek 2011, without its lists of frequent words, so that every language is treated alike: long blocks with
    few links, and what stands between them. "" where it cannot read the page."""
    import justext
    from lxml.etree import LxmlError

    try:
        blocks = justext.justext(
            html.replace("\0", "").encode(), frozenset(), stopwords_low=0, stopwords_high=0, encoding="utf-8"
        )
    except (LxmlError, ValueError, justext.core.JustextError):
        return ""
    return "\n".join(block.text for block in blocks if not block.is_boilerplate)
