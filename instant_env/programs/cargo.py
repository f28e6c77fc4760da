"""Programs from crates: `cargo build --locked` of the crate's own sources, once their digest is checked.

For the other architecture it takes Rust's standard library for that target and a C cross compiler, both of
which it asks for by name.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from instant_env.arch import Arch
from instant_env.debian.command import BuildError, Runner
from instant_env.errors import MissingToolError
from instant_env.files import file_sha256
from instant_env.programs import glibc
from instant_env.programs.program import CargoSource
from instant_env.progress import Progress
from instant_env.requirements import find_program

TARGETS = {Arch.X86_64: "x86_64-unknown-linux-gnu", Arch.ARM64: "aarch64-unknown-linux-gnu"}
#: Debian's cross compilers, by the target they are for. Its packages are called gcc-<prefix>.
_PREFIXES = {Arch.X86_64: "x86-64-linux-gnu", Arch.ARM64: "aarch64-linux-gnu"}
_COMPILERS = {Arch.X86_64: "x86_64-linux-gnu-gcc", Arch.ARM64: "aarch64-linux-gnu-gcc"}


class Maker:
    """Builds a crate's program."""

    def __init__(self, source: CargoSource, version: str, arch: Arch) -> None:
        self._source, self._version, self._arch = source, version, arch
        self._target = TARGETS[arch]

    def toolchain(self) -> str:
        if find_program("cargo") is None or find_program("rustc") is None:
            raise MissingToolError(
                f"no cargo, which builds {self._source.crate}",
                hint="install Rust by rustup: https://rustup.rs",
            )
        return _output("rustc", "--version", "--verbose")

    def make(self, work: Path, runner: Runner, progress: Progress) -> Path:
        runner.environment.update(self._environment())
        sources = self._fetch(work, runner, progress)
        crates = 0

        def on_line(line: str) -> None:
            nonlocal crates
            if line.lstrip().startswith("Compiling "):
                crates += 1
                progress(f"{crates} crates compiled")

        features = ["--no-default-features", f"--features={','.join(self._source.features)}"]
        runner.run(
            [
                "cargo", "build", "--release", "--locked", f"--bin={self._source.crate}",
                f"--target={self._target}", *(features if self._source.features else ()),
            ],
            directory=sources, on_line=on_line,
        )  # fmt: skip
        binary = work / "target" / self._target / "release" / self._source.crate
        glibc.check(binary, self._source.glibc)
        return binary

    def _environment(self) -> dict[str, str]:
        """For Cargo, with a cross compiler where it takes one. Raises MissingToolError."""
        environment = {"CARGO_TERM_COLOR": "never", "CARGO_PROFILE_RELEASE_STRIP": "symbols"}
        if Arch.parse(platform.machine()) is self._arch:
            return environment
        library = Path(_output("rustc", "--print", "sysroot")) / "lib/rustlib" / self._target / "lib"
        if not library.is_dir():
            raise MissingToolError(
                f"Rust's standard library for {self._target} is not installed, which building "
                f"{self._source.crate} for {self._arch} takes",
                hint=f"run: rustup target add {self._target}",
            )
        compiler = _COMPILERS[self._arch]
        if find_program(compiler) is None:
            raise MissingToolError(
                f"no {compiler}, which building {self._source.crate} for {self._arch} takes",
                hint=f"run: apt-get install gcc-{_PREFIXES[self._arch]} libc6-dev-{self._arch.debian}-cross",
            )
        words = self._target.replace("-", "_")
        return environment | {
            f"CC_{words}": compiler,
            f"CARGO_TARGET_{words.upper()}_LINKER": compiler,
        }

    def _fetch(self, work: Path, runner: Runner, progress: Progress) -> Path:
        """The crate's sources below ``work``. `cargo info` downloads a crate and checks it against the
        registry's index; we check it against our own pin before anything of it is run."""
        progress("fetching the crate")
        file = f"{self._source.crate}-{self._version}.crate"
        runner.environment["CARGO_TARGET_DIR"] = str(work / "target")
        runner.run(["cargo", "info", "--quiet", f"{self._source.crate}@{self._version}"], directory=work)
        cargo_home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")
        crates = list(cargo_home.glob(f"registry/cache/*/{file}"))
        fitting = [crate for crate in crates if file_sha256(crate) == self._source.sha256]
        if not fitting:
            digests = ", ".join(file_sha256(crate) for crate in crates) or f"is not in {cargo_home}"
            raise BuildError(
                f"{file} is pinned to SHA-256 {self._source.sha256}, and what cargo fetched: {digests}",
                hint="check where your Cargo's registry is; a new version needs a new digest in program.yml",
            )
        runner.run(["tar", "--extract", "--gzip", "--file", fitting[0], "--directory", work])
        return work / file.removesuffix(".crate")


def _output(*command: str) -> str:
    """A command's standard output. Raises BuildError when it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed: {result.stderr.strip()}", hint="is Rust installed?")
    return result.stdout.strip()
