"""The package is installed by apt, the node joins, a pod runs and comes back after a reboot and after a power cut."""

from board import wait_until
from lab import busybox_pod, full_protection, indented

DEFAULTS = {"arch": "arm64", "memory": 512}

# Each start of the container is a line on the board's disk.
POD = busybox_pod("web", "date +%s >>/data/starts; sync; exec httpd -f -p 8080 -h /data", container={
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    "resources": {"requests": {"memory": "16Mi", "cpu": "50m"}, "limits": {"memory": "32Mi"}},
}, volumes=[{"name": "data", "hostPath": {"path": "/srv/web", "type": "DirectoryOrCreate"}}])


def run(lab):
    lab.step("a board with its boot flags set; apt installs the package")
    board = lab.board(flags="psi=1 cgroup_enable=memory")
    server = lab.server()
    lab.install(board)
    units(lab, board)

    lab.step("edge-agent join")
    lab.say(indented(lab.join(board, server)))
    server.wait_ready()
    check_processes(lab, board)

    lab.step("a pod")
    server.apply(POD)
    serves(lab, board, server)

    lab.step("reboot")
    board.reboot()
    server.wait_ready()
    back(lab, board, starts=2)
    serves(lab, board, server)

    power_cut_without_server(lab, board, server, starts=3)
    failed = board.sh("systemctl --failed --no-legend --plain")
    lab.check("no unit failed", not failed.strip(), failed)
    full_protection(lab, board)


def power_cut_without_server(lab, board, server, starts):
    lab.step("power cut with the server away")
    board.sh("sync")
    server.stop()
    board.power_cut()
    board.boot()
    back(lab, board, starts)
    lab.step("the server is back")
    server.start()
    server.wait_ready()
    pod = serves(lab, board, server)
    lab.say(f"restartCount: {pod['status']['containerStatuses'][0]['restartCount']}")


def units(lab, board):
    """What systemd itself says of the units, once it runs them."""
    units = "edge-agent.service edge.slice kubepods.slice containerd.service"
    code, text = board.code(f"systemd-analyze verify --man=no {units}", limit=300)
    ours = [line for line in text.splitlines() if line.strip()]
    lab.check("systemd-analyze verify is silent", code == 0 and not ours, text)
    score = board.sh("systemd-analyze security --no-pager edge-agent.service", limit=300)
    (lab.results / "security.txt").write_text(score)
    lab.say(score.strip().splitlines()[-1].lstrip("→ "))


def check_processes(lab, board):
    """What the unit promises is what the kernel holds."""
    facts = board.sh("systemctl show -p ActiveState -p SubState -p NRestarts -p ControlGroup -p MemoryMin edge-agent containerd")
    lab.say(indented(facts))
    group = board.sh("cat /proc/$(systemctl show -p MainPID --value edge-agent)/cgroup").strip()
    lab.check("the agent is in edge.slice", group == "0::/edge.slice/edge-agent.service", group)
    score = board.sh("cat /proc/$(systemctl show -p MainPID --value edge-agent)/oom_score_adj").strip()
    lab.check("oom_score_adj of the agent", score == "-999", score)
    lab.check("the service is enabled", board.sh("systemctl is-enabled edge-agent").strip() == "enabled")


def serves(lab, board, server):
    """The pod's page over the pod network; the server may still show the address it had before a power cut."""
    def page():
        pod = server.wait_pod("web")
        text = board.sh(f"exec 3<>/dev/tcp/{pod['status']['podIP']}/8080 && printf 'GET /starts HTTP/1.0\\r\\n\\r\\n' >&3 && timeout 20 cat <&3")
        return pod if "200 OK" in text else None

    pod = wait_until("the pod answers over the pod network", page, 240)
    lab.say("ok: the pod answers over the pod network")
    return pod


def back(lab, board, starts):
    """The container was started once more, seen on the board, so without asking the server."""
    seen = wait_until(f"start number {starts} of the pod", lambda: int(board.sh("wc -l </srv/web/starts")) >= starts, 300)
    lab.check(f"the pod was started again ({starts} starts)", seen)
