"""The verbs of what stands around a run: doctor for this machine, setup and teardown for an AWS account."""

from __future__ import annotations

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from instant_env.cli.arguments import VerbTask
from instant_env.cli.common import CLOUD_HELP, JSON_HELP, read_settings
from instant_env.cli.tables import finding_table
from instant_env.cli.verb import print_json, reporter, say, show, verb
from instant_env.progress import Doing


@task(
    klass=VerbTask,
    help={
        "subnet": "subnet that machines will use (default: the best of the default VPC)",
        "dry-run": "say what is missing, and make nothing",
        "spot-role": "make Spot's service-linked role, too, without which EC2 refuses spot machines",
        "reaper": "make the reaper, too: a function of Lambda's that ends what is past its time",
        "check": "print a checklist of the account and of our permissions, and make nothing",
        **CLOUD_HELP,
        **JSON_HELP,
    },
)
@verb
def setup(
    _: Context, subnet: str = "", dry_run: bool = False, spot_role: bool = False, reaper: bool = False,
    check: bool = False, cloud: str = "", region: str = "", json: bool = False,
) -> None:  # fmt: skip
    """Make what an AWS account needs once, and check its quotas and our permissions. Run it again at will."""
    from instant_env.cloud.account import setup as account
    from instant_env.cloud.account.checklist import checklist
    from instant_env.cloud.session import connect

    progress = reporter()
    progress(Doing("looking at the account"))
    connection = connect(account.only_aws(read_settings(cloud=cloud, region=region, subnet=subnet)), progress)
    if check:
        findings = checklist(connection, progress=progress)
    else:
        findings = account.set_up(
            connection, dry_run=dry_run, progress=progress, spot_role=spot_role, reaper=reaper
        )
    if json:
        print_json({"found": [finding.as_dict() for finding in findings]})
    elif check:
        show(finding_table(findings))
    else:
        say("\n".join(account.advice(findings)))
    if any(finding.state == "trouble" for finding in findings):
        raise Exit(code=1)


@task(klass=VerbTask, help={"dry-run": "say what would go, and remove nothing", **CLOUD_HELP, **JSON_HELP})
@verb
def teardown(
    _: Context, dry_run: bool = False, cloud: str = "", region: str = "", json: bool = False
) -> None:
    """Remove what `setup` made. AMIs and machines are `clean`'s."""
    from instant_env.cloud.account import setup as account
    from instant_env.cloud.session import connect

    progress = reporter()
    progress(Doing("looking at the account"))
    connection = connect(account.only_aws(read_settings(cloud=cloud, region=region)), progress)
    findings = account.tear_down(connection, dry_run=dry_run, progress=progress)
    if json:
        print_json({"found": [finding.as_dict() for finding in findings]})
    elif not findings:
        say("nothing to remove")


@task(klass=VerbTask, help=JSON_HELP)
@verb
def doctor(_: Context, json: bool = False) -> None:
    """Say what this machine lacks, and the exact command that installs it."""
    from instant_env.cli.doctor import check

    reporter()(Doing("looking at this machine"))
    report = check(read_settings())
    if json:
        print_json(report.model_dump(mode="json"))
    else:
        say(report.render())
    if not report.ok:
        raise Exit(code=1)
