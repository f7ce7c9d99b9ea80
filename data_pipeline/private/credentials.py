"""User names with passwords inside URLs: `https://ann:hunter2@host/`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipeline.private.found import Found
from data_pipeline.private.page import Page

_USER = re.compile(r"://([^\s/:@<>\"'`{}$\[\]|\\]{0,128}):([^\s/@<>\"'`{}|\\]{1,256})@(?=[\w\[])")
_VARIABLE = re.compile(r"\$[A-Z_][A-Z0-9_]*|\$[a-z_]+|%[A-Za-z_]+%")
NEEDLES = ("://", "@")
# What manuals write where a password would be.
_STAND_INS = frozenset((
    "password", "passwd", "passwort", "pass", "pw", "pwd", "secret", "mypassword", "yourpassword", "your_password",
    "your-password", "token",
    "contraseña", "contrasena", "motdepasse", "mot_de_passe", "kennwort", "senha", "wachtwoord",
    "hasło", "haslo", "пароль", "密码", "パスワード", "비밀번호",
))  # fmt: skip


def find(page: Page) -> Iterator[Found]:
    """Credentials in URLs, without the signs around them."""
    if not page.held.issuperset(NEEDLES):
        return
    for match in _USER.finditer(page.text):
        if match[2].lower() not in _STAND_INS and set(match[2]) - set("*.x") and not _VARIABLE.fullmatch(match[2]):
            yield Found(match.start(1), match.end(2), "credentials", f"{match[1]}:{match[2]}")
