"""The base with our own PID 1."""

from __future__ import annotations

from instant_env.launch.techniques.base import BakedTechnique


class CustomInit(BakedTechnique):
    """RunInstances of the ``custom-init`` recipe's AMI.

    Does: boot firmware, kernel, one static init that fetches the key and starts sshd; nothing else.
    Needs: a baked ``custom-init`` AMI.
    Saves: the boot loader's menu, the initramfs, systemd and cloud-init: all but firmware, kernel and sshd.
    """

    name = "custom-init"
    recipe = "custom-init"
