"""The package's life: an upgrade leaves pods and containerd alone, the hardened drop-in runs pods, and purging leaves nothing behind."""

import os

from board import wait_until
from lab import REPO, busybox_pod, indented, run as host

DEFAULTS = {"arch": "amd64", "memory": 512}

# What an installed package is made of on the board; caches, logs and what apt and the users themselves keep are not.
FILES = ("find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /root -o -path /home -o -path '/var/cache/*' -o -path '/var/lib/apt' "
         "-o -path '/var/lib/dpkg' -o -path '/var/log' -o -path '/var/lib/containerd' -o -path '/var/lib/systemd' \\) -prune -o -print | sort; "
         "find /run/systemd/system.control /run/systemd/system /run/edge-agent /run/netns /sys/fs/cgroup/*.slice -maxdepth 1 2>/dev/null | "
         "grep -v '^/sys/.*/[^/]*\\.[^/]*[a-z]$' | sort; ls -d /sys/fs/cgroup/kubepods* /sys/fs/cgroup/edge* /sys/class/net/* 2>/dev/null; nft list tables")

# K3s leaves these too: with the password the board joins again under its name.
REJOIN = {"/etc/rancher", "/etc/rancher/node", "/etc/rancher/node/password"}

CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": {"index.html": "seen\n"}}


def reader(name):
    """A pod that is ready once it sees what the agent mounted for it."""
    return busybox_pod(name, "sleep infinity", container={
        "volumeMounts": [{"name": "page", "mountPath": "/page"}, {"name": "scratch", "mountPath": "/scratch"}],
        "readinessProbe": {"exec": {"command": ["sh", "-c", "grep -q seen /page/index.html && touch /scratch/x"]}, "timeoutSeconds": 20},
    }, volumes=[{"name": "page", "configMap": {"name": "page"}}, {"name": "scratch", "emptyDir": {"medium": "Memory"}}])


def run(lab):
    lab.step("a board, and what is on it")
    board = lab.board(flags="psi=1 cgroup_enable=memory")
    server = lab.server()
    old, new = package(lab, "0.0.9"), package(lab, None)
    # What the package depends on comes first: it stays when the package goes.
    board.sh("DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends containerd runc containernetworking-plugins iproute2 kmod nftables", limit=600)
    before = set(board.sh(FILES, limit=300).splitlines())

    lab.step("the old package, a node, a pod")
    lab.install(board, old)
    lab.join(board, server)
    server.wait_ready()
    server.apply(CONFIG)
    server.apply(reader("first"))
    server.wait_pod("first")
    kept(lab, board)

    lab.step("the new one over it")
    processes = facts(board)
    lab.install(board, new, images=())
    lab.check("it is installed", "0.0.9" not in board.sh("dpkg-query -W -f '${Version}' edge-agent"))
    wait_until("the agent is another process", lambda: facts(board)["agent"] not in ("0", processes["agent"]), 120)
    board.wait("the agent runs", "systemctl is-active edge-agent")
    after = facts(board)
    same = {name: (processes[name], after[name]) for name in processes if name != "agent" and processes[name] != after[name]}
    lab.check("containerd and the pod's process are the same", not same, same)
    server.wait_ready()
    pod = server.wait_pod("first")
    lab.check("the pod was not restarted", pod["status"]["containerStatuses"][0]["restartCount"] == 0, pod["status"])

    lab.step("scores, and the hardened drop-in")
    units(lab, board)
    board.sh("install -D -m 644 /usr/share/edge-agent/hardened.conf /etc/systemd/system/edge-agent.service.d/60-hardened.conf && "
             "systemctl daemon-reload && systemctl restart edge-agent", limit=300)
    units(lab, board)
    server.wait_ready()
    server.apply(reader("second"))
    server.wait_pod("second")
    lab.check("a pod with volumes and a probe runs", True)
    lab.say(server.kubectl("exec", "second", "--", "cat", "/page/index.html").strip())
    refused = board.sh("journalctl -b -o cat -u edge-agent | grep -iE 'not permitted|denied|bad system call' | sort | uniq -c | head -5", check=False)
    lab.say("refused: " + (indented(refused) or "nothing"))
    board.sh("rm -r /etc/systemd/system/edge-agent.service.d && systemctl daemon-reload && systemctl restart edge-agent", limit=300)

    lab.step("purged")
    said = board.sh("DEBIAN_FRONTEND=noninteractive apt-get purge -y edge-agent 2>&1", limit=600)
    (lab.results / "purge.txt").write_text(said)
    lab.say(indented("\n".join(said.strip().splitlines()[-8:])))
    left = sorted(set(board.sh(FILES, limit=300).splitlines()) - before - REJOIN)
    (lab.results / "left.txt").write_text("\n".join(left) + "\n")
    lab.check("nothing is left", not left, left[:20])
    running = board.sh("ctr -n k8s.io tasks ls -q", check=False).split()
    lab.check("no pod runs on", not running, running)
    failed = board.sh("systemctl --failed --no-legend --plain")
    lab.check("no unit failed", not failed.strip(), failed)


def package(lab, version):
    """edge-agent's package from the binaries at hand, under another version."""
    environment = {**os.environ, "DEB_ARCH": lab.arch, **({"VERSION": version} if version else {})}
    made = host([REPO / "systemd/build-deb", lab.binaries(), lab.results / "packages"], env=environment, limit=900)
    return type(lab.results)(next(line for line in made.splitlines() if "/edge-agent_" in line))


def facts(board):
    """Main processes of the services, and the pod's."""
    return {"agent": board.sh("systemctl show -p MainPID --value edge-agent").strip(),
            "containerd": board.sh("systemctl show -p MainPID --value containerd").strip(),
            "pod": board.sh("ctr -n k8s.io tasks ls | awk '$3 == \"RUNNING\" {print $2}' | sort").strip()}


def kept(lab, board):
    """The daemons without which nobody can reach the board come after every pod."""
    for unit in ("dbus", "systemd-journald"):
        score = board.sh(f"cat /proc/$(systemctl show -p MainPID --value {unit})/oom_score_adj").strip()
        # Both started before the package came; a unit's score is given to the process it starts next.
        set_to = board.sh(f"systemctl show -p OOMScoreAdjust --value {unit}").strip()
        low = board.sh(f"cat /sys/fs/cgroup/system.slice/{unit}.service/memory.low").strip()
        lab.check(f"{unit}: OOMScoreAdjust -998, memory.low {low}", set_to == "-998" and low == str(16 << 20), f"{set_to} (process: {score}), {low}")
    board.sh("systemd-run --wait --quiet true")


def units(lab, board):
    """What systemd says of the units as they run."""
    code, said = board.code("systemd-analyze verify --man=no edge-agent.service edge.slice kubepods.slice", limit=300)
    lab.check("systemd-analyze verify has nothing to say", code == 0 and not said.strip(), said)
    lab.say(board.sh("systemd-analyze security --no-pager edge-agent.service", limit=300).strip().splitlines()[-1])
