"""A bake gives nothing to a server, and takes nothing from it, before the console has told its host key."""

from __future__ import annotations

from typing import Any

import asyncssh
import pytest
from support.pretend_bakery import NOTHING, Bakery

from instant_env.bake import builder
from instant_env.launch.host_keys import NoHostKeys
from instant_env.ssh.host_keys import HostKeyMismatch

pytest_plugins = ("support.pretend_bakery",)


def show_on_console(bakery: Bakery, keys: str) -> None:
    """In place of the host keys of the machine; the rest of its console stays."""

    def replace(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Output"] = keys + parsed["Output"].partition("-----END SSH HOST KEY KEYS-----\n")[2]

    bakery.cloud.ec2.meta.events.register_last("after-call.ec2.GetConsoleOutput", replace)


def test_a_server_with_another_host_key_than_the_machine_gets_no_command(bakery: Bakery) -> None:
    """Somebody on the way to the builder could write into the image."""
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    block = f"-----BEGIN SSH HOST KEY KEYS-----\n{key}-----END SSH HOST KEY KEYS-----\n"
    show_on_console(bakery, block)
    with pytest.raises(HostKeyMismatch, match="none of the machine's"):
        bakery.bake()
    assert bakery.guest.commands == []
    assert bakery.images() == []
    assert bakery.leftovers() == NOTHING


def test_a_console_without_host_keys_ends_a_bake_unless_it_is_not_to_look(
    bakery: Bakery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "HOST_KEY_TIMEOUT_S", 0.05)
    show_on_console(bakery, "a kernel's words\n")
    with pytest.raises(NoHostKeys, match="no host keys on its console") as refusal:
        bakery.bake()
    assert "--no-check-host-key" in refusal.value.hint
    assert bakery.guest.commands == []
    bakery.bake(check_host_key=False)
    assert bakery.leftovers() == NOTHING
