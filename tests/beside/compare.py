"""Pure: what was seen of the same pods on two nodes -> where they differ."""
import fnmatch
import json
import re

# Lists of the API that are keyed by one of their fields.
KEYED = {"conditions": "type", "containerStatuses": "name", "initContainerStatuses": "name", "ephemeralContainerStatuses": "name", "volumeMounts": "name"}
SHORT = {"containerStatuses": "containers", "initContainerStatuses": "initContainers"}
TIMES = {"startTime", "startedAt", "finishedAt", "lastTransitionTime", "lastProbeTime"}


def keyed(value):
    """The same value with keyed lists as objects and shorter names."""
    if isinstance(value, list):
        return [keyed(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for name, item in value.items():
        key = KEYED.get(name)
        if key and isinstance(item, list):
            out[SHORT.get(name, name)] = {"order": [e[key] for e in item], **{e[key]: keyed({k: v for k, v in e.items() if k != key}) for e in item}}
        else:
            out[name] = keyed(item)
    return out


class Names:
    """What must differ between the two sides, and what stands for it: names of nodes and namespaces, ids, addresses."""

    def __init__(self, node, namespace):
        self.node, self.namespace, self.pods = node, namespace, {}

    def learn(self, pod):
        meta = pod["metadata"]
        name = meta["name"]
        owner = (meta.get("ownerReferences") or [{}])[0].get("kind")
        if meta.get("generateName") and owner != "StatefulSet":
            name = re.sub(r"-[0-9]{8,}-", "-*-", re.sub(r"-[0-9a-f]{6,10}-$", "-*-", meta["generateName"])) + "*"
        self.pods[meta["name"]] = (name, meta["uid"])
        return name

    def text(self, text):
        for name, (plain, uid) in self.pods.items():
            text = text.replace(uid, "UID")
            if plain != name:
                text = text.replace(name, plain)
        text = text.replace(self.node, "NODE").replace(self.namespace, "NAMESPACE")
        text = re.sub(r"\b[0-9a-f]{64}\b", "ID", text)
        text = re.sub(r"kube-api-access-[a-z0-9]{5}", "kube-api-access-*", text)
        text = re.sub(r"(?<![\d.])(?!127\.)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", "IP", text)
        text = re.sub(r"in \d[\d.]*(?:m?s|µs) \(\d[\d.]*(?:m?s|µs) including waiting\)", "in TIME", text)
        # What else ran at the moment of an admission is chance.
        return re.sub(r"(requested: \d+, used: )\d+", r"\1N", text)

    def value(self, value):
        if isinstance(value, dict):
            return {self.text(name): "TIME" if name in TIMES and item else self.value(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


def flat(value, path=""):
    """Path -> leaf."""
    if isinstance(value, dict) and value:
        out = {}
        for name, item in value.items():
            out.update(flat(item, f"{path}.{name}" if path else name))
        return out
    return {path: value}


def differences(peer, ours):
    """(path, peer's value, our value) of two flat or nested objects; None where one has nothing."""
    a, b = flat(peer), flat(ours)
    return [(path, a.get(path), b.get(path)) for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)]


def look(status, path):
    for part in path.split("."):
        if not isinstance(status, dict) or part not in status:
            return None
        status = status[part]
    return status


def holds(status, checks):
    """Whether a keyed status satisfies all checks: PATH=VALUE (`*` for anything) or PATH>=NUMBER."""
    for check in checks:
        path, least, wanted = re.match(r"([^=>]+)(>?)=(.*)", check).groups()
        found = look(status, path)
        if found is None or (int(found) < int(wanted) if least else wanted != "*" and str(found) != wanted):
            return False
    return True


def steps(history):
    """What a pod went through, repeats left out: its phases, and its containers' states by name."""
    out = {"phase": []}
    def add(name, what):
        line = out.setdefault(name, [])
        if not line or line[-1] != what:
            line.append(what)
    for status in history:
        add("phase", status.get("phase"))
        for group in ("initContainers", "containers"):
            for name, container in status.get(group, {}).items():
                if name != "order":
                    kind, state = next(iter(container.get("state", {}).items()), ("none", {}))
                    add(f"{group}.{name}", " ".join(str(w) for w in (kind, state.get("reason", ""), state.get("exitCode", "")) if w != ""))
    return {name: " > ".join(line) for name, line in out.items()}


def agree(peer, ours):
    """Whether two courses agree: how many states are told is no contract, but those both told came up in the same order (but for
    running, which may be too short to be told), and last came the same."""
    if not peer or not ours:
        return False
    a, b = ([s for s in dict.fromkeys(side.split(" > ")) if s != "running"] for side in (peer, ours))
    return [s for s in a if s in b] == [s for s in b if s in a] and peer.split(" > ")[-1] == ours.split(" > ")[-1]


def pods(peer, ours):
    """Differences of two lists of (normalised name, record): (name, path, peer's, ours)."""
    found = []
    order = lambda records: sorted(records, key=lambda r: json.dumps(r, sort_keys=True))
    for name in sorted({n for n, _ in peer} | {n for n, _ in ours}):
        a, b = (order([r for n, r in side if n == name]) for side in (peer, ours))
        if len(a) != len(b):
            found.append((name, "pods", len(a), len(b)))
        for left, right in zip(a, b):
            found += [(name, *d) for d in differences(left, right) if not (d[0].startswith("went.") and agree(d[1], d[2]))]
    return sorted(set((n, p, json.dumps(x), json.dumps(y)) for n, p, x, y in found))


def explain(table, manifest, difference):
    """The entry that explains this difference, or None."""
    name, path, peer, ours = difference
    for entry in table:
        fits = ((manifest, entry.get("manifest", "*")), (name, entry.get("pod", "*")), (path, entry["path"]),
                (peer, entry.get("k3s", "*")), (ours, entry.get("ours", "*")))
        if all(fnmatch.fnmatchcase(value, pattern) for value, pattern in fits):
            return entry
    return None


def brief(status):
    """One line of a keyed status."""
    containers = {n: next(iter(c.get("state", {}).items()), None) for g in ("initContainers", "containers") for n, c in status.get(g, {}).items() if n != "order"}
    return f"{status.get('phase')} {status.get('reason', '')} {json.dumps(containers)[:300]}"
