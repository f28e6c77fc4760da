"""The whole of it for a bake: who fetches, and what the steps' environment has because of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

import fabric

from instant_env.bake.downloads.caller import callers_upstreams
from instant_env.bake.downloads.forward import forwarded, variables
from instant_env.bake.downloads.hosts import AllowedHosts, allowed_hosts
from instant_env.bake.downloads.proxy import Proxy
from instant_env.bake.plan import BakePlan
from instant_env.errors import InstantEnvError
from instant_env.progress import Progress
from instant_env.settings import CloudName


class Packages(StrEnum):
    """Who fetches packages and downloads during a bake."""

    AUTO = "auto"
    CALLER = "caller"
    DIRECT = "direct"

    def settled(self, cloud: CloudName, *, private: bool) -> Packages:
        """``auto`` decided: the caller for localec2's guests and for machines in private subnets, which may
        have no way out; a machine with a public address is nearer to the registries than the caller."""
        if self is not Packages.AUTO:
            return self
        return Packages.CALLER if private or cloud is CloudName.LOCAL else Packages.DIRECT


def hosts_of(plan: BakePlan) -> AllowedHosts:
    """What the steps of a plan may reach by way of this computer."""
    recipe = plan.recipe
    return allowed_hosts([*plan.base.hosts, *recipe.hosts], recipe.parameters, plan.parameters)


class Log(Protocol):
    """Takes text."""

    def write(self, text: str, /) -> int: ...


@contextmanager
def offered(
    packages: Packages, connection: fabric.Connection, plan: BakePlan, log: Log, progress: Progress
) -> Iterator[Mapping[str, str]]:
    """The environment for the plan's steps: empty when the builder fetches itself, else what leads to the
    proxy, which ends with the context. Its traffic is logged; a step that fails says which hosts were
    refused, and which could not be reached.
    """
    if packages is not Packages.CALLER:
        yield {}
        return
    proxy = Proxy(hosts_of(plan), callers_upstreams(), plan.recipe.name)
    try:
        with forwarded(connection, proxy) as port:
            yield variables(proxy, port)
    except InstantEnvError as error:
        raise _explained(error, proxy) from error
    finally:
        for line in proxy.traffic.lines():
            log.write(f"{line}\n")
        if summary := proxy.traffic.summary():
            progress(summary)


def _explained(error: InstantEnvError, proxy: Proxy) -> InstantEnvError:
    """The error, with what the proxy knows about its cause in the hint."""
    causes = [f"{host} could not be had: {reason}" for host, reason in proxy.traffic.failures.items()]
    if refused := proxy.traffic.refused:
        causes.append(f"refused: {', '.join(refused)} (not in the key hosts of recipe {proxy.recipe})")
    if causes:
        error.hint = "; ".join([*causes, *([error.hint] if error.hint else [])])
    return error
