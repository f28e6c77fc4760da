"""What is in the tiny base: packages, what is taken from each, and a few files. Data, no actions.

A machine to be logged into and to be asked something: the kernel, our init, sshd, busybox. It is for tests,
not for people: the login user is root.
"""

from __future__ import annotations

import json

from instant_env.arch import Arch
from instant_env.localec2.stock.debian_contents import File
from instant_env.localec2.stock.disk import MIB, SECTOR, Extent, Geometry, Identifiers

#: The package that depends on the kernel to take, and how its own name begins.
KERNELS = {
    Arch.X86_64: ("linux-image-cloud-amd64", "linux-image-6"),
    Arch.ARM64: ("linux-image-cloud-arm64", "linux-image-6"),
}
STUBS = {Arch.X86_64: "linuxx64.efi.stub", Arch.ARM64: "linuxaa64.efi.stub"}
#: Package of STUBS.
STUB_PACKAGE = "systemd-boot-efi"
TRIPLETS = {Arch.X86_64: "x86_64-linux-gnu", Arch.ARM64: "aarch64-linux-gnu"}
#: The dynamic linker: its place in the image is part of every program (ELF's PT_INTERP).
LINKERS = {Arch.X86_64: "lib64/ld-linux-x86-64.so.2", Arch.ARM64: "lib/ld-linux-aarch64.so.1"}

#: Programs, at the place where their packages have them.
PROGRAMS = {
    "busybox-static": ("bin/busybox",),
    "openssh-server": ("usr/sbin/sshd",),
    "openssh-sftp-server": ("usr/lib/openssh/sftp-server",),
    "e2fsprogs": ("sbin/mkfs.ext4",),
}

#: Shared libraries by package: what sshd and mkfs.ext4 of Debian 12 need, and what those need.
LIBRARIES = {
    "libaudit1": ("libaudit.so.1",),
    "libblkid1": ("libblkid.so.1",),
    "libc6": ("libc.so.6", "libm.so.6", "libresolv.so.2"),
    "libcap-ng0": ("libcap-ng.so.0",),
    "libcap2": ("libcap.so.2",),
    "libcom-err2": ("libcom_err.so.2",),
    "libcrypt1": ("libcrypt.so.1",),
    "libext2fs2": ("libe2p.so.2", "libext2fs.so.2"),
    "libgcrypt20": ("libgcrypt.so.20",),
    "libgpg-error0": ("libgpg-error.so.0",),
    "libgssapi-krb5-2": ("libgssapi_krb5.so.2",),
    "libk5crypto3": ("libk5crypto.so.3",),
    "libkeyutils1": ("libkeyutils.so.1",),
    "libkrb5-3": ("libkrb5.so.3",),
    "libkrb5support0": ("libkrb5support.so.0",),
    "liblz4-1": ("liblz4.so.1",),
    "liblzma5": ("liblzma.so.5",),
    "libnsl2": ("libnsl.so.2",),
    "libpam0g": ("libpam.so.0",),
    "libpcre2-8-0": ("libpcre2-8.so.0",),
    "libselinux1": ("libselinux.so.1",),
    "libssl3": ("libcrypto.so.3",),
    "libsystemd0": ("libsystemd.so.0",),
    "libtirpc3": ("libtirpc.so.3",),
    "libuuid1": ("libuuid.so.1",),
    "libwrap0": ("libwrap.so.0",),
    "libzstd1": ("libzstd.so.1",),
    "zlib1g": ("libz.so.1",),
}

#: Network card, keys of the ACPI buttons and of the keyboard, volumes with XFS. NVMe and ext4 are built in.
MODULES = ("virtio_pci", "virtio_net", "evdev", "button", "xfs")

#: Links to busybox, for programs that look in PATH; its shell has all applets anyway, and before PATH. The
#: binary cannot be asked for its own list: it may be another architecture's.
APPLETS = tuple(
    """
    [ arch arping ash awk base64 basename blkdiscard blockdev cat chgrp chmod chown chroot clear cmp cp cut
    date dd df diff dirname dmesg du echo egrep env expr fallocate false fdisk find flock fold free fsfreeze
    fstrim getopt grep groups gunzip gzip head hexdump hostname httpd id ifconfig insmod ip kill killall
    less ln losetup ls lsmod md5sum mkdir mke2fs mkfifo mknod mkswap mktemp modprobe more mount mv nc
    netstat nl nohup nproc nslookup od partprobe pidof ping printf ps pwd readlink realpath renice rm rmdir
    rmmod route sed seq setsid sh sha256sum shred sleep sort stat stty su swapoff swapon sync sysctl tail
    tar taskset tee test time timeout top touch tr traceroute true truncate tty umount uname uniq unlink
    uptime usleep vi wc wget which who whoami xargs xxd yes zcat
    """.split()  # noqa: SIM905 (one line each would be a page)
)

