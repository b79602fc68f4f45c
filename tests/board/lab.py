"""What a scenario works with on the machine that runs it: boards, a server they join, the package, kubectl, results."""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

from board import CACHE, HERE, HOST, Board, Failure, Skip, end, free_port, run, wait_until

REPO = HERE.parents[1]
ELF_MACHINES = {62: "amd64", 183: "arm64", 40: "armhf"}
TRIPLES = {"amd64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu"}
IMAGES = "/var/lib/edge-agent/agent/images"


def architecture(program):
    """Debian's name of the architecture a program is for."""
    with open(program, "rb") as file:
        head = file.read(20)
    return ELF_MACHINES.get(struct.unpack("<H", head[18:20])[0]) if head[:4] == b"\x7fELF" else None


class Lab:
    """One run of one scenario. Everything made through it is ended and removed by close()."""

    def __init__(self, name, arch, memory, results, keep=False):
        self.name, self.arch, self.memory, self.keep = name, arch, memory, keep
        self.results = Path(results)
        self.results.mkdir(parents=True, exist_ok=True)
        self.began, self.boards, self.servers, self.last_step = time.monotonic(), [], [], "start"

    def say(self, text):
        print(f"  [{time.monotonic() - self.began:4.0f} s] {text}", flush=True)

    def step(self, text):
        self.last_step = text
        self.say(f"== {text}")

    def check(self, what, good, seen=""):
        """Ends the scenario unless `good`."""
        if not good:
            raise Failure(f"{what}: {str(seen).strip() or 'no'}")
        self.say(f"ok: {what}")

    # --- what there is to work with --------------------------------------------------------------------------------

    def board(self, boot=True, **options):
        """A fresh board of this run's architecture and memory; options are those of Board."""
        options = {"arch": self.arch, "memory": self.memory, "results": self.results, "say": self.say, **options}
        board = Board(**options)
        self.boards.append(board)
        if boot:
            board.boot()
        return board

    def binaries(self, arch=None):
        """The directory with edge-agent for the board: $EDGE_BIN_DIR or target/release, or its cross-built neighbour."""
        arch = arch or self.arch
        named = os.environ.get("EDGE_BIN_DIR")
        places = [Path(place) for place in [os.environ.get(f"EDGE_BIN_DIR_{arch.upper()}"), named, REPO / f"target/cross/{TRIPLES[arch]}/release",
                                            REPO / "target/release"] if place]
        for place in places:
            if (place / "edge-agent").exists() and architecture(place / "edge-agent") == arch:
                return place
        remedy = "cargo build --release" if arch == host_arch() else f"tools/cross {arch}"
        raise Skip(f"no edge-agent for {arch} in {', '.join(map(str, places))}: {remedy}, or set EDGE_BIN_DIR_{arch.upper()}")

    def package(self):
        """The path of edge-agent's Debian package for the board: the one in $EDGE_PACKAGES, else built from the binaries."""
        given = os.environ.get("EDGE_PACKAGES")
        if given:
            found = sorted(Path(given).glob(f"edge-agent_*_{self.arch}.deb"))
            if not found:
                raise Skip(f"no edge-agent_*_{self.arch}.deb in {given}: systemd/build-deb")
            return found[-1]
        out = self.results / "packages"
        made = run([REPO / "systemd/build-deb", self.binaries(), out], env={**os.environ, "DEB_ARCH": self.arch})
        agent = [line for line in made.splitlines() if "/edge-agent_" in line]
        if not agent:
            raise Failure(f"systemd/build-deb made no package of edge-agent: {made}")
        return Path(agent[0])

    def images(self):
        """The directory with the images' tars for the board."""
        out = CACHE / f"images-{self.arch}"
        given = os.environ.get("EDGE_IMAGES")
        if given and self.arch == host_arch():
            return Path(given)
        run([REPO / "images/build", out, self.arch], limit=900)
        return out

    def server(self):
        server = Server(self)
        self.servers.append(server)
        return server

    def install(self, board, package=None, images=("pause", "busybox")):
        """Puts the package on the board with apt and the images where the agent preloads them from."""
        package = package or self.package()
        board.put(package, f"/tmp/{package.name}")
        board.sh(f"DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends /tmp/{package.name} && rm /tmp/{package.name}", limit=600)
        for name in images:
            board.put(self.images() / f"{name}.tar", f"{IMAGES}/{name}.tar")

    def join(self, board, server, options="", limit=600):
        """`edge-agent join` with the server's token; returns what it printed."""
        board.write("/root/token", server.token() + "\n")
        return board.sh(f"chmod 600 /root/token && edge-agent join {server.url} --token-file /root/token {options}", limit=limit)

    def close(self):
        for board in self.boards:
            if board.on:
                board.collect()
            if not self.keep:
                board.close()
        for server in self.servers:
            server.stop()


