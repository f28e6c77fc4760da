"""Building programs: by the real Go, from a module without dependencies; Cargo is a script."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.debian.command import BuildError
from instant_env.errors import MissingToolError, UsageError
from instant_env.programs import glibc, npm
from instant_env.programs.build import build, build_all
from instant_env.progress import quiet
from instant_env.settings import ROOT

INVOKE = str(Path(sys.executable).parent / "invoke")
#: EI_CLASS and so on are the same; e_machine, at 18, is what differs (ELF-64 specification).
MACHINE = {Arch.X86_64: 0x3E, Arch.ARM64: 0xB7}
OTHER = {"x86_64": Arch.ARM64, "aarch64": Arch.X86_64}[os.uname().machine]
HOST = {"x86_64": Arch.X86_64, "aarch64": Arch.ARM64}[os.uname().machine]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with one program, `hello`."""
    hello = tmp_path / "recipes/programs/hello"
    hello.mkdir(parents=True)
    (hello / "program.yml").write_text(
        "program: hello\ndescription: says what it was built with\nversion: 1.2.3\n"
        "go: {package: hello.example/hello, variables: {main.word: greeting}}\n"
    )
    (hello / "go.mod").write_text("module hello.example/hello\n\ngo 1.24\n")
    (hello / "hello.go").write_text('package main\n\nvar word = ""\n\nfunc main() { println(word) }\n')
    return hello.parent


def files(cache: Path) -> list[str]:
    """Programs in the cache: all but logs and locks. A build's leftovers would be among them."""
    found = (cache / "programs").iterdir()
    return sorted(path.name for path in found if path.suffix not in (".log", ".lock"))


