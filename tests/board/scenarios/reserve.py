"""The reservation under real systemd: the whole tree is sized for the board, and stands after daemon-reload, kill -9 and a stranger's write."""

from board import Failure, wait_until

DEFAULTS = {"arch": "amd64", "memory": 512}

MIB = 1 << 20
FILES = ("memory.min", "memory.low", "memory.high", "memory.max", "memory.swap.max", "pids.max", "cpu.weight", "io.max")
OURS = ("edge.slice", "edge.slice/edge-agent.service", "system.slice", "system.slice/containerd.service", "user.slice")
PODS = {
    "cgroupfs": ("kubepods", "kubepods/burstable", "kubepods/besteffort"),
    "systemd": ("kubepods.slice", "kubepods.slice/kubepods-burstable.slice", "kubepods.slice/kubepods-besteffort.slice"),
}
DROP_IN = "/etc/edge-agent/config.yaml.d/60-driver.yaml"


def values(board, driver):
    """Every value of every group, as `group/file` to text. A controller may come to a group later, with a neighbour that wants it."""
    names = " ".join(f"{group}/{file}" for group in OURS + PODS[driver] for file in FILES)
    said = board.sh(f"cd /sys/fs/cgroup && for f in {names}; do [ -e $f ] || continue; printf '%s = ' $f; tr '\\n' ' ' <$f; echo; done")
    return {name: value.strip() for name, value in (line.split(" = ", 1) for line in said.splitlines() if " = " in line)}


def changed(before, after):
    return {name: (value, after.get(name)) for name, value in before.items() if after.get(name) != value}


def metric(server, name):
    """All series of a metric of the node with their values."""
    said = server.kubectl("get", "--raw", "/api/v1/nodes/board/proxy/metrics")
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in said.splitlines() if line.startswith(name)}


def run(lab):
    lab.step("a board with the package, as a node")
    board = lab.board(flags="psi=1 cgroup_enable=memory")
    server = lab.server()
    lab.install(board)
    lab.join(board, server)
    server.wait_ready()
    for driver in ("cgroupfs", "systemd"):
        if driver == "systemd":
            lab.step("the same with the systemd driver")
            board.sh(f"mkdir -p $(dirname {DROP_IN}) && printf 'kubelet-arg+:\\n  - cgroup-driver=systemd\\n' >{DROP_IN} && "
                     "systemctl restart containerd edge-agent", limit=300)
            server.wait_ready()
        stands(lab, board, server, driver)


def stands(lab, board, server, driver):
    kubepods = PODS[driver][0]
    wait_until("the tree is sized", lambda: values(board, driver).get("user.slice/memory.max") not in (None, "", "max"), 120)
    before = values(board, driver)
    (lab.results / f"values-{driver}.txt").write_text("\n".join(f"{name} {value}" for name, value in before.items()) + "\n")

    def number(name):
        return int(before[name]) // MIB

    lab.check("the agent is promised what its slice promises", before["edge.slice/memory.min"] == before["edge.slice/edge-agent.service/memory.min"] != "0")
    lab.check("system.slice covers containerd", number("system.slice/memory.min") >= number("system.slice/containerd.service/memory.min") > 0)
    lab.check("pods are capped", 0 < number(f"{kubepods}/memory.max") < 400, before[f"{kubepods}/memory.max"])
    lab.check("pods are throttled on the whole disk", "wbps=" in before[f"{kubepods}/io.max"], before[f"{kubepods}/io.max"])
    weights = {name: before[f"{name}/cpu.weight"] for name in ("edge.slice", "system.slice", "user.slice", kubepods)}
    lab.check("weights are 500, 200, 100 and 100", list(weights.values()) == ["500", "200", "100", "100"], weights)

    lab.step("daemon-reload")
    board.sh("systemctl daemon-reload && systemctl daemon-reexec", limit=300)
    lab.check("every value stands", not changed(before, values(board, driver)), changed(before, values(board, driver)))

    lab.step("kill -9 of the agent")
    pid = board.sh("systemctl show -p MainPID --value edge-agent").strip()
    board.sh("mkdir -p /run/systemd/system/edge-agent.service.d && printf '[Service]\\nRestartSec=20\\n' >/run/systemd/system/edge-agent.service.d/90-test.conf && "
             f"systemctl daemon-reload && kill -9 {pid}", limit=300)
    board.wait("the agent is gone", f"! kill -0 {pid}")
    # The service's own group goes with its last process.
    others = {name: value for name, value in before.items() if "edge-agent.service" not in name}
    lab.check("every other value stands without an agent", not changed(others, values(board, driver)), changed(others, values(board, driver)))
    board.sh("rm -r /run/systemd/system/edge-agent.service.d && systemctl daemon-reload && systemctl restart edge-agent", limit=300)
    try:
        wait_until("all values are back", lambda: not changed(before, values(board, driver)), 120)
    except Failure as error:
        raise Failure(f"{error}: {changed(before, values(board, driver))}") from None

    lab.step("a stranger writes")
    board.sh(f"echo max >/sys/fs/cgroup/{kubepods}/memory.max; echo 0 >/sys/fs/cgroup/edge.slice/memory.min")
    wait_until("both values are back", lambda: not changed(before, values(board, driver)), 90)
    drift = {name: value for name, value in metric(server, "edge_agent_reservation_drift_total").items() if value}
    lab.check("and were counted", len(drift) == 2, drift)
    lab.say(board.sh("edge-agent status | head -40", check=False))
