"""Build a program once, and keep it: ``<cache>/programs/<name>-<version>-<arch>-<key>``.

The key is a digest of all that decides the result: the program's folder, the architecture and the toolchain.
A finished file is renamed into the cache, so that a reader sees all of it or nothing; a lock keeps two
commands from building the same program at once; what an interrupted build leaves is gone with it, or, after
a power cut, with the next one.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from instant_env.arch import Arch
from instant_env.debian.command import Runner
from instant_env.errors import MissingToolError, UsageError
from instant_env.files import exclusive, file_sha256, replacing
from instant_env.programs import cargo, golang, npm
from instant_env.programs.program import Program, load_program, program_names, source_digest
from instant_env.progress import Doing, Progress

#: Raise it when builds change in a way that neither a program's folder nor its toolchain shows.
_FORMAT = 1


@dataclass(frozen=True)
class Built:
    """A program in the cache. ``reused`` when it was there before."""

    program: Program
    arch: Arch
    path: Path
    reused: bool
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "program": self.program.program,
            "version": self.program.version,
            "arch": self.arch.value,
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "sha256": file_sha256(self.path),
            "reused": self.reused,
            "seconds": round(self.seconds, 1),
        }


class Maker(Protocol):
    """How one kind of source is built."""

    def toolchain(self) -> str:
        """The tools and their versions, as far as they decide the result."""

    def make(self, work: Path, runner: Runner, progress: Progress) -> Path:
        """Build in ``work``, an empty directory; the path of the one file that results."""


def _maker(program: Program, directory: Path, arch: Arch) -> Maker:
    if program.go is not None:
        return golang.Maker(program.go, directory, arch)
    if program.cargo is not None:
        return cargo.Maker(program.cargo, program.version, arch)
    if program.npm is not None:
        return npm.Maker(program.npm, program.version, directory, arch)
    raise ValueError(f"program {program.program} has no source")


def lacking(programs_dir: Path, name: str, arch: Arch) -> MissingToolError | None:
    """What keeps this machine from building the program for ``arch``, if anything does."""
    try:
        _maker(load_program(programs_dir, name), programs_dir / name, arch).toolchain()
    except MissingToolError as error:
        return error
    return None


def select(programs_dir: Path, text: str) -> list[str]:
    """The names in ``text``, which has commas. Raises UsageError without one."""
    names = list(dict.fromkeys(word for part in text.split(",") if (word := part.strip())))
    if not names:
        known = ", ".join(program_names(programs_dir))
        raise UsageError("no program named", hint=f"--program takes: {known}")
    return names


def build_all(
    programs_dir: Path, names: Sequence[str], archs: Sequence[Arch], cache_dir: Path, progress: Progress
) -> list[Built]:
    """Each program for each architecture. All names are checked before the first one is built."""
    programs = [load_program(programs_dir, name) for name in names]
    return [
        build(programs_dir, program.program, arch, cache_dir, progress)
        for program in programs
        for arch in archs
    ]


def build(programs_dir: Path, name: str, arch: Arch, cache_dir: Path, progress: Progress) -> Built:
    """The program for ``arch``: from the cache, or built now.

    Raises UsageError for an unknown one, MissingToolError when this machine cannot build it for ``arch``, and
    BuildError with the last lines of what failed.
    """
    program = load_program(programs_dir, name)
    directory = programs_dir / name
    maker = _maker(program, directory, arch)
    inputs = f"{_FORMAT}\n{arch}\n{source_digest(directory)}\n{maker.toolchain()}"
    stem = f"{name}-{program.version}-{arch}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    cache = cache_dir / "programs"
    final = cache / stem
    if final.is_file():
        return Built(program, arch, final, True, 0.0)
    cache.mkdir(parents=True, exist_ok=True)
    label = f"{name} {program.version} for {arch}"
    waiting = f"{label}: another command is building it, waiting"
    with exclusive(cache / f"{name}-{arch}.lock", lambda: progress(waiting)):
        if final.is_file():
            return Built(program, arch, final, True, 0.0)
        started = time.monotonic()
        progress(Doing(f"{label}: building, once"))
        with _work_directory(cache / f".{name}-{arch}.work") as work:
            runner = Runner(cache / f"{stem}.log")
            made = maker.make(work, runner, lambda line: progress(Doing(f"{label}: {line}")))
            with replacing(final) as temporary:
                made.replace(temporary)
        seconds = time.monotonic() - started
        progress(f"{label}: built in {seconds:.0f} s")
    return Built(program, arch, final, False, seconds)


@contextmanager
def _work_directory(path: Path) -> Iterator[Path]:
    """An empty directory, removed at the end. What a killed build left in it goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
