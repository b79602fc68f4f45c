"""Records what the governor would see of a calm board, of work that is none of its business, and of hogs under reservations alone.

The files in the results' directory can be put into cgroup/tests/traces, where the control law is replayed over them."""

import json
import time

import matrix_hogs as hogs
from board import run as command
from lab import REPO
from matrix_board import NODE, one_node

DEFAULTS = {"arch": "amd64", "memory": 512}
SECONDS = 24
# Of the samples of 50 ms every second one is kept.
KEPT = 2


def run(lab):
    lab.step("a node without the governor")
    node = one_node(lab, "B")
    board = node.board
    command(["cargo", "build", "--locked", "-p", "cgroup", "--example", "record"], limit=1800)
    board.put(REPO / "target/debug/examples/record", "/usr/local/bin/record")
    board.sh("chmod 755 /usr/local/bin/record")
    settings = settings_of(board)

    def record(name, work):
        lab.step(name)
        recorder = board.start(f"record {SECONDS} / cgroupfs /edge.slice /system.slice/containerd.service >/run/{name}.jsonl")
        time.sleep(3)
        work()
        lab.check(f"{name}: recorded", recorder.wait(timeout=SECONDS * 10) == 0)
        raw = lab.results / "raw.jsonl"
        board.get(f"/run/{name}.jsonl", raw)
        lines = [json.loads(line) for line in raw.read_text().splitlines()][::KEPT]
        raw.unlink()
        kept = [{"settings": settings}, *({"sample": line["sample"], "pods": line["pods"]} for line in lines)]
        (lab.results / f"{name}.jsonl").write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in kept))

    record("calm", lambda: None)
    record("apt", lambda: board.code("apt-get install -y --reinstall --no-download procps || dpkg-reconfigure -f noninteractive procps", limit=300))
    record("unpack", lambda: board.sh("ctr -n k8s.io images import --no-unpack=false /var/lib/edge-agent/agent/images/hog.tar || "
                                      "ctr -n k8s.io images import /var/lib/edge-agent/agent/images/hog.tar", limit=300))
    for hog in ("mem-fast", "write", "storm"):
        record(hog, lambda hog=hog: node.server.apply(hogs.HOGS[hog].pods("hog", NODE, 600, None)))
        node.remove("hog")
        lab.check(f"{hog}: the node works afterwards", not node.healthy())


def settings_of(board):
    """As the agent makes them from the reservation (governor.md 2.3)."""
    group = "/sys/fs/cgroup/kubepods"
    io = dict(part.split("=") for part in board.sh(f"cat {group}/io.max").split()[1:])
    total = int(board.sh("sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
    number = lambda key: 2**63 if io.get(key, "max") == "max" else int(io[key])
    return {
        "memory": total, "headroom": 24 << 20, "pods_max": int(board.sh(f"cat {group}/memory.max")), "cpus": 2,
        "io": {key: number(key) for key in ("rbps", "wbps", "riops", "wiops")} if io else None,
        "read_bps": 20 << 20, "page": 4096, "zram": False,
    }
