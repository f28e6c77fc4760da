"""Recipes: what is read, how parents fold in, and how a mistake is explained."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from instant_env.arch import Arch
from instant_env.bake import recipe as recipes
from instant_env.bake.plan import File, Script, Upload, make_plan
from instant_env.bake.recipe import PROGRAM_PREFIX, Phase, load_base, load_recipe, resolve
from instant_env.bake.request import Request
from instant_env.bake.seal import SEAL_TIMEOUT_S, TTL_UNIT, seal_script
from instant_env.errors import UsageError
from instant_env.launch.cloud_config import EARLY_UNIT
from instant_env.programs.program import PROGRAMS, program_names
from instant_env.settings import ROOT

RECIPES = ROOT / "recipes"
#: What a recipe is rendered with: what it needs, and what turns its branches on.
DIGEST = "0f" * 32
_CLONE = {"repository": "https://a/b.git", "repository_ref": "main"}
GIVEN: dict[str, list[dict[str, str]]] = {
    "devbox": [
        {}, {**_CLONE, "mirror": "http://m"}, {**_CLONE, "clone_at": "login"}, {"idle_minutes": "30"},
    ],
    "container-host": [
        {"image": "a/b"},
        {"image": "a/b", "archive_url": "https://c/d", "archive_sha256": DIGEST, "ports": "80:80 443:8443",
         "health_port": "80", "mirror": "http://m"},
    ],
    "container-host-init": [{}, {"image": "a/b", "archive_url": "https://c/d", "archive_sha256": DIGEST}],
    "browser-editor": [{}, {"tls": "self-signed"}, {"tls": "acme"}, {"tls": "acme", "domain": "a.example"}],
    "minimal": [{}, {"selinux": "disabled"}, {"selinux": "permissive"}],
}  # fmt: skip
FAMILY_BASE = {"apt": "debian-12", "dnf": "al2023"}


@pytest.fixture
def artefacts(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name in ("instant-init", "instant-ssm", "imagetool", "efi-stub", "container-host"):
        made[name] = tmp_path / name
        made[name].write_bytes(name.encode())
    for name in program_names(RECIPES / PROGRAMS):
        made[PROGRAM_PREFIX + name] = Path(__file__)
    return made


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of recipes/ to make mistakes in."""
    return Path(shutil.copytree(RECIPES, tmp_path / "recipes"))


