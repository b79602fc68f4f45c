"""The peer of the matrix: a real K3s server on this machine and `k3s agent`, as it is shipped, on the board."""

import os
import shutil
import subprocess
from pathlib import Path

from board import HOST, Skip, free_port, quote, run, wait_until
from lab import REPO, Server

TOKEN = "matrix-token-1234567890"
HOME = "/opt/k3s"
UNIT = f"""[Unit]
Description=Lightweight Kubernetes
Wants=network-online.target
After=network-online.target
[Service]
Type=notify
Environment=PATH={HOME}:/usr/lib/cni:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart={HOME}/k3s agent --server %s --token {TOKEN} --node-name board --pause-image docker.io/rancher/mirrored-pause:3.10.2
[Install]
WantedBy=multi-user.target
"""


class K3sServer(Server):
    """A K3s server without an agent; it answers as an edge-server does."""

    def __init__(self, lab):
        self.internal = [free_port() for _ in range(2)]
        super().__init__(lab)

    def start(self):
        program = os.environ.get("K3S_BIN")
        if not program:
            raise Skip("K3S_BIN does not name a k3s binary")
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "kubeconfig.yaml"
        scheduler, manager = self.internal
        command = [program, "server", "--disable-agent", "--data-dir", self.data / "data", "--token", TOKEN, "--https-listen-port", self.port,
                   "--bind-address", "127.0.0.1", "--advertise-address", HOST, "--tls-san", HOST, "--write-kubeconfig", config,
                   "--disable", "traefik,servicelb,metrics-server,local-storage,coredns", "--disable-cloud-controller",
                   f"--kube-scheduler-arg=secure-port={scheduler}", f"--kube-controller-manager-arg=secure-port={manager}"]
        log = open(self.lab.results / "k3s-server.log", "a")
        # What it keeps in /run is nobody else's.
        self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "nice", "unshare", "--mount", "--propagation", "private", "sh", "-c",
                                         "mount -t tmpfs none /run && exec " + " ".join(quote(word) for word in command)],
                                        stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                        # A build without its data bundle looks for the plugins even where it runs no pod.
                                        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/lib/cni:{REPO / 'tests/beside'}"})
        wait_until("the K3s server answers", lambda: config.exists() and self.kubectl("get", "--raw", "/readyz"), 240)

    def token(self):
        return TOKEN


def install(board, server, images):
    """Puts K3s on the board and starts its agent; `images` are archives by the name they get."""
    source = Path(os.environ["K3S_BIN"]).resolve()
    # A build with debug information is four times what is shipped.
    stripped = board.results / "k3s"
    if subprocess.run(["strip", "-o", stripped, source], check=False).returncode:
        shutil.copy(source, stripped)
    board.put(stripped, f"{HOME}/k3s")
    stripped.unlink()
    for beside in ("containerd-shim-runc-v2",):
        if (source.parent / beside).exists():
            board.put(source.parent / beside, f"{HOME}/{beside}")
    board.put(REPO / "tests/beside/flannel", f"{HOME}/flannel")
    board.sh(f"cd {HOME} && chmod 755 * && ln -sf k3s containerd && ln -sf k3s ctr && for plugin in /usr/lib/cni/*; do ln -sf $plugin .; done"
             " && systemctl disable --now containerd")
    for name, archive in images.items():
        board.put(archive, f"/var/lib/rancher/k3s/agent/images/{name}.tar")
    board.write("/etc/systemd/system/k3s-agent.service", UNIT % server.url)
    board.sh("systemctl daemon-reload && systemctl enable k3s-agent && systemctl start --no-block k3s-agent")
