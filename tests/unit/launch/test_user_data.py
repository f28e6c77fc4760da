"""One typed document for user data, against the init's own parser: it reads what Python writes, as meant, and
refuses what Python refuses."""

from __future__ import annotations

import json
import random
import string
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from instant_env.arch import Arch
from instant_env.public_key import PublicKey
from instant_env.settings import ROOT
from instant_env.toolchain import find_go, go_environment
from instant_env.user_data import (
    FILESYSTEMS,
    LOGIN_USER,
    MAX_BYTES,
    MAX_TTL_S,
    Mount,
    UserData,
    UserDataError,
)

#: `go test` alone reads this one; made by running this file.
GOLDEN = ROOT / "init/internal/userdata/testdata/python.json"

KEYS = tuple(
    PublicKey.parse(line)
    for line in (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUFrp1YpNdcv0sPLcKUXk8BCQZjDVwtDbyEFTgmZQDI me@home two  words",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUFrp1YpNdcv0sPLcKUXk8BCQZjDVwtDbyEFTgmZQDI",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUFrp1YpNdcv0sPLcKUXk8BCQZjDVwtDbyEFTgmZQDI"
        ' \u00fc \U0001f511 "\\',
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBGsX0fLhLEJH+Lzm5WOkQPJ3A32B"
        "LeszoPShOUXYmMKWT+NC4v4af5uO5+tKfA+eFivOM1drMV7Oy7ZAaDe/UfU= w",
    )
)

NAMED_DOCUMENTS: dict[str, UserData] = {
    "nothing": UserData(),
    "shortest time": UserData(ttl_s=1),
    "longest time": UserData(ttl_s=MAX_TTL_S),
    "an instant": UserData(expires_at=datetime(2026, 11, 21, 18, tzinfo=UTC)),
    "keys": UserData(ttl_s=3600, ssh_keys=KEYS),
    "everything": UserData(
        ttl_s=3600,
        expires_at=datetime(2027, 1, 1, 0, 0, 1, tzinfo=UTC),
        ssh_keys=KEYS[:1],
        hostname="build-7.example.org",
        mounts=(
            Mount("vol-0abc1234def567890", "/data", "ext4", format_blank=True),
            Mount("/dev/disk/by-label/x", "/srv/a b/c", "xfs", owner="code-server"),
            Mount("/dev/sdf", "/..x", owner=LOGIN_USER),
        ),
        services=("docker", "getty@ttyS0", "-x", "_y.z"),
        settings={
            "image": "ghcr.io/team/app",
            "ports": "80:8080 443:8443",
            "-_9": "",
            "quoted": '\u00fc "$(id)\\',
        },
    ),
    "longest setting": UserData(settings={"a" * 100: "\u00fc" * 512}),
    **{
        f"a volume on {path}": UserData(mounts=(Mount("/dev/sdf", path),))
        for path in (
            "/home",
            "/home/admin",
            "/var/lib/docker",
            "/var/log",
            "/tmp/x",  # noqa: S108
            "/root/x",
            "/library",
            "/binary",
        )
    },
    "longest name": UserData(hostname=f"{'a' * 62}.b"),
    "one letter": UserData(hostname="A"),
    "longest service": UserData(services=("a" * 100,)),
}


def _mount(**fields: str) -> tuple[dict[str, Any], Callable[[], object]]:
    raw: dict[str, Any] = {"device": "/dev/sdf", "path": "/data"} | fields
    blank: dict[str, Any] = {"format_blank": raw.pop("format") == "blank"} if "format" in raw else {}
    written = {"device": "/dev/sdf", "path": "/data"} | fields
    return {"mounts": [written]}, lambda: Mount(**raw, **blank)


def _key(text: str) -> tuple[dict[str, Any], Callable[[], object]]:
    return {"ssh_keys": [text]}, lambda: PublicKey.parse(text)


def _field(name: str, value: Any) -> tuple[dict[str, Any], Callable[[], object]]:
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value}
    return {name: value}, lambda: UserData(**given)


