"""Recipes and bases: YAML, validated; inheritance resolved; scripts and files rendered by Jinja.

Everything here is a pure function of the files under recipes/. All errors are UsageErrors that name the
file and, where there is one, the key or line.
"""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import jinja2
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from instant_env.arch import Arch
from instant_env.bake.downloads.hosts import HostPattern
from instant_env.bake.parameters import Parameter, Value
from instant_env.bake.proof.checks import Check, CheckSpec
from instant_env.bake.proof.checks import rendered as rendered_check
from instant_env.errors import UsageError
from instant_env.foreign import read_yaml
from instant_env.programs.program import ProgramName
from instant_env.settings import explain

Family = Literal["apt", "dnf"]
#: The seal overwrites what is free of the root volume, and the audit reads all of it: at gp3's 125 MiB/s (EBS
#: User Guide, "General Purpose SSD volumes") so much takes nine minutes each, within what a bake waits for.
_MOST_ROOT_GIB = 64
Model = TypeVar("Model", bound=BaseModel)


class Phase(StrEnum):
    """When a step runs; steps are sorted by it, in this order."""

    CHECK = "check"
    PREPARE = "prepare"
    STRIP = "strip"
    INSTALL = "install"
    BOOT = "boot"
    FINISH = "finish"


class Initramfs(StrEnum):
    """How a recipe treats the base's initramfs. During a bake, making one is diverted in any case."""

    KEEP = "keep"
    REGENERATE = "regenerate"
    NONE = "none"


class Boot(StrEnum):
    """How a machine boots without an initramfs and a menu."""

    UKI = "uki"  # the firmware starts one EFI binary with kernel and command line
    BLS = "bls"  # the base's own GRUB starts the kernel by its Boot Loader Specification entry


def _check_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None:
        raise ValueError(
            f"{name!r} cannot be part of an AMI's name and of an SSM parameter's: use up to 64 ASCII "
            "letters, digits, dots, dashes and underscores, and begin with a letter or a digit"
        )
    return name