@pytest.mark.parametrize("arch", list(Arch))
@pytest.mark.parametrize("family", ["apt", "dnf"])
@pytest.mark.parametrize("name", recipes.recipe_names(RECIPES))
def test_every_rendered_script_passes_shellcheck(
    name: str, family: recipes.Family, arch: Arch, artefacts: dict[str, Path], tmp_path: Path
) -> None:
    base = load_base(RECIPES, FAMILY_BASE[family])
    files = []
    for variant, given in enumerate(GIVEN.get(name, [{}])):
        plan = make_plan(resolve(RECIPES, name, family), base, "ami-1", arch, artefacts, given)
        for step in plan.steps:
            text = step.text.encode() if isinstance(step, Script) else b""
            if isinstance(step, File) and step.content.startswith(b"#!"):
                text = step.content
            if text:
                files.append(tmp_path / f"{step.name}-{variant}.sh")
                files[-1].write_bytes(text)
    seal = tmp_path / "seal.sh"
    seal.write_text(seal_script(base))
    result = subprocess.run(["shellcheck", *files, seal], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert len(files) > 8


@pytest.mark.parametrize("systemd_run_fails", [False, True])
def test_the_seal_stops_the_bakes_timers_only_once_its_own_stands(
    tmp_path: Path, systemd_run_fails: bool
) -> None:
    """Its first lines, with programs that write down how they were called."""
    text = seal_script(load_base(RECIPES, "debian-12"))
    head, mark, _ = text.partition("# The key we came by")
    assert mark, "what follows is not for this machine"
    head = "".join(line for line in head.splitlines(True) if not line.startswith(("exec ", "trap ")))
    calls = tmp_path / "calls"
    for name in ("systemd-run", "systemctl"):
        program = tmp_path / name
        status = 1 if name == "systemd-run" and systemd_run_fails else 0
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{calls}\nexit {status}\n')
        program.chmod(0o755)
    result = subprocess.run(
        ["sh", "-c", head], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, check=False
    )
    lines = calls.read_text().splitlines()
    assert f"--on-active={3 * SEAL_TIMEOUT_S}s" in lines[0]
    assert lines[0].startswith("systemd-run --quiet --unit=instant-bake-seal-ttl ")
    stops = [f"systemctl stop {unit}.timer" for unit in (TTL_UNIT, EARLY_UNIT)]
    assert (result.returncode, lines[1:]) == ((1, []) if systemd_run_fails else (0, stops))


def test_child_keeps_the_parents_order_and_replaces_its_namesakes() -> None:
    minimal = resolve(RECIPES, "minimal", "apt")
    custom = resolve(RECIPES, "custom-init", "apt")
    phases = [step.spec.phase for step in custom.steps]
    assert phases == sorted(phases, key=list(Phase).index)
    assert custom.lineage == ["custom-init", "minimal"]
    assert set(minimal.remove) < set(custom.remove)
    by_name = {step.spec.name: step for step in custom.steps}
    assert by_name["key-agent"].directory.name == "custom-init"
    assert by_name["strip"].directory.name == "minimal"
    assert [s.spec.name for s in custom.steps].count("key-agent") == 1


def test_an_included_recipe_comes_on_top_of_the_own_parents() -> None:
    systemd = resolve(RECIPES, "container-host", "apt")
    own = resolve(RECIPES, "container-host-init", "apt")
    custom = resolve(RECIPES, "custom-init", "apt")
    assert own.lineage == ["container-host-init", "custom-init", "minimal"]
    assert (own.initramfs, own.kernel_arguments, own.remove) == (
        custom.initramfs, custom.kernel_arguments, custom.remove,
    )  # fmt: skip
    assert set(own.parameters) == set(systemd.parameters)
    assert own.parameters["stop_timeout_s"].default == 1
    by_name = {step.spec.name: step.directory.name for step in own.steps}
    assert by_name["image"] == "container-host"
    assert by_name["service"] == "container-host-init"
    assert by_name["boot"] == "custom-init"
    assert (own.allow_modes, own.root_gib) == (systemd.allow_modes, systemd.root_gib)


def test_keep_of_the_other_family_is_inherited() -> None:
    assert "openssh-server" in resolve(RECIPES, "custom-init", "dnf").keep


def test_typo_in_a_key_names_file_and_key(copied: Path) -> None:
    file = copied / "minimal" / "recipe.yml"
    file.write_text(file.read_text().replace("remove:", "remvoe:", 1))
    with pytest.raises(UsageError, match=r"minimal/recipe\.yml: remvoe: Extra inputs") as caught:
        load_recipe(copied, "minimal")
    assert "remove" in caught.value.hint


def test_undefined_variable_names_the_script(copied: Path, artefacts: dict[str, Path]) -> None:
    (copied / "minimal" / "quiet.sh.j2").write_text("echo {{ colour }}\n")
    recipe = resolve(copied, "minimal", "apt")
    with pytest.raises(UsageError, match=r"quiet\.sh\.j2: 'colour' is undefined"):
        make_plan(recipe, load_base(copied, "debian-12"), "ami-1", Arch.X86_64, artefacts)


def test_syntax_error_names_the_line(copied: Path, artefacts: dict[str, Path]) -> None:
    (copied / "minimal" / "quiet.sh.j2").write_text("true\n{% for %}\n")
    recipe = resolve(copied, "minimal", "apt")
    with pytest.raises(UsageError, match=r"quiet\.sh\.j2:2:"):
        make_plan(recipe, load_base(copied, "debian-12"), "ami-1", Arch.X86_64, artefacts)


def test_missing_script_names_step_and_file(copied: Path, artefacts: dict[str, Path]) -> None:
    (copied / "minimal" / "strip.apt.sh.j2").unlink()
    recipe = resolve(copied, "minimal", "apt")
    with pytest.raises(UsageError, match=r"step strip of recipe minimal: no file .*strip\.apt\.sh\.j2"):
        make_plan(recipe, load_base(copied, "debian-12"), "ami-1", Arch.X86_64, artefacts)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("recipe: loop\ndescription: x\nextends: loop\n", "extends itself"),
        ("recipe: other\ndescription: x\n", "calls itself 'other'"),
        ("- a list\n", "must hold keys and values"),
        ("recipe: [\n", "is not YAML"),
        ("recipe: loop\ndescription: x\nfamilies: [dnf]\n", "is not for apt bases"),
        (
            "recipe: loop\ndescription: x\nsteps: [{name: a, phase: check}]\n",
            "needs one of script, file, upload and program",
        ),
        (
            "recipe: loop\ndescription: x\nremove: {apt: {sudo: x}}\nkeep: {apt: {sudo: x}}\n",
            "removes and keeps",
        ),
    ],
)
def test_recipes_that_make_no_sense(copied: Path, recipe: str, message: str) -> None:
    (copied / "loop").mkdir()
    (copied / "loop" / "recipe.yml").write_text(recipe)
    with pytest.raises(UsageError, match=message):
        resolve(copied, "loop", "apt")


