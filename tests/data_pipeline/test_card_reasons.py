"""Promises of the reasons: every one that a document can go for is explained, with the limit that held."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.schema import Curate
from data_pipeline import card
from data_pipeline.card.reasons import REASONS, Limit, limits, ordered
from data_pipeline.signals.thresholds import DEFAULTS, SETS, Thresholds, rules

ROOM = Path(card.__file__).parent.parent
MAKERS = ("sources", "extract", "private", "harm", "decontaminate", "curate")
NAMES = {"reason", "reasons", "REASON", "REASONS_OF", "REPEATED_LINES"}
MAKING = {"drop": 1, "_DeadError": 1, "Document": 2}  # calls with a reason, and where it stands
NO_REASONS = {", ", " ", "dropped"}  # of sentences that tell reasons


def reasons_in(tree: ast.AST) -> Iterator[str]:
    """The texts that code gives as a reason: to a parameter or name called so, from a function called so, or to a call
    that takes one."""
    for node in ast.walk(tree):
        given: list[ast.expr | None] = []
        if isinstance(node, ast.keyword) and node.arg == "reason":
            given = [node.value]
        elif isinstance(node, ast.Assign):
            names = {to.id if isinstance(to, ast.Name) else getattr(to, "attr", "") for to in node.targets}
            given = [node.value] if names & NAMES else []
        elif isinstance(node, ast.FunctionDef) and node.name == "reason":
            given = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
        elif isinstance(node, ast.Call):
            given = list(node.args[MAKING.get(ast.unparse(node.func), 99) :])
        for value in filter(None, given):
            constants = (one.value for one in ast.walk(value) if isinstance(one, ast.Constant))
            yield from (one for one in constants if isinstance(one, str) and one)


def test_every_reason_is_explained() -> None:
    files = [file for room in MAKERS for file in sorted((ROOM / room).glob("*.py"))]
    given = {reason for file in files for reason in reasons_in(ast.parse(file.read_text("utf-8")))} - NO_REASONS
    assert given - REASONS.keys() == set()
    of_rules = {reason for reason in REASONS if reason.startswith(tuple(f"{name}_" for name in SETS))}
    assert {rule.reason for limits_ in DEFAULTS.values() for rule in rules(limits_)} <= of_rules
    assert REASONS.keys() - of_rules - given == set()  # none is explained that nothing gives
    assert len(set(REASONS)) == len(REASONS)


def test_rules_are_asked_in_the_order_of_the_funnel() -> None:
    every = Thresholds(**{name: kind(**{f.name: 1.0 for f in dataclasses.fields(kind)}) for name, kind in SETS.items()})
    asked = list(dict.fromkeys(rule.reason for rule in rules(every)))
    assert [reason for reason in REASONS if reason in set(asked)] == asked
    assert ordered({"near_duplicate": 1, asked[3]: 1, "too_large": 2, asked[2]: 1}) == [
        "too_large", asked[2], asked[3], "near_duplicate",
    ]  # fmt: skip


def test_limits_are_those_that_held() -> None:
    of = {language: dataclasses.asdict(one) for language, one in DEFAULTS.items()}
    of["de"] = dataclasses.asdict(DEFAULTS["en"])
    of["de"]["gopher"] |= {"min_words": 30, "max_mean_word_length": None}
    held = limits(of, {"quality": {"least": 0.2}, "toxicity": {"most": None}, "language_confidence": 0.5})
    assert held["gopher_too_few_words"] == [Limit("at least {}", 30, 50)]
    assert held["gopher_mean_word_length"] == [Limit("at least {}", 3, 3), Limit("at most {}", 10, 10)]
    assert held["fineweb_repeated_line_characters"] == [Limit("at most {}", 0.01, 0.1)]
    assert held["low_quality"] == [Limit("at least {}", 0.2, 0.2)]
    assert "toxic" not in held  # off
    assert "refinedweb_symbols" not in held


@pytest.mark.parametrize("reason", [reason for reason, decision in REASONS.items() if decision.key])
def test_keys_that_hold_limits_exist(reason: str) -> None:
    at = Curate()
    for name in REASONS[reason].key.split("."):
        at = getattr(at, name)
    assert REASONS[reason].allows.count("{}") == 1
