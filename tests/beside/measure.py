"""What a node costs: ours and a real `k3s agent` on one server, at the same time, against the limits we set ourselves.

Memory is PSS, CPU the share of one core over a window (with ended children), the wire what the node's link carried both ways.
Start times are taken in turns, ours, K3s', and the CRI calls a pod cannot do without made raw on our node's containerd."""
import concurrent.futures
import csv
import json
import os
import re
import statistics
import threading
import time

import lab as labs

IMAGE = "docker.io/library/busybox:1.36"
NAMESPACE = "/api/v1/namespaces/default"
MANY = 30
# Ends at once when told to, so that turns follow each other soon.
COMMAND = ["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]
# At most, of ours against K3s' or, for starts, the raw calls.
MEMORY_AGENT, MEMORY_BOTH, CPU_BOTH, WIRE, WIRE_METERED, START = 1 / 15, 1 / 5, 1 / 5, 1 / 2, 1 / 5, 1.25
# Seconds before a window, of the CPU's and the wire's; pods one at a time, rounds of many, starts. --short tries the command itself.
LENGTHS = {"": (60, 120, 200, 24, 3, 3), "--rough": (30, 60, 180, 10, 1, 2), "--short": (5, 10, 15, 3, 1, 1)}


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, unit, ours, peer, limit=None, against="k3s"):
        self.rows.append((what, unit, ours, peer, ours / peer if ours is not None and peer else None, limit, against))
        self.show(self.rows[-1:])

    def show(self, rows=None):
        number = lambda n, digits=2: "-" if n is None else f"{n:.{digits}f}"
        for what, unit, ours, peer, ratio, limit, against in rows or self.rows:
            verdict = "" if limit is None or ratio is None else "  ok" if ratio <= limit else "  MISSED"
            print(f"{what:52} {number(ours):>9} {number(peer):>9} {unit:6} {number(ratio, 3):>7} {number(limit, 3):>6}"
                  f"{'' if against == 'k3s' else f'  of {against}'}{verdict}", flush=True)

    def head(self):
        print(f"{'':52} {'ours':>9} {'k3s':>9} {'':6} {'ratio':>7} {'limit':>6}")

    def write(self, file):
        with open(file, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(("what", "unit", "ours", "other", "ratio", "limit", "other is"))
            writer.writerows(self.rows)


def parts(place):
    """Process ids by what they are: agent, containerd, shims."""
    out = {"agent": {place.process.pid}, "containerd": set(), "shims": set()}
    for pid in place.pids() - out["agent"]:
        name = labs.command_of(pid) or ""
        if name.startswith("containerd-shim"):
            out["shims"].add(pid)
        elif name == "containerd":
            out["containerd"].add(pid)
    return out


def pss(pids):
    """Megabytes, as 1024 x 1024 bytes."""
    total = 0
    for pid in pids:
        try:
            total += int(re.search(r"^Pss:\s+(\d+)", open(f"/proc/{pid}/smaps_rollup").read(), re.M)[1])
        except (OSError, TypeError):
            pass
    return total / 1024


def seconds(pids):
    """CPU seconds so far, those of ended children too."""
    total = 0
    for pid in pids:
        try:
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass
    return total


def carried(place):
    return sum(int(open(f"/sys/class/net/{place.link}/statistics/{way}_bytes").read()) for way in ("rx", "tx"))


def window(places, length):
    """What each place spent in the same `length` seconds: {"pss", "cpu" in %: by part, "wire" in MB a day}."""
    seen = [parts(place) for place in places]
    before = [({part: seconds(pids) for part, pids in one.items()}, carried(place)) for place, one in zip(places, seen)]
    began = time.monotonic()
    time.sleep(length)
    out = []
    for place, one, (cpu, wire) in zip(places, seen, before):
        took = time.monotonic() - began
        out.append({"wire": (carried(place) - wire) * 86400 / took / 1e6,
                    "cpu": {part: 100 * (seconds(pids) - cpu[part]) / took for part, pids in one.items()}})
    for place, result in zip(places, out):
        result["pss"] = {part: pss(pids) for part, pids in parts(place).items()}
    return out


class Pods:
    """The pods of the default namespace with the times a watcher saw them."""

    def __init__(self, api):
        self.api, self.lock = api, threading.Condition()
        self.born, self.ran, self.gone = {}, {}, set()
        self.link = api.connect(60)
        threading.Thread(target=self.follow, args=(api.get(f"{NAMESPACE}/pods")["metadata"]["resourceVersion"],), daemon=True).start()

    def follow(self, version):
        try:
            for event in self.api.watch(f"{NAMESPACE}/pods", version):
                now, pod = time.monotonic(), event["object"]
                name = pod["metadata"]["name"]
                with self.lock:
                    self.born.setdefault(name, now)
                    if pod["status"].get("phase") == "Running":
                        self.ran.setdefault(name, now)
                    if event["type"] == "DELETED":
                        self.gone.add(name)
                    self.lock.notify_all()
        except (OSError, ValueError):
            pass # the server is gone: the run is over

    def until(self, what, names, seen, limit=180):
        with self.lock:
            if not self.lock.wait_for(lambda: all(name in seen for name in names), limit):
                raise SystemExit(f"pods {what}: {sum(name in seen for name in names)} of {len(names)} within {limit} s")

    def create(self, place, names):
        def one(name, link):
            body = {"metadata": {"name": name}, "spec": {"nodeName": place.name, "tolerations": [{"operator": "Exists"}], "terminationGracePeriodSeconds": 5,
                    "containers": [{"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": COMMAND}]}}
            link.request("POST", f"{NAMESPACE}/pods", json.dumps(body), {"Content-Type": "application/json"})
            answer = link.getresponse()
            if (text := answer.read()) and answer.status != 201:
                raise SystemExit(f"pod {name}: {text.decode()[:300]}")
        if len(names) == 1:
            return one(names[0], self.link)
        def some(share):
            link = self.api.connect(60)
            for name in share:
                one(name, link)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(some, [names[i::4] for i in range(4)]))

    def start(self, place, names):
        """Milliseconds from the first seen to the last seen Running."""
        self.create(place, names)
        self.until("Running", names, self.ran)
        return 1000 * (max(self.ran[n] for n in names) - min(self.born[n] for n in names))

    def remove(self, names):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: self.api.ask("DELETE", f"{NAMESPACE}/pods/{name}"), names))
        self.until("gone", names, self.gone)