#: 1 GiB, EBS's least. Swap for hibernation, in front of root so that root can grow.
GEOMETRY = Geometry(
    size_gib=1,
    esp=Extent(2048, 48 * MIB // SECTOR),
    swap=Extent(2048 + 48 * MIB // SECTOR, 512 * MIB // SECTOR),
    root=Extent(2048 + 560 * MIB // SECTOR, (1024 - 560 - 2) * MIB // SECTOR),
)

_SSHD_CONFIG = """# One user, one key. No PAM: nothing here would need it, and it would need modules.
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PrintMotd no
# Tests come in crowds.
MaxStartups 100
MaxSessions 100
Subsystem sftp /usr/lib/openssh/sftp-server
# Keys that are handed over to the running machine, as in the recipes.
AuthorizedKeysCommand /usr/sbin/instant-init login-keys %u
AuthorizedKeysCommandUser nobody
"""

_IMDS = r"""#!/bin/sh
# Ask the instance metadata service; busybox's wget cannot PUT.
#   imds PATH             body of GET /latest/PATH, with a token of its own (IMDSv2)
#   imds -t TOKEN PATH    with this token; -n: without any (IMDSv1)
#   imds -T [SECONDS]     a new token
#   imds -s ...           the status code in place of the body
# Exit status 0 when it answered 200, 1 otherwise, 2 when nothing answered.
status='' token='' make='' ttl=''
while getopts snTt: option; do
    case $option in
    s) status=1 ;;
    n) make=no ;;
    T) make=only ;;
    t) make=no token=$OPTARG ;;
    *) exit 64 ;;
    esac
done
shift $((OPTIND - 1))

# Reads a request's first line and headers from its arguments; prints the answer.
ask() {
    { printf '%s\r\n' "$@" "Host: 169.254.169.254" "Connection: close" ""; } | nc -w 10 169.254.169.254 80
}

# Prints what was asked for of the answer in $1.
show() {
    code=$(printf '%s\n' "$1" | sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p')
    [ -n "$code" ] || { echo "imds: no answer" >&2; exit 2; }
    if [ -n "$status" ]; then echo "$code"; else printf '%s\n' "$1" | sed '1,/^\r*$/d'; fi
    [ "$code" = 200 ]
}

if [ "$make" != no ]; then
    [ "$make" = only ] && ttl=$1
    answer=$(ask "PUT /latest/api/token HTTP/1.1" "X-aws-ec2-metadata-token-ttl-seconds: ${ttl:-60}" \
        "Content-Length: 0")
    if [ "$make" = only ]; then show "$answer"; exit; fi
    token=$(printf '%s\n' "$answer" | sed '1,/^\r*$/d')
fi
if [ -n "$token" ]; then
    show "$(ask "GET /latest/$1 HTTP/1.1" "X-aws-ec2-metadata-token: $token")"
else
    show "$(ask "GET /latest/$1 HTTP/1.1")"
fi
"""

FILES = (
    File("/etc/instant-init.json", json.dumps({"login_user": "root"}) + "\n"),
    File("/etc/os-release", 'ID=instant-env-tiny\nNAME="instant-env tiny"\nPRETTY_NAME="instant-env tiny"\n'),
    File(
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n"
        "sshd:x:100:65534::/run/sshd:/bin/false\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n",
    ),
    File("/etc/shadow", "root:*:19000::::::\nsshd:!:19000::::::\nnobody:*:19000::::::\n", 0o600),
    File("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    File("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
    File("/etc/profile", "export PATH=/usr/sbin:/usr/bin:/sbin:/bin\n"),
    File("/etc/ssh/sshd_config", _SSHD_CONFIG),
    File("/usr/bin/imds", _IMDS, 0o755),
)

#: Empty ones, with their modes.
DIRECTORIES = {
    "dev": 0o755, "mnt": 0o755, "proc": 0o555, "root": 0o700, "run": 0o755, "sys": 0o555, "tmp": 0o1777,
    "var": 0o755,
}  # fmt: skip

_CONSOLES = {Arch.X86_64: "ttyS0,115200n8", Arch.ARM64: "ttyAMA0"}
#: Under KVM, and so on EC2, the kernel leaves this check out by itself. An emulated processor that gets too
#: little of a busy host's time fails it: "Kernel panic - not syncing: IO-APIC + timer doesn't work!"
_NO_TIMER_CHECK = {Arch.X86_64: ["no_timer_check"], Arch.ARM64: []}


def kernel_arguments(arch: Arch, ids: Identifiers) -> str:
    """The kernel's command line. It finds root and the hibernation image itself: there is no initramfs."""
    return " ".join(
        [
            f"root=PARTUUID={ids.root_partition}", "rootwait", "rw", "init=/usr/sbin/instant-init",
            f"resume=PARTUUID={ids.swap_partition}", f"console={_CONSOLES[arch]}",
            # As in AL2023 and the recipe custom-init: EBS may stall, and rdrand is trusted.
            "nvme_core.io_timeout=4294967295", "random.trust_cpu=on", *_NO_TIMER_CHECK[arch], "quiet",
        ]
    )  # fmt: skip
