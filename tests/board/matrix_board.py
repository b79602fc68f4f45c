"""A board for the matrix: its memory, its swap and how far it is protected, with the pods that stand beside every hog."""

import json
import os
import shutil
import time
from pathlib import Path

import matrix_hogs as hogs
import matrix_k3s
from board import CACHE, Failure, run, wait_until
from lab import IMAGES, REPO
from matrix_probes import Api

NODE = "board"
SAMPLES = "/run/matrix.jsonl"
GROUP = "/sys/fs/cgroup"
# Limits that protect: what a hog may have changed and its end must restore.
KNOBS = ("memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max", "cpu.weight", "cpu.max", "cpu.idle", "io.max",
         "pids.max", "cgroup.freeze")
MODES = {
    "A": "our agent, no reservation and no governor",
    "B": "our agent, reservations only",
    "C": "our agent, reservations and governor",
    "K": "k3s agent as it is shipped",
}
# Takes away what the package's units give, for mode A.
BARE_UNITS = {
    "edge.slice": "[Slice]\nMemoryMin=0\nCPUWeight=100\n",
    "kubepods.slice": "[Slice]\nMemoryMax=infinity\nTasksMax=infinity\n",
    "system.slice": "[Slice]\nMemoryMin=0\nCPUWeight=100\n",
    "containerd.service": "[Service]\nMemoryMin=0\nMemoryLow=0\nCPUWeight=100\n",
    "edge-agent.service": "[Service]\nSlice=system.slice\nMemoryMin=0\nNice=0\nCPUWeight=100\n",
}
# What the agent itself sets on the pods' groups is taken away again as soon as it is set.
UNDO = r"""#!/bin/bash
cd /sys/fs/cgroup || exit 1
set_to() { # VALUE FILE...
  local value=$1 file seen; shift
  for file; do [ -e "$file" ] && read -r seen <"$file" && [ "$seen" != "$value" ] && echo "$value" >"$file"; done 2>/dev/null
}
shopt -s nullglob
while sleep 0.5; do
  for group in kubepods kubepods.slice kubepods/{burstable,besteffort} kubepods.slice/kubepods-{burstable,besteffort}.slice; do
    set_to max "$group"/{memory.max,memory.high,memory.swap.max,pids.max}
    [ -s "$group/io.max" ] && while read -r disk _; do echo "$disk rbps=max wbps=max riops=max wiops=max" >"$group/io.max"; done < <(cat "$group/io.max")
  done
  set_to max kubepods*/*-pod*.slice/pids.max kubepods*/*/*-pod*.slice/pids.max kubepods/pod*/pids.max kubepods/*/pod*/pids.max
  set_to 0 {edge.slice,system.slice,system.slice/containerd.service,system.slice/edge-agent.service}/{memory.min,memory.low}
done
"""
UNDO_UNIT = """[Unit]
Description=No limits on pods' groups
[Service]
ExecStart=/usr/local/sbin/matrix-undo
Restart=always
Nice=-15
"""


def one_node(lab, mode):
    """A node of the scenario's board, without swap, as far protected as the mode says."""
    image = CACHE / f"hog-{lab.arch}.tar"
    run([REPO / "tests/hogs/image", image, lab.arch], limit=1800)
    return Node(lab, lab.memory, "none", mode, image, lab.say)


