"""Parameters of recipes: what a declaration takes and refuses, and how a value gets into a plan."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from instant_env.arch import Arch
from instant_env.bake.parameters import Parameter, settle, split
from instant_env.bake.plan import BakePlan, File, Script, make_plan
from instant_env.bake.recipe import load_base, load_recipe, resolve
from instant_env.bake.recipe_text import as_text, rendered
from instant_env.errors import UsageError
from instant_env.settings import ROOT

DIGEST = "0f" * 32


def declared(**fields: Any) -> Parameter:
    return Parameter(description="what it is for", **fields)


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        (declared(), "any; $(text) 'here'", "any; $(text) 'here'"),
        (declared(type="integer", minimum=1), "20", 20),
        (declared(type="boolean"), "true", True),
        (declared(type="boolean"), "false", False),
        (declared(type="url"), "https://mirror.example:8443/a/b-1.2_x.zip?c=d", None),
        (declared(type="url", default=""), "", ""),
        (declared(type="sha256"), DIGEST, DIGEST),
        (declared(choices=["a", "b"]), "b", "b"),
        (declared(pattern="[a-z]+"), "abc", "abc"),
    ],
)
def test_values_that_fit(parameter: Parameter, text: str, value: object) -> None:
    found = parameter.read(text)
    assert found == (text if value is None else value)
    assert type(found) is type(value) or value is None


@pytest.mark.parametrize(
    ("parameter", "text", "message"),
    [
        (declared(), "two\nlines", "not one line of text"),
        (declared(type="integer"), "ten", "not a whole number"),
        (declared(type="integer", minimum=8, maximum=64), "7", "less than 8"),
        (declared(type="integer", minimum=8, maximum=64), "65", "more than 64"),
        (declared(type="boolean"), "yes", "not true or false"),
        (declared(type="url"), "ftp://mirror/a", "not an http or https URL"),
        (declared(type="url"), "https://mirror/a'b", "not an http or https URL"),
        (declared(type="url", default="https://a/"), "", "not an http or https URL"),
        (declared(type="sha256"), DIGEST.upper(), "not 64 hexadecimal digits"),
        (declared(type="sha256"), DIGEST[1:], "not 64 hexadecimal digits"),
        (declared(choices=["a", "b"]), "c", "none of a, b"),
        (declared(pattern="[a-z]+"), "abc9", "does not match"),
    ],
)
def test_values_that_do_not(parameter: Parameter, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        settle("r", {"key": parameter}, {"key": text}, Arch.X86_64)
    assert "parameter key of recipe r" in caught.value.message
    assert caught.value.hint == "what it is for"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "integer", "default": "ten"}, "not of type integer"),
        ({"type": "integer", "default": True}, "not of type integer"),
        ({"type": "string", "default": 10}, "not of type string"),
        ({"type": "integer", "default": 3, "minimum": 4}, "less than 4"),
        ({"type": "url", "default": {"arm64": "nowhere"}}, "not an http or https URL"),
        ({"type": "url", "default": {"sparc": "https://a/"}}, "sparc"),
        ({"type": "integer", "pattern": "x"}, "are for strings"),
        ({"maximum": 3}, "are for integers"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"type": "colour"}, "type"),
    ],
)
def test_declarations_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        declared(**fields)


def test_missing_ones_are_named_with_what_they_are_for() -> None:
    parameters = {
        "digest": declared(type="sha256", default={"x86_64": DIGEST}),
        "size": declared(type="integer", default=8),
    }
    assert settle("r", parameters, {}, Arch.X86_64) == {"digest": DIGEST, "size": 8}
    with pytest.raises(UsageError, match=r"recipe r for arm64 needs --set digest=\.\.\.") as caught:
        settle("r", parameters, {}, Arch.ARM64)
    assert caught.value.hint == "digest: what it is for"


def test_unknown_ones_and_texts_that_are_no_assignment() -> None:
    with pytest.raises(UsageError, match="no parameter colour") as caught:
        settle("r", {"size": declared(type="integer", default=8)}, {"colour": "red"}, Arch.X86_64)
    assert caught.value.hint == "it has: size"
    assert split(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for texts, message in (
        (["a"], "--set a: must be key=value"),
        (["=a"], "--set =a: must be key=value"),
        (["a=1", "a=2"], "twice"),
    ):
        with pytest.raises(UsageError, match=message):
            split(texts)


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """recipes/ with `team`, which extends `house`; both have parameters, a script, a file and a template."""
    recipes = tmp_path / "recipes"
    shutil.copytree(ROOT / "recipes" / "bases", recipes / "bases")
    house = {
        "recipe": "house",
        "description": "x",
        "parameters": {
            "colour": {"description": "of the walls", "default": "white"},
            "rooms": {"description": "how many", "type": "integer"},
        },
        "steps": [
            {"name": "walls", "phase": "install", "script": "walls.sh.j2"},
            {"name": "plan", "phase": "install", "file": "files/plan.j2", "to": "/etc/plan", "mode": "0600"},
            {"name": "raw", "phase": "install", "file": "files/raw", "to": "/etc/raw"},
        ],
    }
    child = {
        "recipe": "team", "description": "x", "extends": "house",
        "parameters": {"colour": {"description": "of the team", "default": "red"}},
        "steps": [{"name": "raw", "phase": "install", "file": "raw.{family}", "to": "/etc/raw"}],
    }  # fmt: skip
    for recipe in (house, child):
        directory = recipes / str(recipe["recipe"])
        (directory / "files").mkdir(parents=True)
        (directory / "recipe.yml").write_text(yaml.safe_dump(recipe))
    (recipes / "house" / "walls.sh.j2").write_text("echo {{ parameters.colour | quote }}\n")
    (recipes / "house" / "files" / "plan.j2").write_text("{{ parameters.rooms + 1 }} on {{ base.family }}\n")
    (recipes / "house" / "files" / "raw").write_bytes(b"\xff{{ colour }}")
    (recipes / "team" / "raw.apt").write_bytes(b"for apt {{")
    return recipes


def plan_of(recipes: Path, name: str, **given: str) -> BakePlan:
    return make_plan(
        resolve(recipes, name, "apt"), load_base(recipes, "debian-12"), "ami-1", Arch.X86_64, {}, given
    )


def test_values_reach_scripts_and_files_and_the_hash(team: Path) -> None:
    walls, plan, raw = plan_of(team, "house", rooms="3", colour="a 'b'; c").steps
    assert isinstance(walls, Script)
    assert walls.text.splitlines()[-1] == """echo 'a '"'"'b'"'"'; c'"""
    assert isinstance(plan, File)
    assert (plan.content, plan.to, plan.mode) == (b"4 on apt\n", "/etc/plan", "0600")
    assert isinstance(raw, File)
    assert raw.content == b"\xff{{ colour }}"
    walls, plan, raw = plan_of(team, "team", rooms="3").steps
    assert isinstance(walls, Script)
    assert walls.text.endswith("echo red\n")
    assert isinstance(raw, File)
    assert raw.content == b"for apt {{"
    first = plan_of(team, "team", rooms="3")
    assert first.hash == plan_of(team, "team", rooms="3").hash != plan_of(team, "team", rooms="4").hash
    assert first.as_dict()["parameters"] == {"colour": "red", "rooms": 3}
    with pytest.raises(UsageError, match="needs --set rooms"):
        plan_of(team, "team")


def test_the_shown_plan_has_every_script_and_file(team: Path) -> None:
    text = "\n".join(as_text(rendered(team, "team", "debian-12", Arch.X86_64, {"rooms": "3"})))
    for expected in ("team < house", "colour = red", "echo red", "4 on apt", "file to /etc/plan, mode 0600",
                     "for apt {{", "instant-bake: sealed"):  # fmt: skip
        assert expected in text
    assert "2 bytes" not in text
    (team / "team" / "raw.apt").write_bytes(b"\xff\xfe")
    text = "\n".join(as_text(rendered(team, "team", "debian-12", Arch.X86_64, {"rooms": "3"})))
    assert "2 bytes, sha256 " in text
    with pytest.raises(UsageError, match="step raw of recipe team: no file"):
        rendered(team, "team", "al2023", Arch.X86_64, {"rooms": "3"})


@pytest.mark.parametrize("file", ["../secret", "/etc/shadow", "a/../../b", ".hidden", "a//b"])
def test_a_recipe_reads_nothing_outside_its_folder(team: Path, file: str) -> None:
    path = team / "team" / "recipe.yml"
    path.write_text(path.read_text().replace("raw.{family}", file))
    with pytest.raises(UsageError, match=r"steps\.0\.file"):
        load_recipe(team, "team")
