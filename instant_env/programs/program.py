"""What a program is built from: recipes/programs/<name>/program.yml and what lies beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from instant_env.errors import UsageError
from instant_env.foreign import read_yaml
from instant_env.settings import explain

FILE = "program.yml"
#: The folder of all of them, below the recipes.
PROGRAMS = "programs"
#: Part of file names in the cache, and of what Docker and Cargo call their plug-ins.
ProgramName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoSource(_Strict):
    """A main package of a Go module. go.mod and go.sum beside program.yml pin it and all that it needs."""

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]*$", description="import path of the program")
    variables: dict[str, str] = Field(default_factory=dict, description="set by the linker's -X")


class CargoSource(_Strict):
    """A crate with a program. Its own Cargo.lock pins what it needs; ``sha256`` pins the crate."""

    crate: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the .crate file, as Cargo.lock has it")
    features: list[str] = Field(default_factory=list, description="instead of the default ones")
    glibc: str = Field(pattern=r"^2\.[0-9]+$", description="the oldest glibc that it has to run with")


class NpmSource(_Strict):
    """An npm package with native modules, packed with the Node that runs it.

    Its npm-shrinkwrap.json pins what it needs, ``integrity`` pins the package, and node.txt beside
    program.yml, a requirements file of pip's with hashes, pins Node.
    """

    package: str = Field(pattern=r"^(@[a-z0-9-]+/)?[a-z0-9][a-z0-9.-]*$")
    integrity: str = Field(pattern=r"^sha512-[A-Za-z0-9+/]{86}==$", description="as the registry has it")
    glibc: str = Field(pattern=r"^2\.[0-9]+$", description="the oldest glibc that it has to run with")


class Program(_Strict):
    """One program as written."""

    program: ProgramName
    description: str
    version: str = Field(pattern=r"^[0-9]+(\.[0-9]+)*$")
    go: GoSource | None = None
    cargo: CargoSource | None = None
    npm: NpmSource | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.go, self.cargo, self.npm)) != 1:
            raise ValueError("name its source by one of go, cargo and npm")
        return self


def program_names(programs_dir: Path) -> list[str]:
    """The names of all programs, sorted."""
    return sorted(path.parent.name for path in programs_dir.glob(f"*/{FILE}"))


def load_program(programs_dir: Path, name: str) -> Program:
    """Read one. Raises UsageError for an unknown name or a wrong file."""
    if name not in (names := program_names(programs_dir)):
        known = f"there are: {', '.join(names)}" if names else f"{programs_dir} has none"
        raise UsageError(f"unknown program {name!r}", hint=known)
    path = programs_dir / name / FILE
    try:
        program = Program.model_validate(read_yaml(path))
    except ValidationError as error:
        hint = f"known keys: {', '.join(Program.model_fields)}"
        raise UsageError(explain(error, str(path)), hint=hint) from error
    if program.program != name:
        raise UsageError(f"{path} calls itself {program.program!r}", hint="name and folder must agree")
    return program


def source_digest(directory: Path) -> str:
    """SHA-256 over names and bytes of all files in a program's folder."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
