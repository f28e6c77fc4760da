"""A guest whose kernel locks up while it boots is reset, once; nobody else is."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from instant_env.localec2.qemu.lockup_watchdog import reset_when_locked_up

if TYPE_CHECKING:
    from pathlib import Path

LOCKED_UP = b"[   28.560638] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [swapper/0:1]\n"


def resets(console: Path, *, ended: bool = False, boot_s: float = 0.1) -> int:
    gone, seen = threading.Event(), []
    if ended:
        gone.set()
    reset_when_locked_up(
        "i-1", console, gone, lambda: seen.append(1), boot_s=boot_s, watched_s=0.2, pause_s=0.01,
        later_pause_s=0.01,
    )  # fmt: skip
    return len(seen)


def test_a_lockup_is_found_once_on_a_console_that_may_be_late(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    assert resets(console) == 0
    console.write_bytes(b"BdsDxe: starting Boot0001\n")
    assert resets(console) == 0
    console.write_bytes(b"BdsDxe: starting Boot0001\n" + LOCKED_UP * 2)
    assert resets(console) == 1


def test_after_its_boot_a_machine_is_reset_if_the_lockup_lasts(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_bytes(LOCKED_UP * 2)
    assert resets(console, boot_s=0) == 0
    console.write_bytes(LOCKED_UP * 3)
    assert resets(console, boot_s=0) == 1


def test_a_machine_that_has_ended_is_left_alone(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    console.write_bytes(LOCKED_UP)
    assert resets(console, ended=True) == 0
