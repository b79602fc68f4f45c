"""One cell: warm-up, hog, recovery, and what all probes saw, as a row of figures and a file of raw samples."""

import csv
import json
import subprocess
import threading
import time
from dataclasses import dataclass

import matrix_hogs as hogs
import matrix_judge as judge
from board import Failure, wait_until
from matrix_board import NODE
from matrix_probes import NAMESPACE, Probes, Samples, ask, time_until_gone

HOG = "hog"


@dataclass(frozen=True)
class Lengths:
    """Seconds; the recovery's are the most it may take."""

    warm: int = 60
    hog: int = 120
    recovery: int = 60


SHORT = Lengths(20, 40, 30)


def run(node, name, lengths, raw):
    """Runs hog `name` on the node; returns the row's figures. `raw` is the path, without its ending, of what is kept of it."""
    hog, api, board = hogs.HOGS[name], node.api, node.board
    peer = prepare_peer(node, hog)
    ahead = node.clock_ahead()
    knobs, restarts = node.knobs(), agent_restarts(node)
    node.take_samples()
    samples, lost = Samples(), []

    def attempt(what, question, otherwise):
        """A board that a hog took down answers nothing any more: what it was to say is left out and named."""
        try:
            return question()
        except (Failure, OSError, ValueError, subprocess.SubprocessError) as error:
            lost.append(what)
            node.say(f"no {what}: {str(error)[:200]}")
            return otherwise

    probes = Probes(api, NODE, hogs.TARGET, samples)
    probes.start()
    facts = {}
    try:
        time.sleep(lengths.warm)
        calm = scrape(api)
        begin = samples.now()
        node.say(f"hog {name}")
        node.server.apply(hog.pods(HOG, NODE, lengths.hog + 900, peer))
        # Its time counts from when it runs, however long a slow board takes to start it, or fails to.
        facts["hog_started_s"] = until_it_runs(api, 90)
        runs = samples.now()
        leaver = threading.Thread(target=lambda: facts.update(leaver_gone_s=time_until_gone(api, hogs.LEAVER)))
        wait_until_second(samples, runs + lengths.hog / 3)
        leaver.start()
        wait_until_second(samples, runs + lengths.hog)
        end = samples.now()
        reached = what_it_reached(api)
        busy = scrape(api)
        fate = fate_of(api)
        facts["hog_gone_s"] = time_until_gone(api, HOG)
        gone = samples.now()
        wait_until_second(samples, gone + 10)
        left = attempt("limits", lambda: judge.undone(knobs, node.knobs()), None)
        after = scrape(api)
        # Without a governor there is nothing else to wait for.
        while judge.state(judge.metrics(after)) not in (None, "calm") and samples.now() < gone + lengths.recovery:
            time.sleep(2)
            after = scrape(api)
        facts["calm_after_s"] = samples.now() - gone
        leaver.join(130)
    finally:
        probes.stop()
        if hog.conn == hogs.PORT:
            node.remove("sink")
    epoch = time.time() - samples.now() + ahead  # the cell's second 0 by the board's clock
    row = {**judge.lease(samples, begin), "not_ready": judge.not_ready(samples, begin)}
    for series in ("exec", "logs", "scrape"):
        row.update(judge.asked(samples, series, begin, end))
    row["exec_calm"] = judge.asked(samples, "exec", 0, begin)["exec_p50"]
    row.update(judge.bystander(bystander_lines(api, samples.now()), (epoch + 5, epoch + begin), (epoch + begin, epoch + end)))
    inside = attempt("samples", node.take_samples, [])
    row.update(judge.inside(inside, node.groups, epoch + begin, epoch + gone))
    before, during, later = (judge.metrics(text) for text in (calm, busy, after))
    end_of_all = later or during
    row["agent_lag_p99"], row["agent_lag_max"] = judge.histogram(before, end_of_all, "edge_agent_heartbeat_lag_seconds")
    row["reaction_p99"], row["reaction_max"] = judge.histogram(before, end_of_all, "edge_agent_governor_reaction_seconds")
    row["actions"] = judge.actions(before, end_of_all)
    row["state_at_end"] = judge.state(later)
    row.update(facts, **fate, **reached, undo_diff=None if left is None else len(left), harmed=" ".join(harmed(api)),
               agent_restarts=attempt("restarts", lambda: agent_restarts(node) - restarts, None), lost=" ".join(lost))
    with open(f"{raw}.csv", "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("series", "second", "value", "ok", "note"))
        writer.writerows([("phase", round(second, 3), number, 1, text) for number, (second, text) in
                          enumerate(((0, "warm-up"), (begin, "hog"), (runs, "hog runs"), (end, "hog deleted"), (gone, "hog gone")))])
        writer.writerows(samples.rows)
        for line in inside:
            second = round(line["at"] / 1000 - epoch, 3)
            writer.writerow(("late_ms", second, line["late_ms"], 1, ""))
            writer.writerows((key, second, value, 1, "") for key, value in line["values"].items())
    with open(f"{raw}.txt", "w") as out:
        out.write("limits not restored:\n" + "".join(f"  {line}\n" for line in left or ()))
        if not lost:
            out.write("journal:\n" + attempt("journal", lambda: board.sh(f"journalctl --no-pager -o short-unix --since=@{int(epoch)} | tail -n 400", check=False), ""))
        out.write("events:\n" + "".join(f"{event.get('lastTimestamp')} {event.get('reason')} {event['involvedObject'].get('name')} {event.get('message')}\n"
                                        for event in (api.get(f"{NAMESPACE}/events") or {"items": []})["items"]))
    return row


def prepare_peer(node, hog):
    """The address a hog talks to: a pod that accepts, or the node."""
    if hog.conn == hogs.PORT:
        node.server.apply(hogs.SINK.pods("sink", NODE, 1000000, None))
        return node.server.wait_pod("sink")["status"]["podIP"]
    if hog.conn:
        return next(address["address"] for address in node.server.get("node", NODE)["status"]["addresses"] if address["type"] == "InternalIP")
    return None


def until_it_runs(api, limit):
    """Seconds until the hog left Pending, None if it did not."""
    began = time.monotonic()
    while time.monotonic() - began < limit:
        try:
            pod = api.get(f"{NAMESPACE}/pods/{HOG}")
        except OSError:
            pod = None
        if pod and pod["status"].get("phase") not in (None, "Pending"):
            return time.monotonic() - began
        time.sleep(0.2)
    return None


def wait_until_second(samples, second):
    time.sleep(max(0, second - samples.now()))


def scrape(api):
    """The node's metrics, with patience: a figure for later, not a probe. Empty where none came."""
    try:
        return wait_until("metrics", lambda: ask(api, f"/api/v1/nodes/{NODE}/proxy/metrics"), 60)
    except Failure:
        return ""


def what_it_reached(api):
    """The hog's own last line."""
    try:
        text = ask(api, f"{NAMESPACE}/pods/{HOG}/log?tailLines=400")
    except OSError:
        return {}
    lines = [line for line in map(as_json, text.splitlines()) if line]
    own = [line for line in lines if line["kind"] == lines[-1]["kind"]] if lines else []
    return {f"hog_{key}": own[-1].get(key) for key in ("done", "unit", "held", "refused", "errno", "worst_ms")} if own else {}


def as_json(line):
    try:
        value = json.loads(line)
        return value if isinstance(value, dict) and "kind" in value else None
    except ValueError:
        return None


def fate_of(api):
    """What became of the hog."""
    pod = api.get(f"{NAMESPACE}/pods/{HOG}")
    if not pod:
        return {"hog_phase": "gone"}
    statuses = pod["status"].get("containerStatuses", [{}])
    last = statuses[0].get("lastState", {}).get("terminated", {}) or statuses[0].get("state", {}).get("terminated", {})
    return {"hog_phase": pod["status"].get("phase"), "hog_reason": pod["status"].get("reason") or last.get("reason"),
            "hog_restarts": statuses[0].get("restartCount")}


def harmed(api):
    """Pods beside the hog that are not what they were."""
    out = []
    for name in (hogs.BYSTANDER, hogs.TARGET):
        pod = api.get(f"{NAMESPACE}/pods/{name}")
        statuses = (pod or {}).get("status", {}).get("containerStatuses", [])
        if not pod or pod["status"].get("phase") != "Running" or any(status["restartCount"] for status in statuses):
            why = [status.get("lastState", {}).get("terminated", {}).get("reason") for status in statuses]
            out.append(f"{name}:{(pod or {}).get('status', {}).get('reason') or why[:1] or 'gone'}")
    return out


def bystander_lines(api, seconds):
    try:
        text = ask(api, f"{NAMESPACE}/pods/{hogs.BYSTANDER}/log?sinceSeconds={int(seconds) + 5}")
    except OSError:
        return []
    return [line for line in map(as_json, text.splitlines()) if line]


def agent_restarts(node):
    unit = "k3s-agent" if node.mode == "K" else "edge-agent"
    return int(node.board.sh(f"systemctl show -P NRestarts {unit}").strip() or 0)