#: AMI names have 3 to 128 characters of letters, digits and ( ) [ ] blank . / - ' @ _ (API_CreateImage), SSM
#: parameters letters, digits and . - _ / (API_PutParameter). A name that only one of them takes fails at the
#: end of a bake.
Name = Annotated[str, AfterValidator(_check_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Facts(_Strict):
    """When a base's facts were true, and of which release of it. What preflight finds otherwise, it names."""

    as_of: datetime.date | None = Field(default=None, description="the day they were looked up")
    release: str | None = Field(
        default=None, pattern=r"^[0-9A-Za-z.-]+$", description="of the distribution; rpm: system-release's"
    )
    ssh_helpers_since: str | None = Field(
        default=None, pattern=r"^[0-9A-Za-z.-]+$", description="release since which all ssh_helpers are there"
    )


class Base(_Strict):
    """Where a base comes from, and what is known of it (recipes/bases/<name>.yml)."""

    base: Name
    description: str
    family: Family
    vendor: str = Field(pattern=r"^[a-z0-9.-]+$", description="of its packages, as package URLs name it")
    architectures: list[Arch]
    ssm_parameter: str | None = Field(default=None, description="names the AMI; template, `arch` is given")
    ami_name: str | None = Field(default=None, description="name of the AMI, newest of those; template too")
    ami_ids: dict[Arch, str] = Field(default_factory=dict, description="the AMI itself, by architecture")
    owners: list[str] = Field(description="account ids or aliases its AMIs must belong to")
    login_user: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    login_groups: list[str]
    root_filesystem: Literal["ext4", "xfs"]
    esp: str
    ssh_service: str
    boot: Boot = Field(default=Boot.UKI, description="how a boot without initramfs is done")
    os_id: str | None = Field(default=None, pattern=r"^[a-z0-9.-]+$", description="ID of os-release(5)")
    os_version: str | None = Field(
        default=None, pattern=r"^[0-9.]+$", description="VERSION_ID of os-release(5)"
    )
    kernel: str | None = Field(default=None, pattern=r"^[0-9.]+$", description="its release begins with this")
    ssh_helpers: list[str] = Field(default_factory=list, description="programs that sshd executes")
    hosts: dict[HostPattern, str] = Field(
        default_factory=dict, description="where its packages come from: reason"
    )
    facts: Facts = Field(default_factory=Facts, description="when all of this was true")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(map(bool, (self.ssm_parameter, self.ami_name, self.ami_ids))) != 1:
            raise ValueError("name its AMI by one of ssm_parameter, ami_name and ami_ids")
        if self.ami_ids and set(self.ami_ids) != set(self.architectures):
            raise ValueError("ami_ids needs one for each architecture")
        return self

    def reference_for(self, arch: Arch) -> str:
        """What names the base's AMI for ``arch``: an SSM parameter, a name or an id (see bases.find)."""
        if self.ami_ids:
            return self.ami_ids[arch]
        return environment().from_string(self.ssm_parameter or self.ami_name or "").render(arch=arch)


#: Beside the recipe or below it: a path that leads out of its folder would be another recipe's business.
FileName = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9_{][A-Za-z0-9_.{}-]*/)*[A-Za-z0-9_{][A-Za-z0-9_.{}-]*$")
]
#: Before a program's name among artefacts: one could be called as ours are.
PROGRAM_PREFIX = "programs/"
ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class StepSpec(_Strict):
    """One step as written: a script to run, a file that lies beside the recipe, or a built one to upload:
    one of ours (``upload``), or somebody else's ``program``, which recipes/programs pins.

    ``file`` is put there as it is; one whose name ends in ``.j2`` is rendered first.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    phase: Phase
    families: list[Family] = Field(default=["apt", "dnf"], min_length=1)
    script: FileName | None = None
    file: FileName | None = None
    upload: Literal["instant-init", "instant-ssm", "imagetool", "efi-stub", "container-host"] | None = None
    program: ProgramName | None = Field(default=None, description="of programs/, built for the image")
    to: str | None = None
    mode: str = Field(default="0644", pattern=r"^0[0-7]{3}$")
    timeout_s: int = Field(default=300, gt=0)
    again: bool = Field(default=False, description="run by a child that is baked from the parent's AMI, too")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(kind is not None for kind in (self.script, self.file, self.upload, self.program)) != 1:
            raise ValueError(f"step {self.name} needs one of script, file, upload and program")
        if (self.script is None) == (self.to is None):
            raise ValueError(f"step {self.name}: to goes with file, upload and program")
        if self.to is not None and not self.to.startswith("/"):
            raise ValueError(f"step {self.name}: to must be an absolute path")
        return self

    @property
    def artefact(self) -> str | None:
        """What names the file that this step uploads, among those that are built (see artefacts.build)."""
        return self.upload or (PROGRAM_PREFIX + self.program if self.program else None)


class Recipe(_Strict):
    """One recipe as written (recipes/<name>/recipe.yml)."""

    recipe: Name
    description: str
    extends: str | None = None
    includes: str | None = Field(
        default=None, description="another recipe, without its parents, that comes on top of the own parents"
    )
    families: list[Family] = ["apt", "dnf"]
    initramfs: Initramfs = Field(default=Initramfs.KEEP, description="what becomes of the base's initramfs")
    hibernates: bool | None = Field(default=None, description="whether its machines can hibernate")
    remove: dict[Family, dict[str, str]] = Field(default_factory=dict, description="package: reason")
    keep: dict[Family, dict[str, str]] = Field(default_factory=dict, description="must stay; package: reason")
    keep_where_installed: dict[Family, dict[str, str]] = Field(
        default_factory=dict, description="stays where the base has it; glob of names: reason"
    )
    kernel_arguments: list[str] = Field(default_factory=list)
    arch_kernel_arguments: dict[Arch, list[str]] = Field(default_factory=dict, description="after the others")
    ssm_keys: str | None = Field(
        default=None, pattern=r"^/[A-Za-z0-9_./-]{1,1010}$", description="SSM parameter with SSH keys"
    )
    root_gib: int | None = Field(
        default=None, ge=1, le=_MOST_ROOT_GIB, description="root volume of builder and image, at least"
    )
    parameters: dict[ParameterName, Parameter] = Field(default_factory=dict)
    hosts: dict[HostPattern, str] = Field(
        default_factory=dict, description="reached for downloads by way of the caller: reason"
    )
    allow_modes: list[str] = Field(default_factory=list, description="paths the audit lets have any mode")
    allow_accounts: list[str] = Field(
        default_factory=list, description="system accounts the audit lets have a shell"
    )
    steps: list[StepSpec] = Field(default_factory=list)
    checks: list[CheckSpec] = Field(default_factory=list, description="run on a machine of the image")


#: What a recipe with ``ssm_keys`` uploads besides: instant-init runs it where it is configured.
_SSM_STEP = StepSpec(
    name="instant-ssm", phase=Phase.INSTALL, upload="instant-ssm", to="/usr/sbin/instant-ssm", mode="0755"
)


class ResolvedStep(_Strict):
    """A step with the directory its script lies in, since a parent's scripts stay beside the parent."""

    spec: StepSpec
    directory: Path


class ResolvedRecipe(_Strict):
    """A recipe with its parents folded in, for one package family."""

    name: str
    description: str
    lineage: list[str]
    family: Family
    initramfs: Initramfs
    hibernates: bool
    remove: dict[str, str]
    keep: dict[str, str]
    keep_where_installed: dict[str, str]
    kernel_arguments: list[str]
    arch_kernel_arguments: dict[Arch, list[str]]
    ssm_keys: str | None
    root_gib: int | None
    parameters: dict[str, Parameter]
    hosts: dict[str, str]
    allow_modes: list[str]
    allow_accounts: list[str]
    steps: list[ResolvedStep]
    checks: list[CheckSpec]


def _read(path: Path, model: type[Model]) -> Model:
    data: Any = read_yaml(path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold keys and values")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        keys = ", ".join(model.model_fields)
        raise UsageError(explain(error, str(path)), hint=f"known keys: {keys}") from error


def recipe_names(recipes_dir: Path) -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.parent.name for path in recipes_dir.glob("*/recipe.yml"))


def base_names(recipes_dir: Path) -> list[str]:
    """The names of all bases, sorted."""
    return sorted(path.stem for path in (recipes_dir / "bases").glob("*.yml"))


def load_base(recipes_dir: Path, name: str) -> Base:
    """Read recipes/bases/<name>.yml."""
    if name not in base_names(recipes_dir):
        raise UsageError(f"unknown base {name!r}", hint=f"there are: {', '.join(base_names(recipes_dir))}")
    base = _read(recipes_dir / "bases" / f"{name}.yml", Base)
    if base.base != name:
        raise UsageError(f"{name}.yml calls itself {base.base!r}", hint="name and file must agree")
    return base


def load_recipe(recipes_dir: Path, name: str) -> Recipe:
    """Read recipes/<name>/recipe.yml, parents not folded in."""
    names = recipe_names(recipes_dir)
    if not name:
        raise UsageError("no recipe named", hint=f"--recipe takes one of: {', '.join(names)}")
    if name not in names:
        raise UsageError(f"unknown recipe {name!r}", hint=f"there are: {', '.join(names) or 'none'}")
    recipe = _read(recipes_dir / name / "recipe.yml", Recipe)
    if recipe.recipe != name:
        raise UsageError(f"recipes/{name} calls itself {recipe.recipe!r}", hint="name and folder must agree")
    return recipe


def _chain(recipes_dir: Path, name: str) -> list[tuple[Recipe, Path]]:
    """A recipe and what it is made of, with their directories, the nearest first."""
    chain: list[tuple[Recipe, Path]] = []
    next_name: str | None = name
    while next_name is not None:
        if next_name in (recipe.recipe for recipe, _ in chain):
            raise UsageError(f"recipe {name} extends itself by way of {next_name}")
        recipe = load_recipe(recipes_dir, next_name)
        chain.append((recipe, recipes_dir / next_name))
        if recipe.includes is not None:
            chain.append((load_recipe(recipes_dir, recipe.includes), recipes_dir / recipe.includes))
        next_name = recipe.extends
    return chain


def resolve(recipes_dir: Path, name: str, family: Family) -> ResolvedRecipe:
    """Fold a recipe's parents in.

    ``remove``, ``keep``, ``keep_where_installed``, ``hosts``, ``allow_modes`` and ``allow_accounts`` add up,
    and what a child keeps is taken out of the inherited ``remove``, what it removes out of the inherited
    ``keep``; the kernel arguments of the child replace the parent's if given; a step or check of the same
    name replaces the parent's in its place; ``initramfs`` is the child's own, ``ssm_keys`` and ``hibernates``
    are the nearest one's, ``root_gib`` is the largest; a parameter of the same name replaces the parent's,
    which is how a child sets a default.
    """
    chain = _chain(recipes_dir, name)
    child = chain[0][0]
    if family not in child.families:
        raise UsageError(
            f"recipe {name} is not for {family} bases", hint=f"it is for: {', '.join(child.families)}"
        )
    remove: dict[str, str] = {}
    keep: dict[str, str] = {}
    keep_where_installed: dict[str, str] = {}
    arguments: list[str] = []
    arch_arguments: dict[Arch, list[str]] = {}
    parameters: dict[str, Parameter] = {}
    hosts: dict[str, str] = {}
    allow_modes: list[str] = []
    allow_accounts: list[str] = []
    steps: dict[str, ResolvedStep] = {}
    checks: dict[str, CheckSpec] = {}
    for recipe, directory in reversed(chain):
        own_remove, own_keep = recipe.remove.get(family, {}), recipe.keep.get(family, {})
        if clash := sorted(set(own_remove) & set(own_keep)):
            raise UsageError(f"recipe {recipe.recipe} both removes and keeps {', '.join(clash)}")
        remove = {name: why for name, why in remove.items() if name not in own_keep} | own_remove
        keep = {name: why for name, why in keep.items() if name not in own_remove} | own_keep
        keep_where_installed |= recipe.keep_where_installed.get(family, {})
        arguments = recipe.kernel_arguments or arguments
        arch_arguments |= recipe.arch_kernel_arguments
        parameters |= recipe.parameters
        hosts |= recipe.hosts
        allow_modes += [path for path in recipe.allow_modes if path not in allow_modes]
        allow_accounts += [name for name in recipe.allow_accounts if name not in allow_accounts]
        steps |= {
            spec.name: ResolvedStep(spec=spec, directory=directory)
            for spec in recipe.steps
            if family in spec.families
        }
        checks |= {check.name: check for check in recipe.checks}
    order = list(Phase)
    ssm_keys = next((recipe.ssm_keys for recipe, _ in chain if recipe.ssm_keys), None)
    if ssm_keys is not None:
        steps[_SSM_STEP.name] = ResolvedStep(spec=_SSM_STEP, directory=chain[0][1])
    return ResolvedRecipe(
        name=name,
        description=child.description,
        lineage=[recipe.recipe for recipe, _ in chain if recipe.recipe != child.includes],
        family=family,
        initramfs=child.initramfs,
        hibernates=next((one.hibernates for one, _ in chain if one.hibernates is not None), False),
        remove=remove,
        keep=keep,
        keep_where_installed=keep_where_installed,
        kernel_arguments=arguments,
        arch_kernel_arguments=arch_arguments,
        ssm_keys=ssm_keys,
        root_gib=max((one.root_gib for one, _ in chain if one.root_gib is not None), default=None),
        parameters=parameters,
        hosts=hosts,
        allow_modes=allow_modes,
        allow_accounts=allow_accounts,
        steps=sorted(steps.values(), key=lambda step: order.index(step.spec.phase)),
        checks=list(checks.values()),
    )


def environment(directory: Path | None = None) -> jinja2.Environment:
    """Jinja as recipes have it: an undefined variable is an error, the filter ``quote`` is the shell's."""
    environment = jinja2.Environment(
        # A recipe's own folder first; below the one above lie others' files and what they share.
        loader=jinja2.FileSystemLoader([directory, directory.parent]) if directory else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - shell, not HTML; values are quoted by the filter `quote`
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment


def _render(
    file: str, step: ResolvedStep, recipe: ResolvedRecipe, base: Base, arch: Arch, values: Mapping[str, Value]
) -> str:
    path = _file_of(file, step, recipe, base)
    try:
        return (
            environment(step.directory)
            .get_template(path.relative_to(step.directory).as_posix())
            .render(_variables(recipe, base, arch, values))
        )
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}, or what it includes, is not UTF-8") from error
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"{path}:{error.lineno}: {error.message}") from error
    except jinja2.UndefinedError as error:
        raise UsageError(f"{path}: {error.message}", hint=_VARIABLES_HINT) from error


