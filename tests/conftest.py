"""What all tests share: the order (quick ones first) and the switch for a real AWS account."""

from __future__ import annotations

import os

import pytest

# Plugins of tests that these also import by name, which is too late for pytest's own rewriting.
pytest.register_assert_rewrite(
    "contract_cloud", "front", "localec2_cloud", "localec2_served", "pretend_bakery", "terminal", "tiny_cloud"
)

#: Later in this list is slower. A broken unit test should be known before a machine boots.
ORDER = ("boot", "e2e", "aws")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by marker, keeping the order of files otherwise; skip what would cost money unless asked for."""

    def slowness(item: pytest.Item) -> int:
        return max((ORDER.index(name) + 1 for name in ORDER if item.get_closest_marker(name)), default=0)

    items.sort(key=slowness)
    if os.environ.get("INSTANT_ENV_AWS_TESTS") != "1":
        for item in items:
            if item.get_closest_marker("aws"):
                item.add_marker(pytest.mark.skip(reason="needs an AWS account: INSTANT_ENV_AWS_TESTS=1"))
