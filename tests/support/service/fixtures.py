"""A service over the fake, and its administrator's client."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from support.service.served import Served, serving


@pytest.fixture
def served() -> Iterator[Served]:
    """Ten of the fake's seconds pass in one."""
    with serving(speed=10) as service:
        yield service


@pytest.fixture
def client(served: Served) -> Iterator[httpx2.Client]:
    with served.client() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx2.Client]:
    """A client of a service that the tests of a file share, for requests that change nothing."""
    with serving() as service, service.client() as made:
        yield made
