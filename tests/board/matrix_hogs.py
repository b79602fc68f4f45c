"""The pods of the matrix: each hog as `governor.md` 5.1 has it, and those that stand beside it."""

HOG_IMAGE = "docker.io/library/edge-hog:test"
SHELL_IMAGE = "docker.io/library/busybox:latest"
# Beside the hog: one whose work is measured, one that is asked to do things, one that is deleted under load.
BYSTANDER, TARGET, LEAVER = "bystander", "target", "leaver"
PORT = 9000


def pod(name, node, image, args=(), command=(), limits=None, requests=None, **spec):
    container = {"name": "main", "image": image, "imagePullPolicy": "Never", **spec.pop("container", {})}
    if command:
        container["command"] = list(command)
    if args:
        container["args"] = [str(word) for word in args]
    resources = {kind: amounts for kind, amounts in (("limits", limits), ("requests", requests)) if amounts}
    if resources:
        container["resources"] = resources
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"matrix": name}},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "tolerations": [{"operator": "Exists"}],
                     "automountServiceAccountToken": False, "enableServiceLinks": False, "containers": [container], **spec}}


def bystander(node):
    """Guaranteed: what it loses, a hog took."""
    return pod(BYSTANDER, node, HOG_IMAGE, ["--kind", "bystander", "--seconds", "1000000"], limits={"cpu": "200m", "memory": "24Mi"})


def target(node):
    """Guaranteed, so that its own answers are not what is slow."""
    return pod(TARGET, node, SHELL_IMAGE, command=["sh", "-c", "trap 'exit 0' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 1 & wait $!; done"],
               limits={"cpu": "100m", "memory": "16Mi"})


def leaver(node):
    return pod(LEAVER, node, SHELL_IMAGE, command=["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"])


class Hog:
    """A hog's arguments, and its pod where that is more than a container without resources."""

    def __init__(self, *args, cpu=None, memory=None, security=None, disk=False, host=None, conn=None):
        self.args, self.cpu, self.memory, self.security, self.disk, self.host, self.conn = list(args), cpu, memory, security, disk, host, conn

    def pods(self, name, node, seconds, peer):
        """`peer` is the address of another pod, for hogs that talk to one, or of the node."""
        args = [*self.args, "--seconds", seconds]
        container, spec = {}, {"restartPolicy": "OnFailure"}
        mounts, volumes = [], []
        if self.disk:
            mounts.append({"name": "data", "mountPath": "/data"})
            volumes.append({"name": "data", "emptyDir": {}})
            args += ["--dir", "/data"]
        if self.host:
            mounts.append({"name": "host", "mountPath": "/host", "readOnly": True})
            volumes.append({"name": "host", "hostPath": {"path": self.host}})
        if mounts:
            container["volumeMounts"], spec["volumes"] = mounts, volumes
        if self.security:
            container["securityContext"] = self.security
        if self.conn:
            args += ["--target", f"{peer}:{self.conn}"]
        requests = {kind: amount for kind, amount in (("cpu", self.cpu),) if amount}
        limits = {kind: amount for kind, amount in (("memory", self.memory),) if amount}
        return pod(name, node, HOG_IMAGE, args, limits=limits, requests=requests, container=container, **spec)


SINK = Hog("--kind", "sink", "--target", f"0.0.0.0:{PORT}")
HOGS = {
    "cpu": Hog("--kind", "cpu"),
    "cpu-burstable": Hog("--kind", "cpu", cpu="100m"),
    "rt": Hog("--kind", "rt"),
    "rt-privileged": Hog("--kind", "rt", security={"privileged": True}),
    "fork": Hog("--kind", "fork"),
    "mem-fast": Hog("--kind", "mem-fast"),
    "mem-slow": Hog("--kind", "mem-slow"),
    "mem-own": Hog("--kind", "mem-own", memory="48Mi"),
    "cache": Hog("--kind", "cache", disk=True),
    "cache-map": Hog("--kind", "cache-map", disk=True),
    "cache-tree": Hog("--kind", "cache", "--tree", "/host", host="/usr"),
    "write": Hog("--kind", "write", disk=True),
    "write-fsync": Hog("--kind", "write-fsync", disk=True),
    "fd": Hog("--kind", "fd"),
    "inotify": Hog("--kind", "inotify"),
    "log": Hog("--kind", "log"),
    "disk": Hog("--kind", "disk", disk=True),
    "inode": Hog("--kind", "inode", disk=True),
    "conn": Hog("--kind", "conn", conn=PORT),
    "conn-kubelet": Hog("--kind", "conn", conn=10250),
    "storm": Hog("--kind", "storm", disk=True),
}
# A privileged pod that asks for real time may take the board; what becomes of it is told, and nothing is asked of it (5.1).
INFORMATIONAL = {"rt-privileged"}
# One for each way to starve a node (5.4).
SMOKE = ["mem-fast", "mem-slow", "write", "fork", "cpu", "storm"]