_VARIABLES_HINT = "variables: arch, base, recipe, remove, keep, kernel_arguments, parameters"


def _variables(
    recipe: ResolvedRecipe, base: Base, arch: Arch, values: Mapping[str, Value]
) -> dict[str, object]:
    return {
        "arch": arch, "base": base, "recipe": recipe, "remove": recipe.remove, "keep": recipe.keep,
        "kernel_arguments": [*recipe.kernel_arguments, *recipe.arch_kernel_arguments.get(arch, ())],
        "parameters": values,
    }  # fmt: skip


def render_checks(
    recipe: ResolvedRecipe, base: Base, arch: Arch, values: Mapping[str, Value]
) -> tuple[Check, ...]:
    """The recipe's checks, rendered; those that render to nothing are left out. Raises UsageError."""
    jinja, variables = environment(), _variables(recipe, base, arch, values)
    checks = []
    for spec in recipe.checks:
        where = f"check {spec.name} of recipe {recipe.name}"
        try:
            check = rendered_check(spec, lambda text: jinja.from_string(text).render(variables))
        except ValueError as error:
            raise UsageError(f"{where}: {error}", hint="look at what it renders to") from error
        except (jinja2.TemplateSyntaxError, jinja2.UndefinedError) as error:
            raise UsageError(f"{where}: {error.message}", hint=_VARIABLES_HINT) from error
        if check is not None:
            checks.append(check)
    return tuple(checks)


