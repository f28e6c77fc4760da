"""Commands whose /dev is their own.

mmdebstrap as root makes device nodes in its chroot where it may, and otherwise mounts the host's there: then
what a package's script does to /dev/null is done to the host's. In a namespace of its own, the nodes to be
mounted are nodes of a file system that goes with the command. An ordinary user has no such trouble: in
mmdebstrap's user namespace the host's nodes belong to nobody.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import cache

from instant_env.debian.command import search_path

#: What a chroot and the programs around it use (mmdebstrap's own list). /dev/shm stays the host's: TMPDIR may
#: be there. Its descriptor outlasts the mount over /dev; -c keeps mount from resolving it back to a path.
_SCRIPT = """
exec 9</dev/shm
mount -t tmpfs -o mode=0755,nosuid,size=4m instant-env-dev /dev
while read -r name mode major minor; do
    mknod -m "$mode" "/dev/$name" c "$major" "$minor"
done <<END
null 0666 1 3
zero 0666 1 5
full 0666 1 7
random 0666 1 8
urandom 0666 1 9
tty 0666 5 0
console 0600 5 1
END
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
ln -s pts/ptmx /dev/ptmx
mkdir /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts
mount -c --bind /proc/self/fd/9 /dev/shm
exec 9<&-
exec "$@"
"""


_PREFIX = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", _SCRIPT, "devices")


@cache
def _possible() -> bool:
    """Whether this process may mount. Without, mmdebstrap cannot mount the host's devices either."""
    environment = {**os.environ, "PATH": search_path()}
    tried = subprocess.run(
        [*_PREFIX, "true"], stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    return tried.returncode == 0


def own_devices() -> Sequence[str]:
    """What gives a command behind it a /dev of its own: for root, who alone could change the host's."""
    return _PREFIX if os.geteuid() == 0 and _possible() else ()
