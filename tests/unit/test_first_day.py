"""docs/aws-first-day.md: its commands exist, and so does every test that its table names."""

from __future__ import annotations

import ast
import re
import shlex

import botocore.session
import pytest
from botocore import xform_name

from instant_env.settings import ROOT
from tasks import namespace

PAGE = (ROOT / "docs" / "aws-first-day.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
FINDINGS = [
    *(f"D{number}" for number in range(1, 26)), *(f"A{number}" for number in range(1, 6)),
    *(f"B{number}" for number in range(1, 12)), "C1", "C2", "L1", "L2", "E",
]  # fmt: skip
ROWS = {cells[0]: cells[1:] for line in PAGE.splitlines() if len(cells := line.strip("| ").split(" | ")) >= 3}


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("invoke ")])
def test_verbs_have_the_flags_that_the_page_gives_them(command: str) -> None:
    _, verb, *arguments = shlex.split(command)
    known = {name for flag in namespace[verb].get_arguments() for name in flag.names}
    known |= {name.replace("_", "-") for name in known}
    flags = [one.removeprefix("--").partition("=")[0] for one in arguments if one.startswith("--")]
    assert {flag.removeprefix("no-") if flag not in known else flag for flag in flags} <= known


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("aws ")])
def test_commands_of_aws_are_calls_with_such_parameters(command: str) -> None:
    _, service, operation, *arguments = shlex.split(command)
    model = botocore.session.get_session().get_service_model(service)
    (name,) = [name for name in model.operation_names if xform_name(name, "-") == operation]
    shape = model.operation_model(name).input_shape
    members = {xform_name(member, "-") for member in (shape.members if shape else ())} | {"output", "query"}
    flags = {one.removeprefix("--") for one in arguments if one.startswith("--")}
    assert {flag.removeprefix("no-") for flag in flags} <= members


def test_other_commands_are_known() -> None:
    others = [line for line in COMMANDS if not line.startswith(("invoke ", "aws ", "export AWS_PROFILE="))]
    assert others == ["INSTANT_ENV_AWS_TESTS=1 .venv/bin/pytest tests/e2e/test_aws.py"]
    assert (ROOT / "tests/e2e/test_aws.py").is_file()


def test_every_finding_has_a_row_and_every_test_that_is_named_is_there() -> None:
    assert [key for key in ROWS if key in FINDINGS] == FINDINGS
    for finding in FINDINGS:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", " | ".join(ROWS[finding])):
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            names = {node.name for node in ast.walk(tree) if isinstance(node, functions)}
            assert name in names, f"{finding} names {path}::{name}"
