"""What a node under a hog looks like from outside: each probe asks through the API server on a schedule of its own, and a question
that is not answered does not keep the next one from being asked. Standard library only."""

import importlib.util
import threading
import time
from datetime import datetime
from pathlib import Path

# The client of the tests beside K3s: the API with the administrator's certificate.
_spec = importlib.util.spec_from_file_location("beside_lab", Path(__file__).resolve().parents[1] / "beside/lab.py")
_beside = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_beside)
Api = _beside.Api

NAMESPACE = "/api/v1/namespaces/default"
# Longer than any pass criterion, short enough that a cell ends.
LIMIT = 30
# Seconds between two questions of a kind. An exec is half a dozen starts of programs on the node, seconds of an emulated processor:
# asked as often as a log it would be a hog of its own.
EXEC_EVERY, LOGS_EVERY, SCRAPE_EVERY = 10, 2, 5


class Samples:
    """Rows (series, second since the cell began, value, ok, note), from any thread."""

    def __init__(self):
        self.began, self.rows, self.lock = time.monotonic(), [], threading.Lock()

    def now(self):
        return time.monotonic() - self.began

    def add(self, series, at, value, ok=True, note=""):
        with self.lock:
            self.rows.append((series, round(at, 3), round(value, 4), int(ok), note))

    def of(self, series):
        with self.lock:
            return [row for row in self.rows if row[0] == series]


def run_in_pod(api, node, pod, limit=LIMIT):
    """Runs a command in a pod by the kubelet's /run, which every API server passes on alike (an upgraded connection is SPDY's
    here and a web socket's there); raises OSError unless it answered."""
    link = api.connect(limit)
    try:
        link.request("POST", f"/api/v1/nodes/{node}/proxy/run/default/{pod}/main?cmd=echo+ok")
        answer = link.getresponse()
        text = answer.read().decode(errors="replace")
    finally:
        link.close()
    if answer.status != 200 or text.strip() != "ok":
        raise OSError(f"{answer.status} {text[:200]}")


def ask(api, path, limit=LIMIT):
    """The text of a GET; an OSError says what else came."""
    link = api.connect(limit)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        text = answer.read().decode(errors="replace")
    finally:
        link.close()
    if answer.status != 200:
        raise OSError(f"{answer.status} {text[:200]}")
    return text


def moment(text):
    """Seconds since 1970 of a Kubernetes time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Probes:
    """The probes of one cell; `target` is the pod that is asked to do things."""

    def __init__(self, api, node, target, samples):
        self.api, self.node, self.target, self.samples = api, node, target, samples
        self.over, self.threads = threading.Event(), []
        self.scrapes = []  # (second, text)

    def start(self):
        for work in (self._lease, self._ready,
                     lambda: self._each("exec", EXEC_EVERY, lambda: run_in_pod(self.api, self.node, self.target)),
                     lambda: self._each("logs", LOGS_EVERY, lambda: ask(self.api, f"{NAMESPACE}/pods/{self.target}/log?tailLines=1")),
                     lambda: self._each("scrape", SCRAPE_EVERY, self._scrape)):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self.threads.append(thread)

    def stop(self):
        """Ends the probes; what is still unanswered is noted by its own limit."""
        self.over.set()
        end = time.monotonic() + LIMIT + 5
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))

    def _each(self, series, period, question):
        """One question at a time: while one is unanswered none is asked, and its own time tells of it."""
        due = time.monotonic()
        while not self.over.wait(max(0, due - time.monotonic())):
            at, note = self.samples.now(), ""
            try:
                question()
            except (OSError, ValueError) as error:
                note = str(error)[:200] or type(error).__name__
            self.samples.add(series, at, self.samples.now() - at, not note, note)
            due = max(due + period, time.monotonic())

    def _scrape(self):
        at = self.samples.now()
        self.scrapes.append((at, ask(self.api, f"/api/v1/nodes/{self.node}/proxy/metrics")))

    def _lease(self):
        """Each renewal when the server has it: value is the gap since the one before."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        last, renewed = None, None
        while not self.over.is_set():
            try:
                lease = self.api.get(f"{path}/{self.node}")
            except OSError:
                lease = None
            # Ten looks a second at a server on this machine: exact enough for gaps of seconds, and no watch that could break.
            if lease and lease["spec"].get("renewTime") != renewed:
                now, said = self.samples.now(), lease["spec"].get("renewTime")
                if last is not None:
                    self.samples.add("lease_gap", now, now - last, note=f"{moment(said) - moment(renewed):.3f} by the node's clock")
                last, renewed = now, said
            self.over.wait(0.1)
        if last is not None:
            self.samples.add("lease_open", self.samples.now(), self.samples.now() - last, note="since the last renewal")

    def _ready(self):
        """Each change of a condition of the node: value is 1 for True."""
        seen = {}
        while not self.over.is_set():
            try:
                node = self.api.get(f"/api/v1/nodes/{self.node}")
            except OSError:
                node = None
            for condition in (node or {}).get("status", {}).get("conditions", []):
                kind, status = condition["type"], condition["status"]
                if seen.get(kind) != status:
                    self.samples.add(f"node_{kind}", self.samples.now(), status == "True", status != "Unknown", condition.get("reason", ""))
                    seen[kind] = status
            self.over.wait(1)


def time_until_gone(api, pod, limit=120):
    """Seconds from a DELETE with a second's grace until the pod is gone, or None; never raises for a slow node."""
    began = time.monotonic()
    api.ask("DELETE", f"{NAMESPACE}/pods/{pod}", {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 1})
    while time.monotonic() - began < limit:
        status, _ = api.ask("GET", f"{NAMESPACE}/pods/{pod}")
        if status == 404:
            return time.monotonic() - began
        time.sleep(0.1)
    return None