def test_a_script_with_crlf_runs_as_one_with_lf(copied: Path, artefacts: dict[str, Path]) -> None:
    """A checkout on Windows; the shell would take the CR for a part of each command's last word."""
    script = copied / "minimal" / "quiet.sh.j2"
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    recipe = resolve(copied, "minimal", "apt")
    plan = make_plan(recipe, load_base(copied, "debian-12"), "ami-1", Arch.X86_64, artefacts)
    scripts = [step for step in plan.steps if isinstance(step, Script)]
    assert scripts
    assert not [step.name for step in scripts if "\r" in step.text]


@pytest.mark.parametrize("name", ["web+php", "größe", "100 x a", "web (1)", "-a", "a" * 65, "web\n"])
def test_a_name_that_an_ami_or_a_parameter_cannot_have_is_refused_at_once(copied: Path, name: str) -> None:
    (copied / name).mkdir()
    (copied / name / "recipe.yml").write_text(f"recipe: {json.dumps(name)}\ndescription: x\n")
    with pytest.raises(UsageError, match=r"recipe\.yml: recipe: .*cannot be part of an AMI's name"):
        load_recipe(copied, name)


def test_the_longest_name_fits_into_an_amis(copied: Path) -> None:
    name = "a" * 64
    (copied / name).mkdir()
    (copied / name / "recipe.yml").write_text(f"recipe: {name}\ndescription: x\n")
    load_recipe(copied, name)
    for arch in Arch:
        assert len(Request(name, arch).image_name) <= 128  # API_CreateImage, Name


@pytest.mark.parametrize("name", ["minimal", "custom-init"])
def test_a_recipe_that_asks_gets_the_ssm_helper(name: str, copied: Path, artefacts: dict[str, Path]) -> None:
    base = load_base(copied, "debian-12")
    plain = make_plan(resolve(copied, name, "apt"), base, "ami-1", Arch.X86_64, artefacts)
    assert "instant-ssm" not in [step.name for step in plain.steps]
    (copied / "team").mkdir()
    (copied / "team/recipe.yml").write_text(
        f"recipe: team\ndescription: x\nextends: {name}\nssm_keys: /team/keys\n"
    )
    plan = make_plan(resolve(copied, "team", "apt"), base, "ami-1", Arch.X86_64, artefacts)
    steps = {step.name: step for step in plan.steps}
    helper = steps["instant-ssm"]
    assert isinstance(helper, Upload)
    assert (helper.to, helper.mode) == ("/usr/sbin/instant-ssm", "0755")
    config = steps["key-agent"]
    assert isinstance(config, Script)
    assert '{"login_user": "admin", "ssm_keys": "/team/keys"}\n' in config.text
    (copied / "team/recipe.yml").write_text("recipe: team\ndescription: x\nssm_keys: no path\n")
    with pytest.raises(UsageError, match="ssm_keys"):
        load_recipe(copied, "team")


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(RECIPES, "nope")
    assert "custom-init, devbox, minimal" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        load_base(RECIPES, "../secrets")
    assert "debian-12" in caught.value.hint


def test_plan_hash_changes_with_what_decides_the_image_and_nothing_else(
    copied: Path, artefacts: dict[str, Path]
) -> None:
    base = load_base(copied, "debian-12")

    def plan_hash(ami: str = "ami-1", arch: Arch = Arch.X86_64) -> str:
        return make_plan(resolve(copied, "minimal", "apt"), base, ami, arch, artefacts).hash

    first = plan_hash()
    assert plan_hash() == first
    assert plan_hash(ami="ami-2") != first
    assert plan_hash(arch=Arch.ARM64) != first
    artefacts["instant-init"].write_bytes(b"another build")
    second = plan_hash()
    assert second != first
    quiet = copied / "minimal" / "quiet.sh.j2"
    quiet.write_text(quiet.read_text() + "true\n")
    assert plan_hash() != second


def test_values_are_quoted_into_scripts(copied: Path, artefacts: dict[str, Path]) -> None:
    file = copied / "minimal" / "recipe.yml"
    text = file.read_text().replace(
        "    cloud-init: replaced", "    'x; reboot': bad\n    cloud-init: replaced", 1
    )
    file.write_text(text)
    base = load_base(copied, "debian-12")
    plan = make_plan(resolve(copied, "minimal", "apt"), base, "ami-1", Arch.X86_64, artefacts)
    strip = next(step for step in plan.steps if step.name == "strip")
    assert isinstance(strip, Script)
    assert "installed 'x; reboot'" in strip.text
