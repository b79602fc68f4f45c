"""From what a cell left to one row of figures, and from a row to the verdicts of `governor.md` 5.6. Pure: no clock, no board."""

import re

PASS, MISS, UNKNOWN = "pass", "miss", ""


def percentile(values, share):
    """The smallest value that at least that share of them does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)] if ordered else None


def within(rows, begin, end):
    """Samples asked for between the two seconds."""
    return [row for row in rows if begin <= row[1] < end]


def asked(samples, series, begin, end):
    """What a probe saw while a hog ran: how often it asked, was not answered, and how long answers took. What was not answered
    counts as what was waited for it."""
    rows = within(samples.of(series), begin, end)
    values = [row[2] for row in rows]
    return {f"{series}_n": len(rows), f"{series}_failed": sum(not row[3] for row in rows), f"{series}_p50": percentile(values, 50),
            f"{series}_p99": percentile(values, 99), f"{series}_max": max(values, default=None)}


def lease(samples, begin):
    """Gaps that ended after the hog began, the one still open at the end among them."""
    gaps = [row[2] for row in samples.of("lease_gap") + samples.of("lease_open") if row[1] >= begin]
    return {"lease_gap_p99": percentile(gaps, 99), "lease_gap_max": max(gaps, default=None), "lease_over_20": sum(gap > 20 for gap in gaps),
            "lease_over_40": sum(gap > 40 for gap in gaps)}


def not_ready(samples, begin):
    """How often the node stopped being Ready after the hog began."""
    changes = samples.of("node_Ready")
    return sum(1 for before, row in zip(changes, changes[1:]) if row[1] >= begin and before[2] == 1 and row[2] == 0)


def bystander(lines, before, during):
    """Throughput, pieces a second, in two windows of the board's clock (seconds), the share that was kept, and the latest piece.
    A line that was not written in time is part of what was lost, so pieces are counted over the whole window."""
    def rate(window):
        begin, end = window
        inside = [line for line in lines if begin * 1000 <= line["at"] < end * 1000]
        if len(inside) < 2:
            return None, None
        first, last = inside[0], inside[-1]
        return ((last["done"] - first["done"]) / ((last["at"] - first["at"]) / 1000), max(line["worst_ms"] for line in inside))
    (calm, _), (busy, worst) = rate(before), rate(during)
    share = busy / calm if calm and busy is not None else None
    return {"bystander_before": calm, "bystander_during": busy, "bystander_share": share, "bystander_worst_ms": worst}


def inside(samples, groups, begin, end):
    """The board's own numbers between two moments of its clock: growth of counters, extremes of amounts, shares of time stalled."""
    window = [line for line in samples if begin * 1000 <= line["at"] <= end * 1000]
    if len(window) < 2:
        return {}
    first, last = window[0]["values"], window[-1]["values"]
    took = (window[-1]["at"] - window[0]["at"]) / 1000
    out = {"sampler_n": len(window), "sampler_late_p99_ms": percentile([line["late_ms"] for line in window], 99),
           "sampler_late_max_ms": max(line["late_ms"] for line in window)}
    grown = lambda name: last[name] - first[name] if name in first and name in last else None
    seen = lambda name: [line["values"][name] for line in window if name in line["values"]]
    share = lambda name: None if grown(name) is None else grown(name) / 1e6 / took
    mib = lambda value, unit: None if value is None else value / unit
    out["avail_min_mib"] = mib(min(seen("/proc/meminfo MemAvailable"), default=None), 1024)
    out["swap_used_max_mib"] = mib(max((total - free for total, free in zip(seen("/proc/meminfo SwapTotal"), seen("/proc/meminfo SwapFree"))), default=None), 1024)
    out["load1_max"] = max(seen("/proc/loadavg"), default=None)
    for resource, kind in (("memory", "full"), ("io", "full"), ("cpu", "some")):
        out[f"node_{resource}_{kind}"] = share(f"/proc/pressure/{resource} {kind} total")
    out["node_oom_kill"] = grown("/proc/vmstat oom_kill")
    for part in ("agent", "runtime"):
        group = groups[part]
        out[f"{part}_refaults"] = sum(filter(None, (grown(f"{group}/memory.stat workingset_refault_{kind}") for kind in ("file", "anon"))))
        out[f"{part}_majfault"] = grown(f"{group}/memory.stat pgmajfault")
        out[f"{part}_oom_kill"] = grown(f"{group}/memory.events oom_kill")
        out[f"{part}_max_mib"] = mib(max(seen(f"{group}/memory.current"), default=None), 1 << 20)
        for resource in ("memory", "io", "cpu"):
            out[f"{part}_{resource}_some"] = share(f"{group}/{resource}.pressure some total")
    out["pods_max_mib"] = mib(max(seen(f"{groups['pods']}/memory.current"), default=None), 1 << 20)
    out["pods_pids_max"] = max(seen(f"{groups['pods']}/pids.current"), default=None)
    out["pods_pids_refused"] = grown(f"{groups['pods']}/pids.events max")
    out["pods_oom_kill"] = grown(f"{groups['pods']}/memory.events oom_kill")
    return out


