"""Compare a machine's answers with what the recipes assume.

`preflight` of the recipes is the first judge: it runs on the machine as in a bake. What it does not look at,
because a bake would go on all the same, is compared here.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from instant_env.bake.recipe import Base, Boot, ResolvedRecipe


class Verdict(StrEnum):
    """What a comparison says. ``look`` is for a person: there is nothing to hold it against."""

    HOLDS = "holds"
    DIFFERS = "differs"
    UNKNOWN = "unknown"
    LOOK = "look"


@dataclass(frozen=True)
class Comparison:
    """One assumption, and what was found."""

    name: str
    assumption: str
    verdict: Verdict
    finding: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


Answers = Mapping[str, str]
Judgement = tuple[Verdict, str]


def _judge(condition: bool, finding: str) -> Judgement:
    return (Verdict.HOLDS if condition else Verdict.DIFFERS), finding


def _kernel_arguments(answers: Answers) -> Judgement:
    lines = re.findall(r"^GRUB_CMDLINE_LINUX(?:_DEFAULT)?=.*$", answers["grub-defaults"], re.MULTILINE)
    one_line = all(re.fullmatch(r"\w+=(\"[^\"]*\"|'[^']*'|[^\s\"']*)\s*", line) for line in lines)
    return _judge(one_line, " | ".join(lines) or "neither line is there")


def _rewrites(answers: Answers) -> Judgement:
    text = answers["grub-writes-entries"]
    if "UPDATE_BLS_CMDLINE" in text:
        return Verdict.LOOK, "only with --update-bls-cmdline"
    return Verdict.LOOK, "always" if "update_bls_cmdline" in text else "never"


def _entries(answers: Answers) -> Judgement:
    options = re.findall(r"^[^:\n]*:options\s+(.*)$", answers["boot-entries"], re.MULTILINE)
    return _judge(bool(options) and all("root=" in one for one in options), " | ".join(options) or "no entry")


def _grub_reads_entries(answers: Answers) -> Judgement:
    lines = [
        line for line in answers["grub-configuration"].splitlines() if re.search("blscfg|set timeout=", line)
    ]
    return _judge(any("blscfg" in line for line in lines), " | ".join(lines) or "nothing")


def _grubby(answers: Answers) -> Judgement:
    version = answers["grubby"].partition("\n")[0]
    knows = "--no-etc-grub-update" in answers["grubby"]
    return Verdict.LOOK, f"{version}; {'knows' if knows else 'does not know'} --no-etc-grub-update"


def _first_boot(answers: Answers) -> Judgement:
    text = answers["first-boot"]
    status = (re.findall(r"^status: (.*)$", text, re.MULTILINE) or ["no cloud-init"])[0]
    will_reboot = re.search("^/run/cloud-init-selinux-reboot$", text, re.MULTILINE) is not None
    finding = status + (", and it wants to reboot" if will_reboot else "")
    return _judge(status == "done" and not will_reboot, finding)


def _includes(answers: Answers) -> Judgement:
    return _judge("/sshd_config.d/*.conf" in answers["sshd-includes"], answers["sshd-includes"] or "no line")


def _resolver(answers: Answers) -> Judgement:
    target = answers["resolver"]
    return _judge("run/" in target, target or "no link")


def _no_failures(answers: Answers) -> Judgement:
    return _judge(not answers["units-failed"], answers["units-failed"] or "none")


def _boot_times(answers: Answers) -> Judgement:
    blame = [
        line.strip() for line in answers["boot-times"].splitlines() if re.match(r"\s*[\d.]+(min|s|ms)", line)
    ]
    return Verdict.LOOK, "; ".join(blame[:8]) or "nothing"


def removals(answers: Answers, base: Base) -> tuple[set[str], set[str]] | None:
    """What a removal takes along because it requires what goes, and what because nobody needs it any more, by
    a dry run; None where that came to no end."""
    text = answers["removal"]
    if base.family == "apt":
        blocks = re.findall(r"no longer required:\n((?:  .*\n)+)", text)
        required = set(re.findall(r"^Purg (\S+)", text, re.MULTILINE))
        return (required, set(" ".join(blocks).split())) if required else None
    table = text.partition("Dependencies resolved")[2].partition("Transaction Summary")[0]
    parts = table.partition("Removing unused dependencies")
    required, unneeded = (set(re.findall(r"^ (\S+)", part, re.MULTILINE)) for part in (parts[0], parts[2]))
    return (required - {"Package"}, unneeded) if required else None


def _removal(base: Base, recipe: ResolvedRecipe) -> Callable[[Answers], Judgement]:
    globs = (*recipe.keep, *recipe.keep_where_installed)

    def kept(names: set[str]) -> str:
        return ", ".join(sorted(name for name in names if any(fnmatch.fnmatch(name, glob) for glob in globs)))

    def judge(answers: Answers) -> Judgement:
        taken = removals(answers, base)
        if taken is None:
            return Verdict.DIFFERS, " / ".join(answers["removal"].splitlines()[-3:])
        required, unneeded = taken
        besides = sorted((required | unneeded) - set(recipe.remove))
        parts = [
            f"{kept(required)} of what has to stay requires what goes" if kept(required) else "",
            # The recipe marks them as asked for before it removes.
            f"only a dependency so far, and kept: {kept(unneeded)}" if kept(unneeded) else "",
            f"{len(besides)} besides: {', '.join(besides)}" if besides else "nothing besides",
        ]
        return _judge(not kept(required), "; ".join(part for part in parts if part))

    return judge


def _built_in(base: Base) -> Callable[[Answers], Judgement]:
    needed = {"BLK_DEV_NVME", f"{base.root_filesystem.upper()}_FS", "EFI_STUB", "DEVTMPFS"}
    if base.boot is Boot.BLS:
        needed.add("EFI_PARTITION")

    def judge(answers: Answers) -> Judgement:
        values = dict(re.findall(r"^CONFIG_(\w+)=(\w)$", answers["kernel-options"], re.MULTILINE))
        missing = sorted(f"{name}={values.get(name, 'n')}" for name in needed if values.get(name) != "y")
        return _judge(not missing, ", ".join(missing) or "all are")

    return judge


def _pam(recipe: ResolvedRecipe) -> Callable[[Answers], Judgement]:
    def judge(answers: Answers) -> Judgement:
        owners = set(re.findall(r"^\S+ (\S+)$", answers["pam-owners"], re.MULTILINE))
        gone = sorted(owners & set(recipe.remove))
        return _judge(not gone, ", ".join(gone) or f"owned by {', '.join(sorted(owners)) or 'nobody'}")

    return judge


def _release(base: Base) -> Callable[[Answers], Judgement]:
    def judge(answers: Answers) -> Judgement:
        release = answers["release"].rpartition(" ")[2]
        return _judge(release == base.facts.release, release)

    return judge


Check = tuple[str, str, Callable[[Answers], Judgement]]


def _checks(base: Base, recipe: ResolvedRecipe) -> Iterator[Check]:
    if base.facts.release:
        yield "release", f"the facts are of {base.facts.release}", _release(base)
    yield "first boot", "is over, and does not reboot", _first_boot
    yield "sshd", "includes sshd_config.d (else the recipe adds the line)", _includes
    yield "removal", "takes nothing along that has to stay", _removal(base, recipe)
    yield "kernel", "has built in what a boot without initramfs needs (custom-init)", _built_in(base)
    yield "kernel arguments", "in /etc/default/grub are on one line, under either name", _kernel_arguments
    if base.family == "dnf":
        yield "boot entries", "name their root themselves", _entries
        yield "GRUB", "reads the entries (blscfg)", _grub_reads_entries
        yield "grub2-mkconfig", "writes the arguments of entries again", _rewrites
        yield "grubby", "overwrites /etc/default/grub; the recipe undoes that", _grubby
        yield "PAM", "names no module of a package that goes", _pam(recipe)
    yield "resolv.conf", "is a link into /run", _resolver
    yield "units", "none has failed", _no_failures
    yield "boot times", "what to take away next", _boot_times


def compare(answers: Answers, base: Base, recipe: ResolvedRecipe) -> list[Comparison]:
    """All comparisons for a base. An answer that is missing makes one unknown."""
    comparisons = []
    for name, assumption, judge in _checks(base, recipe):
        try:
            verdict, finding = judge(answers)
        except KeyError as error:
            verdict, finding = Verdict.UNKNOWN, f"no answer to {error.args[0]}"
        comparisons.append(Comparison(name, assumption, verdict, finding))
    return comparisons
