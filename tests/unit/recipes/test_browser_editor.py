"""The commands of the recipe `browser-editor`, as rendered, on a directory that stands for a root.

That code-server lets its password in and Caddy serves are the bake's own checks, on a booted machine.
"""

from __future__ import annotations

import datetime
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.moved_machine import Machine

from instant_env.arch import Arch
from instant_env.bake import artefacts
from instant_env.bake.plan import File, make_plan
from instant_env.bake.recipe import load_base, resolve
from instant_env.settings import ROOT

RECIPES = ROOT / "recipes"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "root", also=("/etc/browser-editor", "/run/instant-env", "/run/browser-editor",
                                            "/var/lib/browser-editor-tls"))  # fmt: skip
    (made.root / "home/editor/workspace").mkdir(parents=True)
    (made.root / "etc/browser-editor").mkdir(parents=True)
    made.program("runuser", '[ "$1 $2 $3" = "-u editor --" ] || exit 9; shift 3; exec "$@"')
    made.program("systemctl", f'echo "$@" >>{made.root}/systemctl')
    made.program("chown", "exit 0")
    # The launch's settings are written while they are waited for.
    written = f"{made.root}/run/instant-env/settings"
    made.program(
        "instant-init", f'[ "$*" = "await user-data" ] || exit 9; mv {written}.late {written} || true'
    )
    return made


def run(
    machine: Machine, *arguments: str, stdin: bytes = b"", parameters: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    recipe = resolve(RECIPES, "browser-editor", "apt")
    files = dict.fromkeys(artefacts.names(recipe), Path(__file__))
    base = load_base(RECIPES, "debian-12")
    plan = make_plan(recipe, base, "ami-1", Arch.X86_64, files, parameters or {})
    (commands,) = (step for step in plan.steps if isinstance(step, File) and step.name == "commands")
    script = machine.moved(commands.content.decode())
    return subprocess.run(
        ["sh", str(script), *arguments], input=stdin, capture_output=True, check=False,
        env={"PATH": f"{machine.programs}:/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip


def archive(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        member = tarfile.TarInfo(name)
        member.size = 2
        packed.addfile(member, io.BytesIO(b"hi"))
    return buffer.getvalue()


def test_the_password_is_in_a_file_of_its_users_own_and_in_no_argument(machine: Machine) -> None:
    """Node stands aside: what it would be given is written down."""
    node = machine.write(
        "usr/local/lib/code-server/lib/node",
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{machine.root}/arguments\n'
        f"cat >{machine.root}/input\necho '$argon2id$v=19$hash'\n",
    )
    node.chmod(0o755)
    result = run(machine, "password", stdin=b"correct horse battery staple\n")
    assert result.returncode == 0, result.stderr
    config = machine.root / "etc/browser-editor/config.yaml"
    assert config.stat().st_mode & 0o777 == 0o600
    assert 'hashed-password: "$argon2id$v=19$hash"' in config.read_text()
    assert (machine.root / "input").read_text() == "correct horse battery staple"
    assert "battery" not in (machine.root / "arguments").read_text()
    assert (machine.root / "systemctl").read_text() == "restart browser-editor.service\n"
    generated = [run(machine, "password", "--generate").stdout for _ in range(2)]
    assert all(len(word.strip()) == 24 for word in generated)
    assert generated[0] != generated[1]


def test_a_password_that_can_be_guessed_is_refused(machine: Machine) -> None:
    result = run(machine, "password", stdin=b"short\n")
    assert result.returncode == 1
    assert b"the password has 5 characters: 16 are the least" in result.stderr
    assert not (machine.root / "etc/browser-editor/config.yaml").exists()


def test_a_workspace_is_seeded_once(machine: Machine) -> None:
    assert run(machine, "seed", stdin=archive("task/README.md")).returncode == 0
    file = machine.root / "home/editor/workspace/task/README.md"
    assert file.read_text() == "hi"
    file.write_text("a candidate's work")
    again = run(machine, "seed", stdin=archive("task/README.md"))
    assert again.returncode == 1
    assert b"is not empty" in again.stderr
    assert file.read_text() == "a candidate's work"


@pytest.mark.parametrize(
    ("settings", "parameters", "status", "text"),
    [
        ({}, {}, 1, None),
        ({"tls": "none"}, {"tls": "acme", "domain": "a.example"}, 1, None),
        ({}, {"tls": "acme", "domain": "a.example"}, 0, "https://a.example {\n\treverse_proxy"),
        ({"tls": "self-signed", "domain": "203.0.113.9"}, {}, 0, "https://203.0.113.9 {\n\ttls {"),
        ({"tls": "acme"}, {}, 255, None),
        ({"tls": "yes"}, {}, 255, None),
        ({"tls": "acme", "domain": "a.example { respond evil }"}, {}, 255, None),
    ],
)
def test_tls_is_what_the_launch_says_or_else_the_image(
    machine: Machine, settings: dict[str, str], parameters: dict[str, str], status: int, text: str | None
) -> None:
    """1 skips the unit, and 255 fails it (systemd.service(5), ExecCondition=)."""
    for name, value in settings.items():
        machine.write(f"run/instant-env/settings.late/{name}", f"{value}\n")
    result = run(machine, "tls", parameters=parameters)
    assert result.returncode == status, result.stderr
    assert (b"browser-editor: " in result.stderr) is (status == 255)
    file = machine.root / "run/browser-editor/Caddyfile"
    assert file.exists() is (text is not None)
    if text is not None:
        assert text in file.read_text()


def certificate(name: str) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(day).not_valid_after(day + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip


def test_the_fingerprint_is_that_of_the_servers_own_certificate(machine: Machine) -> None:
    chain = [certificate("editor.example"), certificate("root")]
    text = "".join(one.public_bytes(serialization.Encoding.PEM).decode() for one in chain)
    folder = "var/lib/browser-editor-tls/caddy/certificates/local/editor.example"
    file = machine.write(f"{folder}/editor.example.crt", text)
    printed = run(machine, "fingerprint").stdout.decode().strip()
    assert printed == chain[0].fingerprint(hashes.SHA256()).hex(":").upper()
    file.unlink()
    assert b"there is no self-signed certificate" in run(machine, "fingerprint").stderr
