"""What all tests share: the order (quick ones first), the machines' architecture, and the switch for AWS."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from instant_env.arch import Arch

# What moto and botocore make stays; looking through it for garbage took a quarter of the processor's time.
gc.set_threshold(200_000, 50, 50)

# Plugins of tests that these also import by name, which is too late for pytest's own rewriting.
pytest.register_assert_rewrite("support")

#: Later in this list is slower.
ORDER = ("boot", "e2e", "aws")
#: Tests that build on each other, or share what is long in the making, stay with one worker. Others are kept
#: together by file.
TOGETHER = {"test_main_job.py": "e2e", "test_ssh.py": "e2e", "test_tidy.py": "e2e"}
#: Each test of this file is a program of its own, and none needs another.
LINT = "test_lint.py"
#: What `make test` runs, one after the other.
STAGES = ("lint", "quick", "machines")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """pytest-xdist's ``loadfile``, where some files are as one and the linters are spread."""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).name
        return nodeid if name == LINT else TOGETHER.get(name, name)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stage", choices=STAGES, help="run the tests of this stage only; default: all tests")
    parser.addoption(  # text, not Arch, for whatever hands options on to other processes
        "--arch", choices=[arch.value for arch in Arch], default=Arch.X86_64.value,
        help="of the machines that are booted; with arm64 only the tests run that follow it",
    )  # fmt: skip


@pytest.fixture(scope="session")
def guest_arch(request: pytest.FixtureRequest) -> Arch:
    """The architecture of machines in the tests that have no reason for one of their own."""
    return Arch(request.config.getoption("arch"))


def follow_arch(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another architecture than x86_64: without the tests that do not ask for it, or cannot run there."""

    def follows(item: pytest.Item) -> bool:
        return "guest_arch" in getattr(item, "fixturenames", ())

    if Arch(config.getoption("arch")) is Arch.X86_64:
        return
    config.hook.pytest_deselected(items=[item for item in items if not follows(item)])
    items[:] = filter(follows, items)
    for item in items:
        if marker := item.get_closest_marker("only_x86_64"):
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


def stage_of(item: pytest.Item) -> str:
    """The linters; unit and contract tests that take less than three seconds; everything else."""
    if item.path.name == LINT:
        return "lint"
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return "quick" if folder in ("unit", "contract") and not item.get_closest_marker("slow") else "machines"


def select_stage(config: pytest.Config, items: list[pytest.Item]) -> None:
    stage = config.getoption("stage")
    if stage is None:
        return
    config.hook.pytest_deselected(items=[item for item in items if stage_of(item) != stage])
    items[:] = [item for item in items if stage_of(item) == stage]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by marker, keeping the order of files otherwise; skip what would cost money unless asked for.

    One process has the quick ones first: a broken unit test should be known before a machine boots. Several
    (pytest-xdist) have the slow ones first, so that none of them waits long for the last one.
    """

    def slowness(item: pytest.Item) -> int:
        return max((ORDER.index(name) + 1 for name in ORDER if item.get_closest_marker(name)), default=0)

    follow_arch(config, items)
    select_stage(config, items)
    several = "PYTEST_XDIST_WORKER" in os.environ  # only its workers collect
    items.sort(key=slowness, reverse=several)
    if os.environ.get("INSTANT_ENV_AWS_TESTS") != "1":
        for item in items:
            if item.get_closest_marker("aws"):
                item.add_marker(pytest.mark.skip(reason="needs an AWS account: INSTANT_ENV_AWS_TESTS=1"))
