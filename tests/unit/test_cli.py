"""The front door, run as a user runs it: bad input is one line, a hint, an exit code, and nothing started."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.main import program

from instant_env.cli.arguments import LETTERS
from instant_env.cli.program import namespace
from instant_env.cli.verb import as_called
from instant_env.service.store.sqlite import SqliteStore
from instant_env.settings import ROOT

INVOKE = Path(sys.executable).parent / "invoke"
VERBS = (
    "amis", "bake", "bench", "build", "clean", "compare", "doctor", "init.build",
    "lease.end", "lease.extend", "lease.list", "lease.new", "lease.show", "lease.ssh",
    "local.down", "local.env", "local.status", "local.strict", "local.up", "publish", "recipe.show",
    "recipes", "report",
    "setup", "store.back-up", "store.restore", "teardown", "token.list", "token.new", "token.revoke",
    *(f"local.fault.{name}" for name in (
        "clear", "delay", "disk", "drop", "error", "freeze", "imds", "kill", "list", "network", "unknown",
        "unplugged",
    )),
)  # fmt: skip


def invoke(
    *arguments: str, state: Path, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run the front door with a state directory of its own."""
    environ = {**os.environ, "INSTANT_ENV_STATE_DIR": str(state), **(env or {})}
    return subprocess.run(
        [str(INVOKE), *arguments],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def without_progress(stderr: str) -> list[str]:
    """The lines on stderr; where the machine is busy there are others, that say what takes so long."""
    return [line for line in stderr.splitlines() if not re.match(r" *\d+\.\d s  ", line)]


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on stderr that holds the words and a hint in brackets; nothing on stdout; no traceback."""
    assert result.returncode not in (0, 130), result.stderr
    assert result.stdout == ""
    (line,) = without_progress(result.stderr)
    assert "embedded" not in result.stderr, "nothing is started"
    assert line.startswith("error: ")
    assert line.endswith(")"), f"no hint: {line}"
    for word in words:
        assert word in line


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    program.run(["invoke", "--search-root", str(ROOT), "--help", verb], exit=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"Usage: inv[oke] [--core-opts] {verb} ")
    for number, line in enumerate(lines):
        if line.strip().startswith("-"):
            described = len(line.split("  ")) > 2 or lines[number + 1].startswith(" " * 10)
            assert described, f"{verb}: no help for {line.strip()}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bake", "--recipe", "nope"], ("unknown recipe 'nope'", "custom-init, devbox, minimal")),
        (["bake"], ("no recipe named", "minimal")),
        (
            ["bake", "--recipe", "minimal", "--arch", "sparc"],
            ("unknown architecture 'sparc'", "x86_64 or arm64"),
        ),
        (["bake", "--recipe", "minimal", "--set", "colour=red"], ("no parameter colour", "it has: selinux")),
        (["bake", "--recipe", "minimal", "--set", "colour"], ("--set colour", "key=value")),
        (["setup"], ("localec2 needs no set-up", "--cloud aws")),
        (["recipe.show", "nope"], ("unknown recipe 'nope'", "minimal")),
        (["bake", "--recipe", "minimal", "--base", "beos"], ("unknown base 'beos'", "debian-12")),
        (["bake", "--recipe", "minimal", "--cloud", "moon"], ("cloud", "'local' or 'aws'")),
        (["publish", "--recipe", "minimal", "--cloud", "local"], ("--cloud local", "aws")),
        (["clean", "--what", "cats"], ("--what cats", "key-pair")),
        (["clean", "--keep", "-1"], ("--keep -1", "0 removes")),
        (["publish"], ("no recipe named", "--ami")),
        (["publish", "--recipe", "minimal", "--arch", "sparc"], ("unknown architecture 'sparc'", "arm64")),
        (["bench", "--technique", "magic"], ("unknown technique 'magic'", "cold")),
        (["bench", "--iterations", "0"], ("0",)),
        (["bake", "--recipe", "minimal", "--parallel=-1"], ("--parallel -1", "must be 0 or more")),
        (["bench", "--name", "../up"], ("../up",)),
        (
            ["bench", "--experiment", "experiments/hop-limit.yml", "--iterations", "1", "--arch", "arm64"],
            ("says that itself", "--iterations, --arch", "--dry-run"),
        ),
        (["bench", "--resume", "x.csv", "--seed", "0"], ("--resume and --seed",)),
        (["report", "--csv", "nowhere.csv"], ("cannot read nowhere.csv", "invoke bench")),
        (
            ["report", "--csv", "results/samples/20261121T143032Z-bench.csv", "--format", "pdf"],
            ("pdf", "html, md"),
        ),
        (["report", "--fill", "SECURITY.md"], ("SECURITY.md", "no place")),
        (["compare", "nowhere", "HEAD"], ("nowhere", "nor a git revision")),
        (["compare", "HEAD", "HEAD", "--fail-if-slower", "much"], ("'much' is not a percentage", "10%")),
    ],
)
def test_bad_input_is_one_line_with_a_hint_and_starts_nothing(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, as there are many: the others have one of their own."""
    monkeypatch.setenv("INSTANT_ENV_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        program.run(["invoke", "--search-root", str(ROOT), *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    assert_one_line(subprocess.CompletedProcess(arguments, code, *capsys.readouterr()), *words)
    assert not (tmp_path / "localec2").exists()


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert_one_line(invoke("bake", "--recipe", "nope", state=tmp_path), "unknown recipe 'nope'")
    assert not (tmp_path / "localec2").exists()


def test_the_services_store_is_copied_and_restored(tmp_path: Path) -> None:
    """By the commands of docs/service-operations.md."""
    state, here = tmp_path / "state", ("-r", str(ROOT))
    document = (ROOT / "docs" / "service-operations.md").read_text()
    back_up, restore = (line.split()[1:] for line in re.findall(r"^invoke store\..*", document, re.MULTILINE))
    elsewhere = (*back_up, "--cloud", "aws", "--region", "eu-west-1")
    refused = invoke(*here, *elsewhere, state=state, cwd=tmp_path)
    assert_one_line(refused, "there is no store", "aws-eu-west-1.sqlite")
    assert not (state / "service").exists()
    store = state / "service" / "local.sqlite"
    SqliteStore.open(store).close()
    assert invoke(*here, *back_up, state=state, cwd=tmp_path).returncode == 0
    done = invoke(*here, *restore, "--json", state=state, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout)
    assert Path(names["store"]) == store
    assert Path(names["old"]).is_file()
    SqliteStore.open(store).close()


def test_a_typo_in_a_recipes_key(tmp_path: Path) -> None:
    recipes = shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    file = recipes / "custom-init" / "recipe.yml"
    file.write_text(file.read_text().replace("extends:", "extedns:"))
    result = invoke(
        "bake", "--recipe", "custom-init", state=tmp_path, env={"INSTANT_ENV_RECIPES_DIR": str(recipes)}
    )
    assert_one_line(result, "custom-init/recipe.yml", "extedns", "known keys", "extends")
    assert not (tmp_path / "localec2").exists()


@pytest.mark.slow
def test_a_plan_is_shown_without_a_cloud_or_a_build(tmp_path: Path) -> None:
    """For the other family and architecture, with what would have to be fetched or compiled out of reach."""
    env = {"INSTANT_ENV_CACHE_DIR": str(tmp_path / "nothing")}
    arguments = ("recipe.show", "custom-init", "--base", "al2023", "--arch", "arm64")
    result = invoke(*arguments, state=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    assert "efi-stub to /run/instant-bake/efi-stub" in result.stdout
    assert "al2023-ami-kernel-6.1-arm64" in result.stdout
    assert "root=PARTUUID=$partuuid" in result.stdout
    plan = json.loads(invoke(*arguments, "--json", state=tmp_path, env=env).stdout)
    assert plan["lineage"] == ["custom-init", "minimal"]
    assert "dnf" in next(step["text"] for step in plan["steps"] if step["name"] == "strip")
    assert list(tmp_path.iterdir()) == []

    listed = json.loads(invoke("recipes", "--json", state=tmp_path).stdout)["recipes"]
    assert {"custom-init", "minimal"} <= {recipe["recipe"] for recipe in listed}
    assert "custom-init" in invoke("recipes", state=tmp_path).stdout


def test_a_base_that_does_not_exist_for_the_architecture(tmp_path: Path) -> None:
    recipes = shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    file = recipes / "bases" / "debian-12.yml"
    file.write_text(file.read_text().replace("[x86_64, arm64]", "[arm64]"))
    result = invoke(
        "bake", "--recipe", "minimal", state=tmp_path, env={"INSTANT_ENV_RECIPES_DIR": str(recipes)}
    )
    assert_one_line(result, "debian-12 does not exist for x86_64", "arm64")
    assert not (tmp_path / "localec2").exists()


def test_missing_qemu_names_the_package(tmp_path: Path) -> None:
    """A PATH with everything but QEMU: links to the programs around it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for file in Path(directory).glob("*") if Path(directory).is_dir() else ():
            link = programs / file.name
            if not file.name.startswith("qemu") and not link.is_symlink():
                link.symlink_to(file)
    result = invoke("local.up", "report", state=tmp_path, env={"PATH": str(programs)})
    assert_one_line(result, "qemu", "apt")
    assert not list(tmp_path.glob("**/endpoint.json"))


def test_status_and_down_without_a_server_start_none(tmp_path: Path) -> None:
    result = invoke("local.status", "--json", state=tmp_path)
    assert result.returncode == 0, result.stderr
    assert '"endpoint": null' in result.stdout
    result = invoke("local.down", state=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not list(tmp_path.glob("**/endpoint.json"))


def test_an_unknown_flag_is_one_line(tmp_path: Path) -> None:
    result = invoke("bake", "--colour", state=tmp_path)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "--colour" in result.stderr


@pytest.mark.parametrize("how", [(), ("--json",)])
def test_a_reader_that_leaves_is_no_failure(how: tuple[str, ...], tmp_path: Path) -> None:
    """`invoke recipes | head` under pipefail."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody:
        environ = {**os.environ, "INSTANT_ENV_STATE_DIR": str(tmp_path)}
        result = subprocess.run(
            [str(INVOKE), "recipes", *how], cwd=ROOT, env=environ, stdout=nobody, stderr=subprocess.PIPE,
            text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (result.returncode, without_progress(result.stderr)) == (0, [])


def test_a_flag_of_two_values_takes_two(tmp_path: Path) -> None:
    """`amis --diff A B`; files are compared without a cloud."""
    components = [{"name": "a", "version": "1", "properties": []}]
    manifest = {
        "ami": "ami-1", "plan": {"steps": []}, "steps": [{"name": "strip", "seconds": 1.5}],
        "packages": {"after": {"components": components, "bytes": 0}},
    }  # fmt: skip
    for name in ("one", "two"):
        (tmp_path / name).write_text(json.dumps({**manifest, "git_revision": name}))
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    result = invoke("amis", "--diff", one, two, "--json", state=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["facts"] == {"git revision": {"a": "one", "b": "two"}}
    alone = invoke("amis", "--diff", one, state=tmp_path)
    assert alone.returncode != 0
    assert "needed value" in alone.stderr
    assert not (tmp_path / "localec2").exists()


SAMPLE = ROOT / "results" / "samples" / "20261121T143032Z-bench.csv"


@pytest.mark.slow
def test_report_writes_what_it_names(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(
        "report", "--csv", str(SAMPLE), "--format", "html,md", "--output", str(out), "--json", state=tmp_path
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["files"] == [str(out / "report.html"), str(out / "report.md")]
    assert {path.name for path in out.iterdir()} == {"report.html", "report.md"}
    (kind,) = told["kinds"]
    assert kind["recommendation"]["technique"] is None
    assert {found["technique"]: found["n"] for found in kind["techniques"]}["custom-init"] == 3


@pytest.mark.slow
def test_report_of_the_newest_goes_beside_the_results(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path)
    result = invoke("report", state=tmp_path, env={"INSTANT_ENV_RESULTS_DIR": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    page = tmp_path / "reports" / SAMPLE.stem / "report.html"
    assert result.stdout.splitlines()[-1] == str(page)
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_compare_ends_as_ci_wants_it(tmp_path: Path) -> None:
    """The sample's rows three times over are enough blocks, and half as long again is slower."""
    head, *lines = SAMPLE.read_text().splitlines()
    t4, block = head.split(",").index("t2_t4_ms"), head.split(",").index("block")
    for name, factor in (("20260101T000000Z-a", 1.0), ("20260102T000000Z-b", 1.5)):
        rows = []
        for copy in range(4):
            for line in lines:
                cells = line.split(",")
                cells[t4] = str(float(cells[t4]) * factor)
                cells[block] = str(int(cells[block]) + 3 * copy)
                rows.append(",".join(cells))
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *rows]) + "\n")
        shutil.copy(SAMPLE.with_suffix(".json"), tmp_path / f"{name}.json")
    env = {"INSTANT_ENV_RESULTS_DIR": str(tmp_path)}

    def compare(a: str, b: str) -> subprocess.CompletedProcess[str]:
        return invoke("compare", a, b, "--fail-if-slower", "10%", "--json", state=tmp_path, env=env)

    slower = compare("20260101T000000Z-a", "20260102T000000Z-b")
    assert slower.returncode == 1
    assert "custom-init t2→t4" in json.loads(slower.stdout)["too_slow"]
    faster = compare("20260102T000000Z-b", "20260101T000000Z-a")
    assert faster.returncode == 0, faster.stderr
    assert json.loads(faster.stdout)["too_slow"] == []


def test_verbs_have_the_letters_that_a_person_would_guess_and_leave_h_for_help() -> None:
    letters = {
        (name, flag)
        for name in namespace.task_names
        for argument in namespace[name].get_arguments()
        for flag in argument.names
        if len(flag) == 1 and not argument.positional
    }
    assert {flag for _, flag in letters} == set(LETTERS.values())
    assert {("bake", "n"), ("bake", "v"), ("clean", "y")} <= letters


def run_verb(body: str, *, stdout: int) -> subprocess.Popen[str]:
    """A process whose only verb has this body."""
    program = f"""
import os, signal, time
from invoke import Collection, Program, task
from instant_env.cli.verb import print_json, say, show, verb
from invoke.exceptions import Exit
@task
@verb
def probe(_):
    {body}
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored
Program(namespace=Collection(probe)).run(["x", "probe"])
"""
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("output", ["say('text')", "show('text')", "print_json({})"])
@pytest.mark.parametrize("code", [0, 1, 4])
def test_a_reader_that_leaves_does_not_change_the_exit_code(output: str, code: int) -> None:
    """`invoke bench | head -1` with failed attempts."""
    reader, writer = os.pipe()
    os.close(reader)
    process = run_verb(f"{output}; {output}; raise Exit(code={code})", stdout=writer)
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")


def test_a_broken_pipe_in_the_library_is_an_error() -> None:
    process = run_verb("say('text'); raise BrokenPipeError(32, 'Broken pipe')", stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "text\n")
    assert (
        errors == "error: a connection was closed by its other end: [Errno 32] Broken pipe (run it again)\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_verb_ends_with_128_and_the_signal(number: signal.Signals) -> None:
    body = f"signal.raise_signal({number:d}); time.sleep(60)"
    process = run_verb(body, stdout=subprocess.DEVNULL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors.endswith("error: interrupted; what was begun has been cleaned up\n")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("program", ["invoke", "instant-env"])
def test_a_verb_that_takes_operands_shows_its_help(program: str, flag: str) -> None:
    """In an operand's place, and behind one."""
    for arguments in (["recipe.show", flag], ["compare", flag], ["compare", "one", flag]):
        result = subprocess.run(
            [INVOKE.parent / program, *arguments], cwd=ROOT, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("Usage: ")
        assert f" {arguments[0]} " in result.stdout.partition("\n")[0]


#: Invoke prints these before it loads tasks.py: docs/cli.md.
BEFORE_TASKS = [["-h"], ["-V"], ["--print-completion-script=bash"]]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        *itertools.product(
            ["invoke", "instant-env"],
            [[], ["--list"], ["--list=local"], ["--complete"], ["bake", "-h"], ["local.env", "--help"],
             ["recipe.show", "-h"]],
        ),
        *(("instant-env", arguments) for arguments in BEFORE_TASKS),
    ],
    ids=str,
)  # fmt: skip
def test_a_listing_whose_reader_has_left_ends_like_other_programs(program: str, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [INVOKE.parent / program, *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (result.stderr, result.returncode) == ("", -signal.SIGPIPE)


def test_the_console_script_names_commands_as_it_was_called(tmp_path: Path) -> None:
    for name in namespace.task_names:
        assert as_called(f"run: invoke {name}", "/usr/bin/instant-env") == f"run: instant-env {name}"
    assert as_called("they invoke an action", "instant-env") == "they invoke an action"
    assert as_called("run: invoke clean", "/venv/bin/invoke") == "run: invoke clean"
    environ = {**os.environ, "INSTANT_ENV_STATE_DIR": str(tmp_path), "INSTANT_ENV_RESULTS_DIR": str(tmp_path)}
    for name in ("invoke", "instant-env"):
        result = subprocess.run(
            [INVOKE.parent / name, "report"], cwd=ROOT, env=environ, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip
        assert_one_line(result, f"make some: {name} bench")
        result = subprocess.run(
            [INVOKE.parent / name, "local.env", "--help"], cwd=ROOT, capture_output=True, text=True,
            check=True, timeout=120,
        )  # fmt: skip
        assert f"{name} local.env" in result.stdout
