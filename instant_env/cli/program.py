"""All verbs in one namespace, as `invoke` (in a checkout) and the console script `instant-env` have them."""

from __future__ import annotations

from invoke.collection import Collection
from invoke.program import Program

from instant_env import __version__
from instant_env.cli.bench_tasks import bench, compare, report
from instant_env.cli.fault_tasks import fault
from instant_env.cli.host_tasks import doctor, setup, teardown
from instant_env.cli.image_tasks import amis, bake, clean, init_build, publish, recipe_show, recipes
from instant_env.cli.local_tasks import down, env, status, up

_local = Collection("local", up, down, status, env)
_local.add_collection(fault)
namespace = Collection(
    bake, bench, report, compare, amis, publish, clean, recipes, setup, teardown, doctor, _local
)
namespace.add_collection(Collection("init", init_build))
namespace.add_collection(Collection("recipe", recipe_show))


def main() -> None:
    """The console script: ``instant-env bake`` is ``invoke bake``, from any directory."""
    Program(namespace=namespace, name="instant-env", binary="instant-env", version=__version__).run()
