"""The documentation in Python source."""

from __future__ import annotations

import ast
import inspect
import warnings

from data_pipeline.extract.errors import UnreadableError


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