class Node:
    """A board that has joined a server, with the matrix' pods on it."""

    def __init__(self, lab, memory, swap, mode, hog_image, say):
        self.lab, self.memory, self.swap, self.mode, self.say = lab, memory, swap, mode, say
        self.hog_image = Path(hog_image)
        self.board = lab.board(memory=memory, card="poor", flags="psi=1 cgroup_enable=memory")
        if mode == "K":
            self.server = matrix_k3s.K3sServer(lab)
            lab.servers.append(self.server)
        else:
            self.server = lab.server()
        self.api = Api(self.server.data / "kubeconfig.yaml")
        self.prepare()

    @property
    def agent_group(self):
        return {"A": "system.slice/edge-agent.service", "K": "system.slice/k3s-agent.service"}.get(self.mode, "edge.slice")

    @property
    def runtime_group(self):
        return "system.slice/k3s-agent.service" if self.mode == "K" else "system.slice/containerd.service"

    def prepare(self):
        self.add_swap()
        if self.mode == "K":
            images = self.lab.images()
            archives = {"pause": images / "pause.tar", "busybox": images / "busybox.tar", "hog": self.hog_image}
            matrix_k3s.install(self.board, self.server, archives)
        else:
            self.install()
        self.server.wait_ready(NODE, limit=600)
        self.restore_pods()
        self.start_sampler()

    def install(self):
        """Our package, joined, as far protected as the mode says."""
        board = self.board
        if self.mode == "A":
            for unit, text in BARE_UNITS.items():
                board.write(f"/etc/systemd/system/{unit}.d/99-matrix.conf", text)
            board.write("/usr/local/sbin/matrix-undo", UNDO)
            board.write("/etc/systemd/system/matrix-undo.service", UNDO_UNIT)
            board.sh("chmod 755 /usr/local/sbin/matrix-undo")
        governor = {"A": "static", "B": "static", "C": "enforce"}[self.mode]
        config = "kubelet-arg+: [max-pods=12]\n"
        if has_governor_key(self.lab.binaries()):
            config += f"governor: {governor}\n"
        elif self.mode == "C":
            raise Failure("this edge-agent has no governor: mode C needs one")
        board.write("/etc/edge-agent/config.yaml.d/50-matrix.yaml", config)
        self.lab.install(board)
        # It ran before our drop-in was there.
        board.sh("systemctl daemon-reload && systemctl restart containerd", limit=300)
        board.put(self.hog_image, f"{IMAGES}/hog.tar")
        if self.mode == "A":
            board.sh("systemctl daemon-reload && systemctl start matrix-undo")
        try:
            self.lab.join(board, self.server)
        except Failure as error:
            # A busy machine's board may need longer than join waits.
            if "was not Ready within" not in str(error):
                raise

    def add_swap(self):
        """A swap file on the card, or as much compressed memory as a Pi has."""
        size = f"{self.memory}M"
        if self.swap == "swapfile":
            self.board.sh(f"[ -e /swapfile ] || {{ fallocate -l {size} /swapfile && chmod 600 /swapfile && mkswap /swapfile; }}; swapon /swapfile", limit=300)
        elif self.swap == "zram":
            self.board.sh(f"modprobe zram num_devices=1 && echo {size} >/sys/block/zram0/disksize && mkswap /dev/zram0 && swapon -p 100 /dev/zram0"
                          " && sysctl -q vm.page-cluster=0")

    def restore_pods(self):
        """Makes those of the standing pods that are not there or not whole any more."""
        for make in (hogs.bystander, hogs.target, hogs.leaver):
            wanted = make(NODE)
            name = wanted["metadata"]["name"]
            status, found = self.api.ask("GET", f"/api/v1/namespaces/default/pods/{name}")
            if status == 200 and found["status"].get("phase") not in ("Running", "Pending"):
                self.remove(name)
                status = 404
            if status == 404:
                self.server.apply(wanted)
        for name in (hogs.BYSTANDER, hogs.TARGET, hogs.LEAVER):
            self.server.wait_pod(name)

    def remove(self, name, limit=180):
        self.api.ask("DELETE", f"/api/v1/namespaces/default/pods/{name}", {"gracePeriodSeconds": 1})
        wait_until(f"pod {name} gone", lambda: self.api.ask("GET", f"/api/v1/namespaces/default/pods/{name}")[0] == 404, limit)

    # --- numbers of the board itself -------------------------------------------------------------------------------

    def start_sampler(self):
        """One process from now on, outside every group that is measured; no shell of ours runs while a hog does."""
        agent, runtime = f"{GROUP}/{self.agent_group}", f"{GROUP}/{self.runtime_group}"
        pods = f"{GROUP}/kubepods.slice" if self.board.code(f"test -d {GROUP}/kubepods.slice")[0] == 0 else f"{GROUP}/kubepods"
        parts = (("-burstable.slice", "-besteffort.slice") if pods.endswith(".slice") else ("", ""))
        classes = [f"{pods}/kubepods{part}" for part in parts] if parts[0] else [f"{pods}/burstable", f"{pods}/besteffort"]
        self.groups = {"agent": agent, "runtime": runtime, "pods": pods, "burstable": classes[0], "besteffort": classes[1]}
        watched = ["/proc/meminfo:MemTotal,MemAvailable,SwapTotal,SwapFree,Dirty,Writeback",
                   "/proc/vmstat:pgmajfault,oom_kill,workingset_refault_file,workingset_refault_anon,pswpin,pswpout",
                   "/proc/pressure/cpu", "/proc/pressure/memory", "/proc/pressure/io", "/proc/loadavg"]
        for group in (agent, runtime):
            watched += [f"{group}/memory.current", f"{group}/memory.events", f"{group}/memory.stat:pgmajfault,workingset_refault_file,workingset_refault_anon,anon,file",
                        f"{group}/memory.pressure", f"{group}/cpu.pressure", f"{group}/io.pressure"]
        for group in (pods, *classes):
            watched += [f"{group}/memory.current", f"{group}/memory.swap.current", f"{group}/memory.events", f"{group}/pids.current", f"{group}/pids.events",
                        f"{group}/memory.pressure"]
        words = " ".join(f"--watch '{file}'" for file in watched)
        unpacked = self.lab.results / "hog"
        run(["tar", "-xf", self.hog_image, "-C", fresh(unpacked)])
        layer = max((unpacked / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
        run(["tar", "-xf", layer, "-C", unpacked, "./hog"])
        self.board.put(unpacked / "hog", "/usr/local/bin/matrix-hog")
        shutil.rmtree(unpacked)
        self.board.sh("chmod 755 /usr/local/bin/matrix-hog")
        settings = f"-p OOMScoreAdjust=-1000 -p MemoryMin=8M -p Restart=always -p StandardOutput=append:{SAMPLES}"
        self.board.sh(f"systemd-run --quiet --unit=matrix-sampler --slice=-.slice {settings}"
                      f" /usr/local/bin/matrix-hog --kind sampler --seconds 1000000 --report 0.5 {words}")
        self.board.wait("the sampler", f"test -s {SAMPLES}", 60)

    def take_samples(self):
        """What was sampled since the last time, oldest first."""
        local = self.lab.results / "samples.jsonl"
        self.board.get(SAMPLES, local)
        self.board.sh(f": >{SAMPLES}")
        out = []
        for line in local.read_text(errors="replace").splitlines():
            try:
                out.append(json.loads(line))
            except ValueError:
                pass  # cut where the file was emptied
        local.unlink()
        return [line for line in out if "values" in line]

    def clock_ahead(self):
        """Seconds by which the board's clock is ahead of ours."""
        best = None
        for _ in range(3):
            before = time.time()
            there = float(self.board.sh("date +%s.%N"))
            after = time.time()
            if best is None or after - before < best[1]:
                best = (there - (before + after) / 2, after - before)
        return best[0]

    def knobs(self):
        """Every limit of the groups that matter: "GROUP/FILE" -> text."""
        files = " -o ".join(f"-name {knob}" for knob in KNOBS)
        groups = "edge.slice system.slice user.slice kubepods*"
        text = self.board.sh(f"cd {GROUP} && for d in {groups}; do [ -d $d ] && find $d -maxdepth 4 \\( {files} \\) -exec grep -H '' {{}} +; done; true")
        out = {}
        for line in text.splitlines():
            name, _, value = line.partition(":")
            out[name] = f"{out[name]}\n{value}" if name in out else value
        return out

    def healthy(self):
        """Why no further cell can run on this board, or None."""
        try:
            if not self.board.on:
                return "it is off"
            if self.server.condition(NODE, "Ready") != "True":
                return "the node is not Ready"
            self.board.sh("true", limit=60)
            self.restore_pods()
        except Failure as error:
            return str(error)[:300]
        return None


def fresh(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def has_governor_key(binaries):
    """Whether the agent knows the key `governor`: an unknown one is refused."""
    sample = fresh(Path(os.environ.get("TMPDIR", "/tmp")) / f"matrix-{os.getpid()}")
    (sample / "config.yaml").write_text("governor: static\nserver: https://127.0.0.1:1\n")
    try:
        said = run(["timeout", "5", Path(binaries) / "edge-agent", "preflight", "--config", sample / "config.yaml"])
    except Failure as error:
        said = str(error)
    shutil.rmtree(sample)
    return "unknown" not in said