def metrics(text):
    """Samples of Prometheus' text format: name with labels -> value."""
    out = {}
    for line in text.splitlines():
        found = re.fullmatch(r"([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)(?: .*)?", line)
        if found and not line.startswith("#"):
            try:
                out[found[1]] = float(found[2])
            except ValueError:
                pass
    return out


def state(samples):
    """The governor's state, None where none runs."""
    return next((key.split('"')[1] for key, value in samples.items() if key.startswith("edge_agent_governor_state{") and value == 1), None)


def histogram(before, after, name):
    """Upper bounds of the p99 and of the largest observation between two scrapes, seconds; "inf" where it is beyond the last bound."""
    buckets = {}
    for key, value in after.items():
        if found := re.fullmatch(re.escape(name) + r'_bucket\{.*le="([^"]+)".*\}', key):
            bound = float("inf") if found[1] in ("+Inf", "inf") else float(found[1])
            buckets[bound] = buckets.get(bound, 0) + value - before.get(key, 0)
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None, None
    count = buckets[bounds[-1]]
    reached = lambda wanted: next(bound for bound in bounds if buckets[bound] >= wanted)
    return reached(count * 0.99), reached(count)


def actions(before, after):
    """What the governor did between two scrapes, as "action=n ..."; empty where it did nothing or there is none."""
    done = {}
    for key, value in after.items():
        if key.startswith("edge_agent_governor_actions_total"):
            grew = value - before.get(key, 0)
            if grew > 0 and 'result="failed"' not in key:
                name = re.search(r'action="([^"]+)"', key)
                done[name[1] if name else key] = done.get(name[1] if name else key, 0) + int(grew)
    return " ".join(f"{name}={count}" for name, count in sorted(done.items()))


def undone(before, after):
    """Limits that are not what they were, of the groups that are there both times: "GROUP/FILE was -> is"."""
    groups = {name.rsplit("/", 1)[0] for name in before} & {name.rsplit("/", 1)[0] for name in after}
    names = sorted(name for name in before.keys() | after.keys() if name.rsplit("/", 1)[0] in groups)
    return [f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in names if before.get(name) != after.get(name)]


# Criteria that every mode is held against; whether a miss is a failure depends on the mode (A and K may).
def verdicts(row):
    """Column -> pass, miss or nothing where there is no figure. `row` has figures as numbers or None."""
    def at_most(name, limit):
        value = row.get(name)
        return UNKNOWN if value is None else PASS if value <= limit else MISS
    governed = row["mode"] == "C"
    out = {
        "ok_lease": at_most("lease_gap_max", 20) if not governed else worst(at_most("lease_gap_max", 20), at_most("lease_gap_p99", 12)),
        "ok_ready": at_most("not_ready", 0),
        # A virtual board's limits.
        "ok_lag": worst(at_most("agent_lag_p99", 0.1), at_most("agent_lag_max", 1)),
        "ok_refaults": at_most("agent_refaults", 0),
        "ok_oom": worst(at_most("agent_oom_kill", 0), at_most("runtime_oom_kill", 0)),
        # An emulated board needs longer than the limit for an exec when nothing else runs.
        "ok_exec": worst(at_most("exec_p99", max(2, 2 * (row.get("exec_calm") or 0))), at_most("exec_failed", 0)),
        "ok_scrape": worst(at_most("scrape_failed", 0), at_most("scrape_max", 1)),
        "ok_agent": at_most("agent_restarts", 0),
        "ok_others": UNKNOWN if row.get("harmed") is None else PASS if not row["harmed"] else MISS,
        # A board that answers nothing any more is none that was restored.
        "ok_undo": MISS if row.get("lost") else at_most("undo_diff", 0),
    }
    if governed:
        share = row.get("bystander_share")
        out["ok_bystander"] = UNKNOWN if share is None else PASS if share >= 0.9 else MISS
        out["ok_reaction"] = at_most("reaction_p99", 0.15)
        out["ok_calm"] = UNKNOWN if row.get("state_at_end") is None else PASS if row["state_at_end"] == "calm" else MISS
    return out


def worst(*parts):
    """A miss if any is, nothing only if all are."""
    return MISS if MISS in parts else PASS if PASS in parts else UNKNOWN


# Rows of 5.6 that B and C must hold; A may fail them, and K is what they are compared with.
def failures(row):
    return [name for name, verdict in verdicts(row).items() if verdict == MISS] if row["mode"] in ("B", "C") else []