class Raw:
    """The example raw_start of the runtime crate, or nothing."""

    def __init__(self, socket):
        self.socket = socket
        base = os.environ["EDGE_BIN_DIR"]
        self.binary = next((f for f in (f"{base}/raw_start", f"{base}/examples/raw_start") if os.path.exists(f)), None)
        if not self.binary:
            print(f"no raw_start in {base}: cargo build --release -p runtime --example raw_start; raw calls are left out")

    def __call__(self, count, parallel):
        """p50 in milliseconds of a pod, or of a group's last."""
        if not self.binary:
            return None
        text = labs.run(self.binary, self.socket, IMAGE, str(count), str(parallel))
        return float(re.search(rf"^{'all' if parallel == 1 else 'group'}\s+p50\s+([\d.]+)", text, re.M)[1])

    def tidy(self):
        for root in labs.hierarchies():
            for folder, _, _ in os.walk(f"{root}/edge-raw", topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass


def memory_and_cpu(table, ours, peer, pods):
    both = lambda kind, side: side[kind]["agent"] + side[kind]["containerd"]
    for kind, unit, limit, limit_both in (("pss", "MiB", MEMORY_AGENT, MEMORY_BOTH), ("cpu", "%", None, CPU_BOTH if pods else None)):
        what = f"{'memory' if kind == 'pss' else 'CPU'}, {pods} pods:"
        table.add(f"{what} agent", unit, ours[kind]["agent"], peer[kind]["agent"], limit)
        table.add(f"{what} containerd", unit, ours[kind]["containerd"], peer[kind]["containerd"])
        table.add(f"{what} agent and containerd", unit, both(kind, ours), both(kind, peer), limit_both)
        if pods:
            table.add(f"{what} their shims", unit, ours[kind]["shims"], peer[kind]["shims"])


def ready_after(lab, place, with_containerd):
    """Seconds from exec to Ready as a watcher sees it, on a node that was there before."""
    lab.stop(place, with_containerd)
    path = f"/api/v1/nodes/{place.name}"
    unknown = {"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}}
    status, answer = lab.api.ask("PATCH", f"{path}/status", unknown, "application/strategic-merge-patch+json")
    if status != 200:
        raise SystemExit(f"node {place.name} not marked: {answer}")
    seen, came = {}, threading.Event()
    def follow():
        query = f"/api/v1/nodes?fieldSelector=metadata.name%3D{place.name}"
        for event in lab.api.watch(query, answer["metadata"]["resourceVersion"]):
            if any(c["type"] == "Ready" and c["status"] == "True" for c in event["object"]["status"]["conditions"]):
                seen["at"] = time.monotonic()
                return came.set()
    threading.Thread(target=follow, daemon=True).start()
    time.sleep(1)
    began = time.monotonic()
    lab.again(place)
    if not came.wait(180):
        raise SystemExit(f"{place.name} not Ready again within 180 s ({place.log})")
    return seen["at"] - began


def latencies(table, lab, pods, ones, rounds):
    raw = Raw(f"{lab.run_dir}/containerd.sock")
    took = {"ours": [], "k3s": [], "raw": []}
    def turn(kind, tag, count):
        if kind == "raw":
            if raw.binary:
                took[kind].append(raw(count, count))
            return
        names = [f"{tag}-{kind}-{i}" for i in range(count)]
        took[kind].append(pods.start(lab.edge if kind == "ours" else lab.k3s, names))
        pods.remove(names)
    for what, count, times in (("one", 1, ones), ("many", MANY, rounds)):
        took = {kind: [] for kind in took}
        for number in range(times + 1):
            # Who comes first changes, so that nobody always follows the same one's clean-up.
            for kind in ("ours", "raw", "k3s")[number % 3:] + ("ours", "raw", "k3s")[:number % 3]:
                turn(kind, f"{what}-{number}", count)
                time.sleep(0.3 if count == 1 else 5)
            if number == 0:
                took = {kind: [] for kind in took} # nobody's first
        name = f"created -> Running, {'one at a time' if count == 1 else f'{count} at once'}"
        middle = {kind: statistics.median(times) if times else None for kind, times in took.items()}
        table.add(f"{name}: p50 of {times}", "ms", middle["ours"], middle["k3s"])
        if count == 1:
            table.add(f"{name}: slowest", "ms", max(took["ours"]), max(took["k3s"]))
        table.add(f"{name}: p50, raw calls beside", "ms", middle["ours"], middle["raw"], START, "raw")
    raw.tidy()


def main(arguments):
    if reason := labs.missing():
        print(f"SKIP beside-k3s measure: {reason}")
        return 0
    settle, cpu, wire, ones, rounds, starts = next((LENGTHS[a] for a in arguments if a in LENGTHS), LENGTHS[""])
    table = Table()
    with labs.Lab(same_containerd=os.environ.get("BESIDE_CONTAINERD") == "k3s", own_files=True) as lab:
        both, api = (lab.edge, lab.k3s), lab.api
        print(f"our containerd: {api.get(f'/api/v1/nodes/{lab.edge.name}')['status']['nodeInfo']['containerRuntimeVersion']}, "
              f"K3s': {api.get(f'/api/v1/nodes/{lab.k3s.name}')['status']['nodeInfo']['containerRuntimeVersion']}", flush=True)
        table.head()
        pods = Pods(api)
        time.sleep(settle)
        ours, peer = window(both, wire)
        memory_and_cpu(table, ours, peer, 0)
        table.add("wire, 0 pods, both ways a day", "MB", ours["wire"], peer["wire"], WIRE)
        lab.configure("metered: true")
        lab.stop(lab.edge, False)
        lab.again(lab.edge)
        time.sleep(settle)
        metered, peer = window(both, wire)
        table.add("wire, 0 pods, both ways a day, metered: true", "MB", metered["wire"], peer["wire"], WIRE_METERED)
        lab.configure("")
        times = {place.name: [ready_after(lab, place, True) for _ in range(starts)] for place in both}
        alone = [ready_after(lab, lab.edge, False) for _ in range(starts)]
        table.add("exec -> Ready, containerd started too: p50", "s", *(statistics.median(times[place.name]) for place in both))
        table.add("exec -> Ready, our containerd left running: p50", "s", statistics.median(alone), statistics.median(times[lab.k3s.name]))
        names = {place: [f"idle-{place.name}-{i}" for i in range(MANY)] for place in both}
        for place in both:
            pods.start(place, names[place])
        time.sleep(settle)
        ours, peer = window(both, cpu)
        memory_and_cpu(table, ours, peer, MANY)
        table.add(f"wire, {MANY} pods, both ways a day", "MB", ours["wire"], peer["wire"])
        pods.remove(names[lab.edge] + names[lab.k3s])
        time.sleep(settle / 4)
        latencies(table, lab, pods, ones, rounds)
    if file := os.environ.get("MEASURE_CSV"):
        table.write(file)
    missed = [row for row in table.rows if row[5] is not None and row[4] is not None and row[4] > row[5]]
    print(f"{len(missed)} limits missed" + "".join(f"\n    {row[0]}: {row[4]:.3f}, limit {row[5]:.3f}" for row in missed))
    return 0
