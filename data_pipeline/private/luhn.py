"""Luhn's check digit, which cards and many national numbers end with."""

from __future__ import annotations


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right doubled, the sum of all digits a multiple of ten."""
    doubled = sum(int(digit) * 2 - 9 * (digit > "4") for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0
