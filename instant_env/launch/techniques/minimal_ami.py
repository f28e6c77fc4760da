"""The base without what a login does not need."""

from __future__ import annotations

from instant_env.launch.techniques.base import BakedTechnique


class MinimalAmi(BakedTechnique):
    """RunInstances of the ``minimal`` recipe's AMI.

    Does: launch the base stripped of cloud-init and agents; systemd stays, one small unit fetches the key.
    Needs: a baked ``minimal`` AMI.
    Saves: cloud-init's part of the boot, most of what lies between the kernel and sshd.
    """

    name = "minimal-ami"
    recipe = "minimal"
