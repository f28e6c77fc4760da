"""All verbs in one namespace, as `invoke` (in a checkout) and the console script `instant-env` have them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.program import Program
from invoke.tasks import Task

from instant_env import __version__
from instant_env.cli.arguments import VerbTask
from instant_env.cli.bench_tasks import bench, compare, report
from instant_env.cli.facts.task import facts
from instant_env.cli.fault_tasks import fault
from instant_env.cli.host_tasks import doctor, setup, teardown
from instant_env.cli.image_tasks import amis, bake, build, clean, init_build, publish, recipe_show, recipes
from instant_env.cli.lease_tasks import lease
from instant_env.cli.local_tasks import down, env, status, strict, up
from instant_env.cli.serve_tasks import serve
from instant_env.cli.store_tasks import store
from instant_env.cli.token_tasks import token
from instant_env.cli.verb import as_called

_local = Collection("local", up, down, status, strict, env)
_local.add_collection(fault)
namespace = Collection(
    bake,
    build,
    bench,
    report,
    compare,
    amis,
    publish,
    clean,
    recipes,
    facts,
    serve,
    setup,
    teardown,
    doctor,
    _local,
)
namespace.add_collection(Collection("init", init_build))
namespace.add_collection(Collection("recipe", recipe_show))
namespace.add_collection(lease)
namespace.add_collection(token)
namespace.add_collection(store)


def end_with_the_reader(program: str) -> None:
    """Let `| head` end a listing or a help text silently, as it ends other programs: by SIGPIPE.

    Invoke prints both itself, and would end with a traceback. A verb ignores the signal again when it begins
    (:class:`instant_env.cli.arguments.VerbTask`): it has to clean up, and its sockets must not end it.
    """
    if Path(program).name in ("invoke", "inv", "instant-env"):  # else imported by tests, for instance
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def print_help(task: Task[Any]) -> None:
    """Print a verb's help as ``invoke --help VERB`` does, and end the program."""
    name = next(name for name in namespace.task_names if namespace[name].body is task.body)
    binary = Path(sys.argv[0]).name
    Program(namespace=namespace, name=binary, binary=binary).run([binary, "--help", name], exit=False)
    raise Exit(code=0)


VerbTask.print_help = staticmethod(print_help)


def main() -> None:
    """The console script: ``instant-env bake`` is ``invoke bake``, from any directory."""
    end_with_the_reader(sys.argv[0])
    for name in namespace.task_names:
        task = namespace[name]
        task.__doc__ = as_called(task.__doc__ or "", sys.argv[0])
    Program(namespace=namespace, name="instant-env", binary="instant-env", version=__version__).run()
