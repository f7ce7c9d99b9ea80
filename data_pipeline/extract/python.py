"""The documentation in Python source."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from typing import TypeAlias

from data_pipeline.extract.errors import UnreadableError

Definition: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # of a statement, in the order of its source


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
    return "\n\n".join(text for node in _definitions(tree) if (text := _docstring(node)))


def _definitions(tree: ast.Module) -> Iterator[Definition]:
    """The module, its classes and its functions in source order. Looks into blocks only: an expression holds none."""
    waiting: list[ast.AST] = [tree]  # a stack of our own: a chain of `elif` is as deep as it is long
    while waiting:
        node = waiting.pop()
        if isinstance(node, Definition):
            yield node
        children = [child for block in BLOCKS for child in getattr(node, block, ())]
        waiting += reversed([child for child in children if not isinstance(child, ast.Expr | ast.Assign | ast.Return)])


def _docstring(node: Definition) -> str:
    first = node.body[0] if node.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return inspect.cleandoc(first.value.value)
    return ""
