"""What tests of pages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Browser, browser, executable


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A tab of a real browser, which starting takes a second."""
    if (chromium := executable()) is None:
        pytest.skip("there is no chromium, and only root can install it: apt-get install chromium")
    with browser(chromium, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
