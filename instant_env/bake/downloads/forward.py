"""The reverse forward: while a context lasts, a port on the builder's loopback leads to the proxy here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import fabric
import paramiko

from instant_env.bake.downloads.proxy import Proxy
from instant_env.errors import InstantEnvError

#: What is never asked of the proxy: the builder itself, and the metadata service.
_DIRECT = ("localhost", "127.0.0.1", "::1", "169.254.169.254")


class ForwardError(InstantEnvError):
    """The builder's sshd does not forward."""

    exit_code = 5


@contextmanager
def forwarded(connection: fabric.Connection, proxy: Proxy) -> Iterator[int]:
    """Listen on the builder's loopback; yields the port. Connections to it are served by ``proxy``, which is
    closed in the end, with all of them. Raises ForwardError."""
    transport = connection.transport
    try:
        port: int = transport.request_port_forward("127.0.0.1", 0, lambda channel, *_: proxy.serve(channel))
    except paramiko.SSHException as error:
        raise ForwardError(
            f"the builder's sshd refuses to forward a port ({error})",
            hint="look in the base's sshd_config for AllowTcpForwarding, DisableForwarding and PermitListen; "
            "or bake with --packages direct",
        ) from error
    try:
        yield port
    finally:
        proxy.close()
        # Not cancel_port_forward: it waits for an answer, which a connection that broke never gives.
        with suppress(Exception):
            transport.global_request("cancel-tcpip-forward", ("127.0.0.1", port), wait=False)


def variables(proxy: Proxy, port: int) -> Mapping[str, str]:
    """What steps get in their environment, by which programs find the proxy on ``port``.

    INSTANT_ENV_DOWNLOADS serves https://HOST/PATH as INSTANT_ENV_DOWNLOADS/HOST/PATH; what can be told to use
    a mirror is told to use that, because then it is this computer whose trust and mirrors count.
    """
    url = f"http://127.0.0.1:{port}"
    direct = ",".join((*_DIRECT, *proxy.allowed.addresses))
    result = {"INSTANT_ENV_DOWNLOADS": url}
    for name, value in (("http_proxy", url), ("https_proxy", url), ("no_proxy", direct)):
        result |= {name: value, name.upper(): value}
    for host, settings in _MIRRORS.items():
        if proxy.allowed.names(host):
            result |= {name: value.format(url=url) for name, value in settings.items()}
    return result


#: By the host that it stands for, how a program is told to use a mirror: rustup's RUSTUP_DIST_SERVER and
#: RUSTUP_UPDATE_ROOT, pip's and npm's options as variables, and Go's GOPROXY.
_MIRRORS: dict[str, dict[str, str]] = {
    "static.rust-lang.org": {
        "RUSTUP_DIST_SERVER": "{url}/static.rust-lang.org",
        "RUSTUP_UPDATE_ROOT": "{url}/static.rust-lang.org/rustup",
    },
    "pypi.org": {"PIP_INDEX_URL": "{url}/pypi.org/simple", "PIP_TRUSTED_HOST": "127.0.0.1"},
    "registry.npmjs.org": {"npm_config_registry": "{url}/registry.npmjs.org/"},
    "proxy.golang.org": {"GOPROXY": "{url}/proxy.golang.org"},
}