#: Name: what stands in the document, and what makes Python refuse it.
REFUSED: dict[str, tuple[dict[str, Any], Callable[[], object]]] = {
    "no time at all": _field("ttl_s", 0),
    "time backwards": _field("ttl_s", -1),
    "more than a year": _field("ttl_s", MAX_TTL_S + 1),
    "half seconds": _field("ttl_s", 1.5),
    "a time of text": _field("ttl_s", "60"),
    "a truth as a time": _field("ttl_s", True),
    "an instant without a zone": (
        {"expires_at": "2026-11-21T18:00:00"},
        lambda: UserData(expires_at=datetime(2026, 11, 21, 18)),  # noqa: DTZ001
    ),
    "no key": _key("no key"),
    "an empty key": _key(""),
    "a key with options": _key(f'command="id" {KEYS[1]}'),
    "two keys in one": _key(f"{KEYS[1]}\n{KEYS[1]}"),
    "a key of another type": _key(f"ssh-rsa {KEYS[1].body}"),
    "a key cut short": _key(str(KEYS[1])[:-8] + "AAAA*"),
    "an escape in a comment": _key(f"{KEYS[1]} a\x1bb"),
    **{
        f"host name {name!r}": _field("hostname", name)
        for name in (
            "a b", "-a", "a-", "a..b", ".a", "a.", "a_b", "\u00e4", "a" * 64, f"{'a' * 60}.{'b' * 4}"
        )
    },
    **{
        f"service {name[:20]!r}": _field("services", [name])
        for name in ("", ".a", "a/b", "a b", "\u00e4", "a" * 101)
    },
    **{
        f"device {device!r}": _mount(device=device)
        for device in (
            "", "vol-", "vol-a/b", "vol-\u00e4", "sdf", "/dev", "/dev/", "/dev/../etc", "/dev/a\nb", "/x"
        )
    },
    **{
        f"path {path!r}": _mount(path=path)
        for path in ("", "/", "data", "/data/", "//data", "/a//b", "/a/./b", "/a/../b", "/a\x7fb")
    },
    **{
        f"system directory {path!r}": _mount(path=path)
        for path in (
            "/bin", "/boot/efi", "/dev", "/dev/shm", "/etc", "/etc/ssh", "/lib", "/lib32", "/lib64/x",  # noqa: S108
            "/libx32", "/proc", "/run", "/run/instant-env", "/sbin", "/sys/fs/cgroup", "/usr", "/usr/local",
            "/root", "/tmp", "/var", "/var/lib", "/var/lib/instant-init", "/var/lock", "/var/run",  # noqa: S108
        )
    },
    **{
        f"owner {owner[:20]!r}": _mount(owner=owner)
        for owner in (".a", "a b", "a:b", "\u00e4", "a@b", "a" * 101)
    },
    **{
        f"setting {name[:20]!r}": _field("settings", {name: "x"})
        for name in ("", ".a", "a.b", "a/b", "../x", "a b", "\u00e4", "a" * 101)
    },
    **{
        f"value {str(value)[:20]!r}": _field("settings", {"image": value})
        for value in ("a\nb", "a\x1bb", "\x7f", 7, True, None, ["a"], {"a": "b"}, "\u00fc" * 513)
    },
    "one path for two volumes": (
        {"mounts": [{"device": "/dev/sdf", "path": "/data"}, {"device": "/dev/sdg", "path": "/data"}]},
        lambda: UserData(mounts=(Mount("/dev/sdf", "/data"), Mount("/dev/sdg", "/data"))),
    ),
    "a file system that the init cannot make": _mount(filesystem="btrfs"),
    "a format without a file system": _mount(format="blank"),
}  # fmt: skip


def case(name: str, data: UserData) -> dict[str, Any]:
    """What the Go test reads: the document, and what Python means by it."""
    mounts = [
        {
            "Device": mount.device, "Path": mount.path, "Filesystem": mount.filesystem,
            "Format": "blank" if mount.format_blank else "", "Owner": mount.owner,
        }
        for mount in data.mounts
    ]  # fmt: skip
    says = {
        "ttl_s": data.ttl_s or 0,
        "expires_at": data.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ") if data.expires_at else "",
        "ssh_keys": [f"{key.type} {key.body} {key.comment}".strip() for key in data.ssh_keys],
        "hostname": data.hostname,
        "mounts": mounts,
        "services": list(data.services),
        "settings": dict(data.settings),
    }
    return {"Name": name, "Document": data.as_json(), "Says": says}


