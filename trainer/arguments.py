"""Command lines of the plain commands."""

from __future__ import annotations

import argparse
from typing import NoReturn

from conf.exits import ConfigError


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are errors of the configuration."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n{self.format_usage().strip()}")
