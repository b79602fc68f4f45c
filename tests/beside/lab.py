"""A real K3s server, a real `k3s agent` node and an edge-agent node on one machine, each in network and mount namespaces
of its own with its own containerd and cgroup root, so that neither sees or tidies what is the other's."""
import base64
import glob
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

TOKEN = "beside-token-1234567890"
CAP_SYS_RESOURCE = 24
# What a K3s node keeps outside --data-dir.
K3S_HOME = ["/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/etc/rancher", "/etc/cni"]


def missing():
    """Why this cannot run here, or None."""
    if os.geteuid() != 0:
        return "needs root (namespaces, cgroups, containerd)"
    for tool in ("ip", "nsenter", "unshare", "containerd", "runc"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    for name, what in (("K3S_BIN", "a k3s binary"), ("EDGE_BIN_DIR", "the directory of edge-agent"),
                       ("EDGE_IMAGES", "a directory made by images/build")):
        if not os.path.exists(os.environ.get(name, "")):
            return f"{name} does not name {what}"
    return None


def run(*command):
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait(what, limit, look):
    """The first true answer of `look`; ends the run when `limit` seconds are over."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        if found := look():
            return found
        time.sleep(0.1)
    raise SystemExit(f"{what}: not within {limit} s")


def lacks_sys_resource():
    text = open("/proc/self/status").read()
    return not int(re.search(r"CapEff:\s*(\w+)", text)[1], 16) >> CAP_SYS_RESOURCE & 1


def hierarchies():
    """Roots of this machine's cgroup hierarchies."""
    root = "/sys/fs/cgroup"
    if os.path.exists(f"{root}/cgroup.controllers"):
        return [root]
    return [path for path in glob.glob(f"{root}/*") if os.path.isdir(path) and not os.path.islink(path)]


class Api:
    """The Kubernetes API with the administrator's certificate."""

    def __init__(self, kubeconfig):
        text = open(kubeconfig).read()
        self.host, port = re.search(r"server: https://([^:]+):(\d+)", text).groups()
        self.port = int(port)
        part = lambda key: base64.b64decode(re.search(rf"{key}-data: (\S+)", text)[1])
        with tempfile.NamedTemporaryFile() as file:
            file.write(part("client-certificate") + part("client-key"))
            file.flush()
            self.tls = ssl.create_default_context(cadata=part("certificate-authority").decode())
            self.tls.load_cert_chain(file.name)

    def connect(self, timeout):
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=timeout)

    def ask(self, method, path, body=None, kind="application/json"):
        """(status, answer); the answer is decoded JSON, or text."""
        link = self.connect(30)
        try:
            link.request(method, path, body and json.dumps(body), {"Content-Type": kind, "Accept": "application/json"})
            answer = link.getresponse()
            text = answer.read().decode()
        finally:
            link.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def get(self, path):
        status, answer = self.ask("GET", path)
        return answer if status == 200 else None

    def create(self, path, body):
        for _ in range(50):
            status, answer = self.ask("POST", path, body)
            if status != 403: # a class made a moment ago is not known to admission yet
                break
            time.sleep(0.1)
        if status not in (200, 201):
            raise SystemExit(f"POST {path}: {status} {answer.get('message', answer) if isinstance(answer, dict) else answer}")
        return answer

    def watch(self, path, version):
        """Watch events as they come."""
        link = self.connect(None)
        sign = "&" if "?" in path else "?"
        link.request("GET", f"{path}{sign}watch=1&resourceVersion={version}&timeoutSeconds=7200", headers={"Accept": "application/json"})
        answer = link.getresponse()
        while line := answer.readline():
            yield json.loads(line)


