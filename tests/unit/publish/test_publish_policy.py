"""What a publication asks of its target is what policies/publish.json grants."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.iam.calls import Recorder
from support.iam.check import check
from support.iam.policy import IamPolicy
from support.localec2_served import Served
from support.pretend_bakery import Bakery, make_cloud

from instant_env.arch import Arch
from instant_env.cloud.session import CloudError
from instant_env.publish import publish as publication
from instant_env.publish import transfer

pytest_plugins = ("support.pretend_bakery",)

#: EC2 asks for these on the way, and no call bears their name.
IMPLIED = {"ec2:CreateTags"}


def test_a_publication_needs_all_that_its_policy_allows_and_nothing_else(
    bakery: Bakery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published once after an attempt whose snapshot failed, which is deleted then."""
    baked = bakery.bake()
    source = publication.find_source(bakery.cloud, baked.image.id, "", Arch.X86_64)
    other = Served(tmp_path / "target")
    try:
        target = make_cloud(other, bakery.settings, 22)
        recorder = Recorder(target, other.ec2)
        assert target.session is not None
        with recorder.of_session(target.session):
            seal = transfer.seal

            def fail_once(*_: object) -> None:
                monkeypatch.setattr(transfer, "seal", seal)
                raise CloudError("no")

            monkeypatch.setattr(transfer, "seal", fail_once)
            with pytest.raises(CloudError):
                publication.publish(bakery.cloud, target, source, progress=print)
            states = iter(["error"])
            state = publication._snapshot_state
            monkeypatch.setattr(
                publication, "_snapshot_state", lambda *args: next(states, None) or state(*args)
            )
            publication.publish(bakery.cloud, target, source, progress=print)
    finally:
        other.stop()
    # The disk of a pretended machine is empty, and GetCallerIdentity needs no permission.
    actions = (recorder.actions | {"ebs:PutSnapshotBlock"}) - {"sts:GetCallerIdentity"}
    policy = IamPolicy.of_file("publish")
    kms = {action for action in policy.actions if action.startswith("kms:")}
    assert actions - policy.actions == set(), "used, and not allowed"
    assert policy.actions - actions - IMPLIED - kms == set(), "allowed, and not used"
    check("publish", recorder.calls)