def test_a_go_program_is_built_once_for_each_architecture(programs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = build_all(programs, ["hello"], list(Arch), cache, quiet)
    for built in first:
        content = built.path.read_bytes()
        assert content[:4] == b"\x7fELF"
        assert int.from_bytes(content[18:20], "little") == MACHINE[built.arch]
        assert b"greeting" in content
        assert str(tmp_path).encode() not in content, "two callers get the same bytes"
        assert not built.reused
        assert built.as_dict()["sha256"] == hashlib.sha256(content).hexdigest()
    again = build_all(programs, ["hello"], list(Arch), cache, quiet)
    assert [(built.path, built.reused) for built in again] == [(built.path, True) for built in first]
    assert files(cache) == sorted(built.path.name for built in first)
    (programs / "hello/hello.go").write_text("package main\n\nfunc main() {}\n")
    changed = build(programs, "hello", HOST, cache, quiet)
    assert not changed.reused
    assert changed.path not in [built.path for built in first]


def test_all_names_are_checked_before_one_is_built(programs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown program 'absent'"):
        build_all(programs, ["hello", "absent"], [HOST], tmp_path / "cache", quiet)
    assert not (tmp_path / "cache").exists()


def test_a_build_that_fails_names_its_log_and_leaves_nothing(programs: Path, tmp_path: Path) -> None:
    (programs / "hello/hello.go").write_text("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(BuildError, match="undefined: undefined") as caught:
        build(programs, "hello", HOST, tmp_path / "cache", quiet)
    assert files(tmp_path / "cache") == []
    log = Path(caught.value.hint.removeprefix("all of its output is in "))
    assert "undefined: undefined" in log.read_text()


def test_a_second_build_of_the_same_waits_and_reuses(programs: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ours = build(programs, "hello", HOST, cache, quiet).path
    content = ours.read_bytes()
    ours.unlink()
    waiting = threading.Event()
    results = []

    def progress(line: str) -> None:
        if "another command is building it" in line:
            waiting.set()

    thread = threading.Thread(
        target=lambda: results.append(build(programs, "hello", HOST, cache, progress)), daemon=True
    )
    with (cache / f"programs/hello-{HOST}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        assert waiting.wait(60)
        ours.write_bytes(content)  # the other command is ready
    thread.join(60)
    assert [built.reused for built in results] == [True]


CRATE = "[package]\nname='tester'\nversion='0.1.0'\nedition='2021'\n"
#: Does what cargo does: `info` puts the crate in its cache, `build` makes a program.
CARGO = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$1" in
info) mkdir -p "$CARGO_HOME/registry/cache/index"; cp "$CRATE" "$CARGO_HOME/registry/cache/index/" ;;
build)
    [ -f Cargo.toml ] || exit 9
    if [ -n "${HANG-}" ]; then touch "$HANG"; sleep 600; fi
    for word; do case "$word" in --target=*) target="${word#--target=}" ;; esac; done
    mkdir -p "$CARGO_TARGET_DIR/$target/release"
    printf 'built\\0GLIBC_2.%s\\0' "${GLIBC:-17}" >"$CARGO_TARGET_DIR/$target/release/tester" ;;
esac
"""


@pytest.fixture
def crate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `tester` from a crate, and a cargo that has it. The folder of programs."""
    source = tmp_path / "tester-0.1.0"
    source.mkdir()
    (source / "Cargo.toml").write_text(CRATE)
    archive = tmp_path / "tester-0.1.0.crate"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(source, source.name)
    folder = tmp_path / "recipes/programs/tester"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (folder / "program.yml").write_text(
        "program: tester\ndescription: d\nversion: 0.1.0\n"
        f"cargo: {{crate: tester, sha256: {digest}, features: [one, two], glibc: '2.34'}}\n"
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("cargo", CARGO), ("rustc", f"#!/bin/sh\necho {tmp_path}\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CARGO_HOME", str(tmp_path / "cargo-home"))
    monkeypatch.setenv("CRATE", str(archive))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return folder.parent


def test_a_crate_is_built_from_the_pinned_bytes_with_its_lock(crate: Path, tmp_path: Path) -> None:
    built = build(crate, "tester", HOST, tmp_path / "cache", quiet)
    assert built.path.read_bytes().startswith(b"built")
    info, compiled = (tmp_path / "calls").read_text().splitlines()
    assert info == "info --quiet tester@0.1.0"
    assert "--locked" in compiled.split()
    assert "--features=one,two" in compiled.split()
    assert "--no-default-features" in compiled.split()


def test_another_crate_than_the_pinned_one_is_not_compiled(crate: Path, tmp_path: Path) -> None:
    text = (crate / "tester/program.yml").read_text()
    digest = text.partition("sha256: ")[2][:64]
    (crate / "tester/program.yml").write_text(text.replace(digest, "0f" * 32))
    with pytest.raises(BuildError, match=f"is pinned to SHA-256 {'0f' * 32}, and .* {digest}"):
        build(crate, "tester", HOST, tmp_path / "cache", quiet)
    assert "build" not in (tmp_path / "calls").read_text()
    assert files(tmp_path / "cache") == []


def test_a_binary_for_a_newer_glibc_than_the_images_is_refused(
    crate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC", "38")
    with pytest.raises(BuildError, match=r"needs glibc 2\.38, and images have 2\.34"):
        build(crate, "tester", HOST, tmp_path / "cache", quiet)
    assert files(tmp_path / "cache") == []


def test_the_other_architecture_takes_rusts_library_for_it(crate: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match=f"building tester for {OTHER}") as caught:
        build(crate, "tester", OTHER, tmp_path / "cache", quiet)
    assert caught.value.hint.startswith("run: rustup target add ")


def test_without_cargo_the_message_says_so(
    crate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="no cargo, which builds tester"):
        build(crate, "tester", HOST, tmp_path / "cache", quiet)


def test_ctrl_c_ends_the_compiler_and_leaves_nothing(crate: Path, tmp_path: Path) -> None:
    hang = tmp_path / "hangs"
    environ = {
        **os.environ, "HANG": str(hang), "INSTANT_ENV_RECIPES_DIR": str(crate.parent),
        "INSTANT_ENV_CACHE_DIR": str(tmp_path / "cache"), "INSTANT_ENV_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip
    command = [INVOKE, "build", "--program", "tester", "--arch", HOST.value]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not hang.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert files(tmp_path / "cache") == []
    mine = [Path(path).parent for path in Path("/proc").glob("[0-9]*/environ") if os.access(path, os.R_OK)]
    assert not [path for path in mine if f"HANG={hang}".encode() in _read(path / "environ")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_the_verb_prints_what_a_script_can_read(programs: Path, tmp_path: Path) -> None:
    environ = {
        **os.environ, "INSTANT_ENV_RECIPES_DIR": str(programs.parent),
        "INSTANT_ENV_CACHE_DIR": str(tmp_path / "cache"), "INSTANT_ENV_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip
    command = [INVOKE, "build", "--json"]
    arguments = ["--program", "hello", "--arch", "x86_64,arm64"]
    result = subprocess.run([*command, *arguments], cwd=ROOT, env=environ, capture_output=True, check=True)
    rows = json.loads(result.stdout)["programs"]
    assert [(row["program"], row["version"], row["arch"], row["reused"]) for row in rows] == [
        ("hello", "1.2.3", "x86_64", False), ("hello", "1.2.3", "arm64", False)
    ]  # fmt: skip
    assert all(Path(row["path"]).stat().st_size == row["bytes"] for row in rows)
    nameless = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert nameless.returncode == 2
    assert "no program named" in nameless.stderr
    assert "hello" in nameless.stderr


def test_native_modules_are_not_compiled_for_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(MissingToolError, match=f"own architecture only, and not for {OTHER}") as caught:
        build(ROOT / "recipes/programs", "code-server", OTHER, tmp_path / "cache", quiet)
    assert f"on an {OTHER} machine" in caught.value.hint
    assert not (tmp_path / "cache").exists()


def test_what_a_package_does_not_run_on_stays_out_of_the_image(tmp_path: Path) -> None:
    kept = (
        "out/node/entry.js", "out/test/index.js", "README.md", "extensions/git/README.md",
        "node_modules/a/index.js", "node_modules/a/LICENSE.md", "node_modules/a/test.js",
        "node_modules/a/node_modules/b/prebuilds/linux-x64/b.node", "node_modules/a/bin/linux-x64/rg",
    )  # fmt: skip
    left_out = (
        "node_modules/a/test/fixtures/id_rsa", "node_modules/a/node_modules/b/tests/token.ts",
        "node_modules/a/README.md", "node_modules/a/.travis.yml", "node_modules/a/index.js.map",
        "node_modules/a/node_modules/b/prebuilds/darwin-arm64/b.node", "node_modules/a/bin/linux-arm64/rg",
        "node_modules/a/build/Release/obj.target/a.o",
    )  # fmt: skip
    for name in (*kept, *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    npm._tidy(tmp_path, Arch.X86_64)
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(kept)


def test_an_archive_depends_on_names_modes_and_contents_alone(tmp_path: Path) -> None:
    archives = []
    for number, names in enumerate((("b", "a"), ("a", "b"))):
        tree = tmp_path / f"tree{number}"
        (tree / "folder").mkdir(parents=True)
        for name in names:
            (tree / "folder" / name).write_text(name)
            os.utime(tree / "folder" / name, (number, number))
        (tree / "folder/a").chmod(0o700 + number * 0o55)
        archives.append(npm._pack(tree, tmp_path / f"{number}.tar.gz", "package").read_bytes())
    assert archives[0] == archives[1]
    with tarfile.open(tmp_path / "0.tar.gz") as packed:
        members = {member.name: (member.mode, member.uid) for member in packed}
    assert members == {
        "package": (0o755, 0), "package/folder": (0o755, 0), "package/folder/a": (0o755, 0),
        "package/folder/b": (0o644, 0),
    }  # fmt: skip


def test_this_interpreters_own_glibc_suffices_it() -> None:
    """A real binary, so that what is looked for is what linkers write."""
    binary = Path(sys.executable).resolve()
    glibc.check(binary, "2.999")
    with pytest.raises(BuildError, match="needs glibc 2"):
        glibc.check(binary, "2.1")