def _file_of(file: str, step: ResolvedStep, recipe: ResolvedRecipe, base: Base) -> Path:
    path = step.directory / file.replace("{family}", recipe.family).replace("{boot}", base.boot)
    if not path.is_file():
        raise UsageError(f"step {step.spec.name} of recipe {recipe.name}: no file {path}")
    return path


def render_script(
    step: ResolvedStep, recipe: ResolvedRecipe, base: Base, arch: Arch, values: Mapping[str, Value]
) -> str:
    """Render a step's script; ``set -eu`` and a shebang are put in front."""
    if step.spec.script is None:
        raise ValueError(f"step {step.spec.name} has no script")
    body = _render(step.spec.script, step, recipe, base, arch, values)
    return f"#!/bin/sh\n# {recipe.name}: {step.spec.name}\nset -eu\n{body}"


def read_file(
    step: ResolvedStep, recipe: ResolvedRecipe, base: Base, arch: Arch, values: Mapping[str, Value]
) -> bytes:
    """The bytes of a step's file, rendered when its name ends in ``.j2``."""
    if step.spec.file is None:
        raise ValueError(f"step {step.spec.name} has no file")
    if step.spec.file.endswith(".j2"):
        return _render(step.spec.file, step, recipe, base, arch, values).encode()
    return _file_of(step.spec.file, step, recipe, base).read_bytes()
