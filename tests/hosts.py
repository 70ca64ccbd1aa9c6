"""Several hosts on this machine: each has a network, a hostname, processes, /tmp and /dev/shm of its own.

They are Linux namespaces, joined by a virtual switch: 10.77.0.1, 10.77.0.2 and so on. All of them see
one folder, `Hosts.shared`, as on a shared file system; everything else that a run writes is on one
host only. /etc/hosts is that of a fresh Debian: the host's own name is 127.0.1.1.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.runs import environment

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0123456789abcdef0123456789abcdef"
PORT = 6379
NUMBERS = itertools.count(1)
"""Of the switches that one process makes."""

INIT = """
set -e
mount --make-rprivate /
hostname $NAME
ip link set lo up
mkdir -p $FOLDER/keep
number=0
for path in $KEPT; do
  number=$((number + 1)); mkdir -p $FOLDER/keep/$number; mount --bind $path $FOLDER/keep/$number
done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
number=0
for path in $KEPT; do
  number=$((number + 1)); mkdir -p $path; mount --bind $FOLDER/keep/$number $path
done
mkdir -p /tmp/home/.ray
printf %s $TOKEN > /tmp/home/.ray/auth_token
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' $NAME > /tmp/hosts
mount --bind /tmp/hosts /etc/hosts
echo 'nameserver 127.0.0.1' > /tmp/resolv.conf  # nobody answers there, and says so at once
mount --bind /tmp/resolv.conf /etc/resolv.conf
touch $FOLDER/$NAME.up
while :; do sleep 600 & wait; done
"""


def reason_to_skip() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    name = f"hero-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    mounts = subprocess.run(["unshare", "--mount", "--uts", "--pid", "--fork", "true"], capture_output=True)
    return None if mounts.returncode == 0 else "no mount namespaces here"


class Host:
    """One of them. `run` and `start` execute a command there."""

    def __init__(self, hosts: Hosts, number: int) -> None:
        self.hosts, self.number = hosts, number
        self.name, self.address = f"host{number}", f"10.77.0.{number}"
        self.netns, self.log = f"{hosts.name}-{number}", hosts.folder / f"host{number}.log"
        _ip("netns", "add", self.netns)
        inside, outside = ["link", "add", "eth0", "netns", self.netns], f"port{number}"
        _ip(*inside, "type", "veth", "peer", "name", outside, "netns", hosts.name)
        _ip("-n", hosts.name, "link", "set", outside, "master", "switch", "up")
        _ip("-n", self.netns, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.netns, "link", "set", "eth0", "up")
        kept = [str(ROOT), sys.prefix, sys.base_prefix, str(hosts.shared)]
        variables = {
            "NAME": self.name,
            "FOLDER": str(hosts.folder),
            "TOKEN": TOKEN,
            # Those that the new /tmp would hide.
            "KEPT": " ".join(path for path in dict.fromkeys(kept) if path.startswith("/tmp/")),
        }
        spaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.netns, *spaces, "bash", "-c", INIT],
                env={**os.environ, **variables},
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_the_tests,
            )
        _wait_for((hosts.folder / f"{self.name}.up").exists, 30, self.log)
        # `ip` and `unshare` are one process after the other; its child is the host's first.
        (self.init,) = psutil.Process(self.process.pid).children()

    def start(self, *command: str, **variables: str) -> subprocess.Popen:
        """Starts a command whose output goes to the host's log."""
        enter = ["nsenter", f"--target={self.init.pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        values = {
            **environment(),
            "HOME": "/tmp/home",
            "TMPDIR": "/tmp",
            "WANDB_MODE": "offline",
            **variables,
        }
        # Proxies of this machine are none of theirs.
        values = {name: value for name, value in values.items() if not name.lower().endswith("_proxy")}
        with open(self.log, "a") as log:
            return subprocess.Popen([*enter, f"--wd={ROOT}", *command], env=values, stdout=log, stderr=log)

    def run(self, *command: str, timeout: float = 120, **variables: str) -> int:
        return self.start(*command, **variables).wait(timeout)

    def start_ray(self, cpus: int, **variables: str) -> None:
        """Makes the host a node of the cluster whose head is host 1."""
        role = [f"--address={self.hosts.head}"]
        if self.number == 1:
            role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        options = [f"--num-cpus={cpus}", f"--node-ip-address={self.address}", "--disable-usage-stats"]
        memory = "--object-store-memory=100000000"
        command = [RAY, "start", *role, *options, memory, f'--resources={{"{self.name}": 100}}']
        values = {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0", **variables}
        assert self.run(*command, **values) == 0, self.output()

    def connect(self, is_connected: bool) -> None:
        """Plugs the network cable in or out: processes live on, packets are lost."""
        state = "up" if is_connected else "down"
        _ip("-n", self.hosts.name, "link", "set", f"port{self.number}", state)

    def output(self) -> str:
        return self.log.read_text()[-4000:]

    def end(self) -> None:
        """Kills all processes of the host, which ends its namespaces."""
        if self.init.is_running():
            self.init.kill()
        self.process.wait(30)
        subprocess.run(["ip", "netns", "delete", self.netns], check=False)


class Hosts:
    """A switch and the hosts at it."""

    def __init__(self, folder: Path) -> None:
        """`folder` must not be in /tmp, of which each host has its own."""
        self.folder, self.shared = folder, folder / "shared"
        self.shared.mkdir(parents=True)
        self.name = f"hero-{os.getpid()}-{next(NUMBERS)}"
        self.members: list[Host] = []
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.name, "link", "set", "switch", "up")

    @property
    def head(self) -> str:
        return f"10.77.0.1:{PORT}"

    def add(self) -> Host:
        self.members.append(Host(self, len(self.members) + 1))
        return self.members[-1]

    def end(self) -> None:
        for host in reversed(self.members):
            host.end()
        subprocess.run(["ip", "netns", "delete", self.name], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def two_hosts(name: str) -> Iterator[Hosts]:
    """Two hosts that are one Ray cluster, with a token; each has room for one learner. `name` is unique
    among the clusters of a process."""
    hosts = Hosts(Path(f"/var/tmp/hero-hosts-{os.getpid()}-{name}"))
    try:
        for _ in range(2):
            hosts.add().start_ray(cpus=1)
        yield hosts
    finally:
        hosts.end()


def interrupt(process: subprocess.Popen) -> None:
    """Ctrl-C for a command that `Host.start` has started, if it is still at work."""
    if process.poll() is None:
        for command in psutil.Process(process.pid).children():  # `nsenter` waits for it
            command.send_signal(signal.SIGINT)


def _end_with_the_tests() -> None:
    """Has the kernel kill this process, and with it the host, when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _wait_for(condition, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