class Place:
    """Namespaces and a cgroup for one participant; everything in it ends with `end`."""

    def __init__(self, lab, name, number):
        self.lab, self.name, self.ip = lab, name, f"{lab.subnet}.{10 + number}"
        self.dir, self.link = f"{lab.dir}/{name}", f"{lab.prefix}v{number}"
        self.log = f"{lab.dir}/{name}.log"
        self.process = None
        os.makedirs(f"{self.dir}/cni")
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", self.link, "master", lab.bridge, "up")
        for command in (["addr", "add", f"{self.ip}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"],
                        ["route", "add", "default", "via", f"{lab.subnet}.1"]):
            run("ip", "-n", name, *command)
        for root in hierarchies():
            if not os.path.exists(f"{root}/cgroup.clone_children") or "cpuset" not in root:
                os.makedirs(f"{root}/{name}", exist_ok=True)
                continue
            os.makedirs(f"{root}/{name}", exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):
                open(f"{root}/{name}/{file}", "w").write(open(f"{root}/{file}").read())

    def enter(self, script):
        """Makes the mount namespace; `script` sees the directory as $1."""
        text = f"set -e\n{script}\ntouch \"$1/up\"\nexec sleep infinity"
        self.holder = self.start_process(["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--mount", "--propagation", "private",
                                          "sh", "-c", text, "sh", self.dir])
        wait(f"namespaces of {self.name} ({self.log})", 10, lambda: os.path.exists(f"{self.dir}/up"))

    def start_process(self, command, path=""):
        env = dict(os.environ, PATH=f"{path}{os.environ['PATH']}")
        return subprocess.Popen(command, stdout=open(self.log, "ab"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                start_new_session=True, env=env)

    def inside(self, *command):
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", "--", *command]

    def start(self, *command, path=""):
        self.began, self.command, self.path = time.time(), command, path
        self.process = self.start_process(self.inside(*command), path)

    def alive(self):
        if self.process.poll() is not None:
            tail = open(self.log, errors="replace").read()[-1500:]
            raise SystemExit(f"{self.name} ended with {self.process.returncode}:\n{tail}")

    def cgroups(self):
        return [f"{root}/{self.name}" for root in hierarchies() if os.path.isdir(f"{root}/{self.name}")]

    def pids(self):
        """Everything in the mount namespace or the cgroup."""
        found = set()
        for group in self.cgroups():
            for folder, _, _ in os.walk(group):
                try:
                    found |= {int(pid) for pid in open(f"{folder}/cgroup.procs").read().split()}
                except OSError:
                    pass
        own = mount_namespace(self.holder.pid)
        found |= {pid for pid in all_pids() if own and mount_namespace(pid) == own}
        return found


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_of(pid):
    """The base name of what a process was started as."""
    try:
        return os.path.basename(open(f"/proc/{pid}/cmdline").read().split("\0")[0].rstrip())
    except OSError:
        return None


def mount_namespace(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


class Lab:
    """Server, `k3s` node and `edge` node. Use with `with`."""

    def __init__(self, same_containerd=True, own_files=False):
        """`same_containerd`: our node runs the one K3s brings. `own_files`: our programs run from copies, so that others of
        the same name on this machine do not share their pages."""
        self.prefix = f"bs{os.getpid():x}"
        self.dir = f"{os.environ.get('EDGE_TEST_DIR', '/var/lib/edge-agent-tests')}/{self.prefix}"
        self.bridge, self.kubeconfig = f"{self.prefix}b", f"{self.dir}/kubeconfig"
        self.edge_bin, self.own_files = f"{os.environ['EDGE_BIN_DIR']}/edge-agent", own_files
        self.same_containerd = same_containerd
        self.places, self.made = [], []
        used = run("ip", "-4", "-o", "addr")
        self.subnet = next(s for s in (f"10.212.{1 + (os.getpid() + n) % 200}" for n in range(200)) if f" {s}." not in used)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__(1)
            raise
        return self

    def start(self):
        k3s = os.path.realpath(os.environ["K3S_BIN"])
        os.makedirs(f"{self.dir}/bin")
        # The server from a file of its own: shared pages would make the agent look smaller.
        shutil.copy(k3s, f"{self.dir}/bin/k3s-server")
        k3s_dir = os.path.dirname(k3s)
        if self.own_files:
            k3s = shutil.copy(k3s, f"{self.dir}/bin/k3s-node")
        for name in ("k3s", "kubectl", "containerd", "ctr"):
            os.symlink(k3s, f"{self.dir}/bin/{name}")
        shim = f"{k3s_dir}/containerd-shim-runc-v2"
        if os.path.exists(shim):
            os.symlink(shim, f"{self.dir}/bin/containerd-shim-runc-v2")
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        os.makedirs(f"{self.dir}/cni")
        for plugin in glob.glob("/usr/lib/cni/*"):
            os.symlink(plugin, f"{self.dir}/cni/{os.path.basename(plugin)}")
        shutil.copy(f"{os.path.dirname(os.path.realpath(__file__))}/flannel", f"{self.dir}/cni/flannel")
        self.path = f"{self.dir}/bin:{self.dir}/cni:"
        self.edge_path = self.path if self.same_containerd else ""
        if self.own_files:
            os.makedirs(f"{self.dir}/own")
            self.edge_bin = shutil.copy(self.edge_bin, f"{self.dir}/own")
            if not self.same_containerd:
                for name in ("containerd", "containerd-shim-runc-v2"):
                    shutil.copy(shutil.which(name), f"{self.dir}/own")
                self.edge_path = f"{self.dir}/own:"
        self.start_server()
        self.k3s = self.start_k3s()
        self.edge = self.start_edge()
        for place in (self.k3s, self.edge):
            place.ready_after = wait(f"node {place.name} Ready ({place.log})", 180, lambda: self.ready(place))

    def place(self, role):
        self.places.append(Place(self, f"{self.prefix}-{role}", len(self.places)))
        return self.places[-1]

    def k3s_home(self, place):
        """Private copies of every directory K3s would use on the machine."""
        lines = ["mount -t tmpfs none /run", "mkdir -p /run/netns /run/lock"]
        for path in K3S_HOME:
            if not os.path.isdir(path):
                os.makedirs(path)
                self.made.append(path)
            lines.append(f"mkdir -p \"$1/home{path}\" && mount --bind \"$1/home{path}\" {path}")
        place.enter("\n".join(lines))

    def start_server(self):
        place = self.server = self.place("server")
        self.k3s_home(place)
        place.start(f"{self.dir}/bin/k3s-server", "server", "--disable-agent", "--data-dir", f"{place.dir}/data", "--token", TOKEN,
                    "--tls-san", place.ip, "--node-ip", place.ip, "--advertise-address", place.ip, "--write-kubeconfig", self.kubeconfig,
                    "--disable", "traefik,servicelb,metrics-server,local-storage,coredns", path=self.path)
        def answers():
            place.alive()
            if not os.path.exists(self.kubeconfig):
                return False
            text = open(self.kubeconfig).read()
            if "client-key-data" not in text:
                return False
            open(self.kubeconfig, "w").write(text.replace("https://127.0.0.1:", f"https://{place.ip}:"))
            self.api = Api(self.kubeconfig)
            try:
                return self.api.ask("GET", "/readyz")[0] == 200
            except OSError:
                return False
        wait(f"the K3s server answers ({place.log})", 180, answers)

    def start_k3s(self):
        place = self.place("k3s")
        self.k3s_home(place)
        data = f"{place.dir}/data"
        os.makedirs(f"{data}/agent/images")
        self.images(f"{data}/agent/images")
        flags = []
        if len(hierarchies()) > 1:
            flags += ["--kubelet-arg", "fail-cgroupv1=false"]
        if lacks_sys_resource():
            drop_in = f"{data}/agent/etc/containerd/config-v3.toml.d"
            os.makedirs(drop_in)
            open(f"{drop_in}/oom.toml", "w").write("[plugins.'io.containerd.cri.v1.runtime']\n  restrict_oom_score_adj = true\n")
        place.start(f"{self.dir}/bin/k3s", "agent", "--server", f"https://{self.server.ip}:6443", "--token", TOKEN, "--data-dir", data,
                    "--node-name", place.name, "--node-ip", place.ip, "--kubelet-arg", f"cgroup-root=/{place.name}", *flags, path=self.path)
        wait(f"{place.name} registers ({place.log})", 120, lambda: place.alive() or self.api.get(f"/api/v1/nodes/{place.name}"))
        return place

    def start_edge(self):
        place = self.place("edge")
        if not os.path.isdir("/var/lib/cni"):
            os.makedirs("/var/lib/cni")
            self.made.append("/var/lib/cni")
        place.enter("mount -t tmpfs none /run/netns\nmount --bind \"$1/cni\" /var/lib/cni")
        os.makedirs(f"{place.dir}/images")
        self.images(f"{place.dir}/images")
        self.run_dir = f"/run/{self.prefix}"
        # containerd is looked for in PATH.
        self.configure(os.environ.get("EDGE_CONFIG", ""), place)
        place.start(self.edge_bin, "run", "--config", f"{self.dir}/edge.yaml", path=self.edge_path)
        return place

    def configure(self, extra, place=None):
        """Writes our agent's configuration; what runs does not read it again."""
        place, config = place or self.edge, f"{self.dir}/edge.yaml"
        open(config, "w").write(
            f"server: https://{self.server.ip}:6443\ntoken: {TOKEN}\nnode-name: {place.name}\nnode-ip: {place.ip}\ndata-dir: {place.dir}\n"
            f"run-dir: {self.run_dir}\ncontainerd: managed\npod-logs-dir: {place.dir}/pod-logs\nnode-password-file: {place.dir}/password\n"
            f"kubelet-arg:\n  - root-dir={place.dir}/kubelet\n  - cgroup-root=/{place.name}\n  - eviction-hard=nodefs.available<1Gi\n{extra}\n")
        os.chmod(config, 0o600)

    def stop(self, place, with_containerd):
        """Ends a node's agent (K3s' takes its containerd along) and waits until it has."""
        place.process.terminate()
        try:
            place.process.wait(30)
        except subprocess.TimeoutExpired:
            place.process.kill()
            place.process.wait(10)
        if with_containerd:
            found = lambda: [pid for pid in place.pids() if command_of(pid) == "containerd"]
            for pid in found():
                os.kill(pid, signal.SIGTERM)
            wait(f"containerd of {place.name} ends", 30, lambda: not found())

    def again(self, place):
        place.start(*place.command, path=place.path)

    def images(self, directory):
        for file in glob.glob(f"{os.environ['EDGE_IMAGES']}/*.tar"):
            shutil.copy(file, directory)

    def ready(self, place):
        """Seconds from the start of the process to Ready, or None."""
        place.alive()
        node = self.api.get(f"/api/v1/nodes/{place.name}") or {}
        conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions", [])}
        schedulable = not node.get("spec", {}).get("taints")
        return time.time() - place.began if conditions.get("Ready") == "True" and schedulable else None

    def __exit__(self, *_):
        # Nodes first, so that nobody starts anything again.
        for place in reversed(self.places):
            for _ in range(50):
                pids = place.pids() - {os.getpid()} if hasattr(place, "holder") else set()
                for pid in pids:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                for child in (place.process, getattr(place, "holder", None)):
                    if child:
                        child.poll()
                if not pids:
                    break
                time.sleep(0.1)
            subprocess.run(["ip", "netns", "del", place.name], capture_output=True)
            subprocess.run(["ip", "link", "del", place.link], capture_output=True)
            for group in place.cgroups():
                for folder, _, _ in os.walk(group, topdown=False):
                    try:
                        os.rmdir(folder)
                    except OSError:
                        pass
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)
        for path in self.made:
            try:
                os.rmdir(path)
            except OSError:
                pass
        for path in (self.dir, getattr(self, "run_dir", None)):
            if path and not os.environ.get("EDGE_TEST_KEEP"):
                shutil.rmtree(path, ignore_errors=True)
