"""Types of EBS volumes, and what may be ordered of them. All are the same disk here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instant_env.localec2.records.records import Performance
from instant_env.localec2.state.moto_api import EC2ClientError

#: EC2 has more.
VOLUME_TYPES = ("gp3", "gp2", "standard")
#: What every gp3 volume has, and what can be ordered at most (EBS User Guide, "General Purpose SSD volumes":
#: 80,000 IOPS and 2,000 MiB/s, at most 500 IOPS per GiB and 0.25 MiB/s per IOPS).
BASE_IOPS, MAX_IOPS, IOPS_PER_GIB = 3000, 80000, 500
BASE_THROUGHPUT, MAX_THROUGHPUT, THROUGHPUT_PER_IOPS = 125, 2000, 0.25
#: API_CreateVolume, VolumeInitializationRate, in MiB/s.
MIN_INITIALIZATION, MAX_INITIALIZATION = 100, 300


def check_volume_type(volume_type: str) -> None:
    """Raises EC2ClientError."""
    if volume_type not in VOLUME_TYPES:
        raise EC2ClientError(
            "UnsupportedOperation",
            f"localec2 has no volumes of type {volume_type}, only {', '.join(VOLUME_TYPES)}.",
        )


def ordered(
    params: Mapping[str, Any], volume_type: str, size_gib: int, earlier: Performance | None = None
) -> Performance:
    """What a request's ``Iops`` and ``Throughput`` ask, over what a volume had. Raises EC2ClientError."""
    earlier = earlier if earlier is not None and volume_type == "gp3" else Performance()
    iops, throughput = params.get("Iops"), params.get("Throughput")
    if volume_type != "gp3":
        for name, value in (("iops", iops), ("throughput", throughput)):
            if value is not None:
                raise EC2ClientError(
                    "InvalidParameterCombination",
                    f"The parameter {name} is not supported for {volume_type} volumes.",
                )
        return Performance()
    iops = earlier.iops if iops is None else int(iops)
    throughput = earlier.throughput_mib_s if throughput is None else int(throughput)
    most = max(BASE_IOPS, min(MAX_IOPS, IOPS_PER_GIB * size_gib))
    if iops is not None and not BASE_IOPS <= iops <= most:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Volume iops of {iops} is not within {BASE_IOPS} to {most} for {size_gib} GiB.",
        )
    fastest = min(MAX_THROUGHPUT, int((iops or BASE_IOPS) * THROUGHPUT_PER_IOPS))
    if throughput is not None and not BASE_THROUGHPUT <= throughput <= fastest:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"Throughput of {throughput} MiB/s is not within {BASE_THROUGHPUT} to {fastest} for "
            f"{iops or BASE_IOPS} iops.",
        )
    return Performance(
        iops=None if iops == BASE_IOPS else iops,
        throughput_mib_s=None if throughput == BASE_THROUGHPUT else throughput,
    )


def origin(params: Mapping[str, Any], *, from_snapshot: bool) -> dict[str, Any]:
    """What a request says of a volume's key and of its first reads, as members of a record; recorded only.

    API_CreateVolume and API_EbsBlockDevice have the rules. Raises EC2ClientError.
    """
    key, rate = params.get("KmsKeyId"), params.get("VolumeInitializationRate")
    if key and not params.get("Encrypted"):
        raise EC2ClientError(
            "InvalidParameterDependency", "The parameter KmsKeyId requires the parameter Encrypted to be set."
        )
    if rate is not None and not from_snapshot:
        raise EC2ClientError(
            "InvalidParameterCombination",
            "VolumeInitializationRate is supported only for volumes created from snapshots.",
        )
    if rate is not None and not MIN_INITIALIZATION <= int(rate) <= MAX_INITIALIZATION:
        raise EC2ClientError(
            "InvalidParameterValue",
            f"VolumeInitializationRate of {rate} MiB/s is not within {MIN_INITIALIZATION} to "
            f"{MAX_INITIALIZATION}.",
        )
    return {"kms_key": key or None, "initialization_mib_s": None if rate is None else int(rate)}


def described(volume_type: str, performance: Performance) -> dict[str, Any]:
    """``Iops`` and ``Throughput`` of an answer."""
    if volume_type != "gp3":
        return {}
    return {
        "Iops": performance.iops or BASE_IOPS,
        "Throughput": performance.throughput_mib_s or BASE_THROUGHPUT,
    }