def random_document(numbers: random.Random) -> UserData:
    def word(letters: str, most: int) -> str:
        return "".join(numbers.choices(letters, k=numbers.randint(1, most)))

    def some(make: Callable[[], Any]) -> tuple[Any, ...]:
        return tuple(make() for _ in range(numbers.randint(0, 3)))

    def mount() -> Mount:
        filesystem = numbers.choice(["", *FILESYSTEMS])
        path = "/".join(["", *(f"x{word(string.printable[:95], 6).replace('/', '-')}" for _ in range(2))])
        device = numbers.choice([f"vol-{word(string.hexdigits, 17)}", f"/dev/{word('abc', 5)}"])
        blank = bool(filesystem) and numbers.random() < 0.5
        return Mount(
            device, path, filesystem, format_blank=blank, owner=numbers.choice(["", LOGIN_USER, "w.w-w"])
        )

    return UserData(
        ttl_s=numbers.choice([None, numbers.randint(1, MAX_TTL_S)]),
        expires_at=numbers.choice([None, datetime.fromtimestamp(numbers.randint(0, 2**32), UTC)]),
        ssh_keys=some(lambda: numbers.choice(KEYS)),
        hostname=numbers.choice(["", word(string.ascii_letters + string.digits, 63)]),
        mounts=tuple({mount.path: mount for mount in some(mount)}.values()),
        services=some(lambda: f"s{word(string.ascii_letters + '-_.@', 99)}"),
        settings=dict(
            some(lambda: (word(string.ascii_letters + "-_", 100), word(string.printable[:95], 300)))
        ),
    )


def golden_cases() -> list[dict[str, Any]]:
    made = [case(name, data) for name, data in NAMED_DOCUMENTS.items()]
    return made + [
        {"Name": f"refused {name}", "Document": json.dumps({"instant-env": raw}), "Refused": True}
        for name, (raw, _) in REFUSED.items()
    ]


def test_the_cases_that_go_test_reads_are_current() -> None:
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == golden_cases(), (
        f"the document has changed: python {Path(__file__).relative_to(ROOT)} writes {GOLDEN.name} anew"
    )


def test_the_init_reads_what_python_writes(tmp_path: Path) -> None:
    """Random documents beside the named ones, by the init's own parser."""
    numbers = random.Random(7)  # noqa: S311
    cases = golden_cases() + [case(f"random {index}", random_document(numbers)) for index in range(300)]
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    env = go_environment(Arch.X86_64) | {"INSTANT_ENV_USER_DATA_CASES": str(file)}
    del env["GOARCH"], env["GOOS"]
    result = subprocess.run(
        [find_go(), "test", "-v", "-count=1", "-run", "^TestDocumentsOfPython$", "./init/internal/userdata"],
        cwd=ROOT, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr
    assert result.stdout.count("--- PASS") == len(cases) + 1


@pytest.mark.parametrize("make", [make for _, make in REFUSED.values()], ids=list(REFUSED))
def test_what_the_init_would_ignore_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    assert caught.value.hint  # type: ignore[attr-defined]


def test_an_error_names_the_field_the_value_and_an_example() -> None:
    with pytest.raises(UserDataError, match="hostname: 'a b' is not labels") as caught:
        UserData(hostname="a b")
    assert caught.value.hint == "for example: build-7"


def test_times_are_written_in_utc() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    data = UserData(expires_at=datetime(2026, 1, 1, 5, 30, 0, 999, tzinfo=india))
    assert data.document() == {"instant-env": {"expires_at": "2026-01-01T00:00:00Z"}}
    assert UserData(expires_at=datetime(26, 1, 1, tzinfo=UTC)).as_json().count("0026-01-01T") == 1


def test_a_document_fits_into_ec2s_limit() -> None:
    key = PublicKey(KEYS[0].type, KEYS[0].body, "x" * 1000)
    assert len(UserData(ssh_keys=(key,) * 14).as_json()) <= MAX_BYTES
    with pytest.raises(UserDataError, match="at most 16384 bytes"):
        UserData(ssh_keys=(key,) * 16)


def test_nothing_said_is_an_empty_object() -> None:
    assert UserData().as_json() == '{"instant-env": {}}'
    assert "format" not in Mount("/dev/sdf", "/data", "ext4").document()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_cases(), indent=1) + "\n", encoding="utf-8")
