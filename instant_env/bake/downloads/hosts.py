"""Which hosts a bake may reach: those that its base and its recipe name, and those in its parameters."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from instant_env.bake.parameters import Kind, Parameter, Value

#: Ports of http and https: those of a host that is named without one.
DEFAULT_PORTS = frozenset({80, 443})

_LABEL = r"[a-z0-9*]([a-z0-9*-]*[a-z0-9*])?"


def _check_pattern(pattern: str) -> str:
    labels = pattern.split(".")
    if re.fullmatch(rf"{_LABEL}(\.{_LABEL})+", pattern) is None or "*" in "".join(labels[-2:]):
        raise ValueError(
            f"{pattern!r} is no name of a host: write it in lower case, without scheme, port and path; * "
            "stands for a part of one label, and for none of the last two"
        )
    return pattern


#: A host's name, in which ``*`` stands for any part of one label.
HostPattern = Annotated[str, AfterValidator(_check_pattern)]


def is_address(host: str) -> bool:
    """Whether a URL's host is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class AllowedHosts:
    """The names and ports that a bake's machine may reach by the proxy."""

    patterns: tuple[str, ...] = ()
    #: Of URLs that the recipe's parameters hold: the host with its port.
    pairs: frozenset[tuple[str, int]] = frozenset()
    #: Addresses in such URLs. The builder reaches them itself by http: they may be in its network only.
    addresses: tuple[str, ...] = ()

    @property
    def described(self) -> list[str]:
        """For people: names, those of parameters with a port that is not https's."""
        pairs = {host if port == 443 else f"{host}:{port}" for host, port in self.pairs}
        return sorted({*self.patterns, *pairs})

    def permits(self, host: str, port: int) -> bool:
        """Whether ``host`` may be reached at ``port``."""
        if (host, port) in self.pairs:
            return True
        return port in DEFAULT_PORTS and any(_matches(pattern, host) for pattern in self.patterns)

    def names(self, host: str) -> bool:
        """Whether ``host`` may be reached by https on its usual port."""
        return self.permits(host, 443)


def _matches(pattern: str, host: str) -> bool:
    expression = r"[a-z0-9-]*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(expression, host) is not None


def allowed_hosts(
    patterns: Iterable[str], parameters: Mapping[str, Parameter], values: Mapping[str, Value]
) -> AllowedHosts:
    """Those of a plan: ``patterns`` of base and recipe, and the hosts of all its parameters that are URLs."""
    pairs: set[tuple[str, int]] = set()
    addresses: list[str] = []
    for name, parameter in parameters.items():
        if parameter.type is not Kind.URL or not (url := str(values.get(name, ""))):
            continue
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").lower()
        if is_address(host):
            addresses.append(host)
        if host:
            pairs.add((host, parts.port or {"http": 80}.get(parts.scheme, 443)))
    return AllowedHosts(tuple(dict.fromkeys(patterns)), frozenset(pairs), tuple(dict.fromkeys(addresses)))