def host_arch():
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


class Server:
    """An edge-server on this machine's loopback, which a board reaches as 10.0.2.2."""

    def __init__(self, lab):
        self.lab, self.port = lab, free_port()
        self.data = lab.results / f"server-{len(lab.servers)}"
        self.url = f"https://{HOST}:{self.port}"
        self.program = lab.binaries(host_arch()) / "edge-server"
        self.process = None
        self.start()

    def start(self):
        log = open(self.lab.results / "edge-server.log", "a")
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", self.program, "--data-dir", self.data, "--listen", f"127.0.0.1:{self.port}", "--advertise-address", HOST],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until("edge-server answers", lambda: self.kubectl("get", "--raw", "/readyz"), 60, pause=0.2)

    def stop(self):
        if self.process:
            end(self.process)
            self.process = None

    def token(self):
        return (self.data / "token").read_text().strip()

    def kubectl(self, *words, stdin=None, limit=60):
        program = os.environ.get("KUBECTL") or shutil.which("kubectl")
        if not program:
            raise Skip("kubectl is missing: tools/setup run")
        done = subprocess.run([program, f"--kubeconfig={self.data}/kubeconfig.yaml", f"--request-timeout={limit}s", *words], input=stdin,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=limit + 10, check=False)
        if done.returncode:
            raise Failure(f"kubectl {' '.join(words)}: {done.stderr.strip()[-1000:]}")
        return done.stdout

    def get(self, *words):
        """The object or list as JSON says it."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, manifest):
        """Applies a manifest: YAML text, or one or more objects."""
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        return self.kubectl("apply", "-f", "-", stdin=text)

    def wait_ready(self, node="board", limit=300):
        """Waits until the node's Ready condition is True, freshly said."""
        return wait_until(f"node {node} Ready", lambda: self.condition(node, "Ready") == "True", limit)

    def condition(self, node, kind):
        for condition in self.get("node", node)["status"].get("conditions", []):
            if condition["type"] == kind:
                return condition["status"]
        return None

    def wait_pod(self, name, limit=300, namespace="default"):
        """Waits until every container of the pod is ready, and returns the pod."""
        def ready():
            pod = self.get("pod", name, "-n", namespace)
            statuses = pod["status"].get("containerStatuses", [])
            if statuses and all(status["ready"] for status in statuses):
                return pod
            raise Failure(f"phase {pod['status'].get('phase')}, {pod['status'].get('reason', '')} {json.dumps(statuses)[:600]}")
        return wait_until(f"pod {name} ready", ready, limit)


def busybox_pod(name, command, node="board", **spec):
    """A pod with one busybox container, bound to the node."""
    container = {"name": "main", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "Never", "command": ["sh", "-c", command]}
    container.update(spec.pop("container", {}))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [container], **spec}}


def indented(text):
    """Lines that stand below a line of Lab.say()."""
    return text.strip().replace("\n", "\n           ")


# What protects the board on cgroup v2 with all controllers, whoever wrote it: file below /sys/fs/cgroup and what must not stand there.
PROTECTION = {
    "edge.slice/memory.min": "0", "edge.slice/edge-agent.service/memory.min": "0", "edge.slice/cpu.weight": "100",
    "system.slice/memory.min": "0", "system.slice/containerd.service/memory.min": "0", "system.slice/containerd.service/memory.low": "0",
    "kubepods/memory.max": "max", "kubepods/pids.max": "max", "kubepods/memory.swap.max": "max",
    "kubepods/burstable/memory.high": "max", "kubepods/besteffort/memory.high": "max",
}


def full_protection(lab, board):
    """Every reservation of the node is in the kernel's files, and the node says that nothing is missing."""
    seen = {}
    for name in PROTECTION:
        code, text = board.code(f"cat /sys/fs/cgroup/{name}")
        seen[name] = text.strip() if code == 0 else "absent"
    lab.say(indented("\n".join(f"{name} = {value}" for name, value in seen.items())))
    wrong = {name: value for name, value in seen.items() if value in ("absent", PROTECTION[name])}
    lab.check("reservations are in the kernel's files", not wrong, wrong)
    status = board.sh("edge-agent status", check=False)
    (lab.results / "status.txt").write_text(status)
    lab.check("status names no missing protection", "egraded" not in status, status)


def scenario(name):
    """The module scenarios/NAME.py: its first docstring line says what it shows, run(lab) shows it."""
    path = HERE / "scenarios" / f"{name}.py"
    if not path.exists():
        raise SystemExit(f"no scenario '{name}'; there are: {', '.join(sorted(p.stem for p in (HERE / 'scenarios').glob('*.py')))}")
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
