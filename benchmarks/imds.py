"""What a new connection to IMDS costs in a guest of localec2.

    .venv/bin/python benchmarks/imds.py [--connections 200]

Boots one debian-12 machine in a private localec2 and measures inside the guest, with the guest's own clock:
TCP connect, one request, the answer's first byte, on a connection of its own each time, as cloud-init does
it. Beside it, the same against a server inside the guest (127.0.0.1): what of it is the emulated guest's own
network stack and Python. Prints one JSON object with the facts of the machine; figures of different machines
are not comparable.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from hangs import HangError, Hangs, console_end

from instant_env.arch import Arch
from instant_env.cloud.keys import KeyPair
from instant_env.localec2 import starter
from instant_env.localec2.records.layout import Layout
from instant_env.settings import Settings, load
from instant_env.ssh.connection import LoginError, wait_for_login

#: Target of the project for a new connection, in the guest, median.
TARGET_MS = 25.0
LOGIN_TIMEOUT_S = 600

_GUEST = r"""
import json, socket, socketserver, statistics, sys, threading, time
REQUEST = (b'PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n'
           b'X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n\r\n')
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(4096)
        self.request.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
server = socketserver.TCPServer(('127.0.0.1', 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
def once(address):
    start = time.perf_counter()
    with socket.create_connection(address, 10) as connection:
        connection.sendall(REQUEST)
        assert connection.recv(64).startswith(b'HTTP/1.1 200')
    return (time.perf_counter() - start) * 1000
def figures(address, n):
    once(address)
    times = sorted(once(address) for _ in range(n))
    return {'n': n, 'min_ms': round(times[0], 2), 'p50_ms': round(statistics.median(times), 2),
            'p90_ms': round(times[int(n * 0.9)], 2), 'max_ms': round(times[-1], 2)}
n = int(sys.argv[1])
print(json.dumps({'imds': figures(('169.254.169.254', 80), n), 'inside_guest': figures(server.server_address,
n)}))
"""


def machine_facts(accelerator: str) -> dict[str, object]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor()
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
        "qemu": version.stdout.splitlines()[0],
        "accelerator": accelerator, "load_1min": os.getloadavg()[0],
    }  # fmt: skip


def measure(settings: Settings, connections: int) -> dict[str, object]:
    """Boot, measure, end."""
    endpoint = starter.up(settings, lambda line: print(line, file=sys.stderr))
    try:
        image_id = starter.ensure_stock(
            settings, "debian-12", Arch.X86_64, lambda line: print(line, file=sys.stderr)
        )
        ec2 = starter.client(endpoint, "ec2")
        key = KeyPair.generate()
        ec2.import_key_pair(KeyName="bench", PublicKeyMaterial=key.public_openssh.encode())
        group_id = ec2.create_security_group(GroupName="bench", Description="bench")["GroupId"]
        ec2.authorize_security_group_ingress(
            GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="127.0.0.1/32"
        )
        layout = Layout(settings.local_dir.resolve())

        def once() -> dict[str, object]:
            instance_id = ec2.run_instances(
                ImageId=image_id, InstanceType="m7i.large", MinCount=1, MaxCount=1, KeyName="bench",
                SecurityGroupIds=[group_id],
            )["Instances"][0]["InstanceId"]  # fmt: skip
            try:
                ec2.get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 1})
                description = ec2.describe_instances(InstanceIds=[instance_id])
                address = description["Reservations"][0]["Instances"][0]["PublicIpAddress"]
                try:
                    guest = wait_for_login(
                        address, endpoint.ssh_port, "admin", key, timeout_s=LOGIN_TIMEOUT_S
                    )
                except LoginError:
                    console = console_end(layout.instance(instance_id) / "console.log")
                    raise HangError(instance_id, LOGIN_TIMEOUT_S, console) from None
                # What runs beside the first login would be measured too.
                guest.run("cloud-init status --wait", hide=True)
                guest.put(io.StringIO(_GUEST), "measure.py")
                answer: dict[str, object] = json.loads(
                    guest.run(f"python3 measure.py {connections}", hide=True).stdout
                )
                return answer
            finally:
                ec2.terminate_instances(InstanceIds=[instance_id])
                ec2.get_waiter("instance_terminated").wait(
                    InstanceIds=[instance_id], WaiterConfig={"Delay": 1}
                )

        hangs = Hangs()
        return (hangs.measured("debian-12", once) or {}) | {
            "hangs": hangs.rows, "target_p50_ms": TARGET_MS, "machine": machine_facts(endpoint.accelerator),
        }  # fmt: skip
    finally:
        starter.down(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a new IMDS connection costs in a guest.")
    parser.add_argument("--connections", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="instant-env-imds-") as name:
        settings = load({"state_dir": str(Path(name) / "state")})
        print(json.dumps(measure(settings, arguments.connections), indent=1))


if __name__ == "__main__":
    main()
