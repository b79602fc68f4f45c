"""One hog for each way to starve a node: the node lives, its neighbours live, and every limit is what it was afterwards.

Order, survival and undo are asserted; times are reported only, as emulated processors stretch them. Figures with all their
criteria are tests/board/matrix'."""

import matrix_cell as cells
import matrix_judge as judge
from matrix_board import has_governor_key, one_node
from matrix_hogs import SMOKE

DEFAULTS = {"arch": "amd64", "memory": 512}
LENGTHS = cells.Lengths(warm=8, hog=24, recovery=20)


def run(lab):
    mode = "C" if has_governor_key(lab.binaries()) else "B"
    lab.step(f"a node {'with' if mode == 'C' else 'without'} the governor")
    node = one_node(lab, mode)
    (lab.results / "raw").mkdir()
    for hog in SMOKE:
        lab.step(hog)
        row = {"mode": mode, **cells.run(node, hog, LENGTHS, lab.results / "raw" / hog)}
        figures = ", ".join(f"{name} {row[name]:.2f}" for name in ("lease_gap_max", "exec_p99", "scrape_max", "bystander_share", "agent_lag_max")
                            if row.get(name) is not None)
        lab.say(f"{hog}: {row.get('hog_phase')} {row.get('hog_reason') or ''}, {figures}, {row.get('actions') or 'no action'}")
        survives(lab, hog, row)
        why = node.healthy()
        lab.check(f"{hog}: the node works afterwards", not why, why or "")


def survives(lab, hog, row):
    lab.check(f"{hog}: the node was never NotReady", row["not_ready"] == 0, row["not_ready"])
    lab.check(f"{hog}: the agent was not restarted", row["agent_restarts"] == 0, row["agent_restarts"])
    verdict = judge.verdicts(row)
    lab.check(f"{hog}: neither the agent nor containerd was killed for memory", verdict["ok_oom"] == judge.PASS, verdict)
    lab.check(f"{hog}: the pods beside it are unharmed", not row["harmed"], row["harmed"])
    lab.check(f"{hog}: every limit is what it was", row["undo_diff"] == 0, f"{row['undo_diff']} are not, see raw/{hog}.txt")
    if hog == "fork":
        lab.check("fork: it was refused more processes", (row.get("hog_refused") or 0) > 0, f"{row.get('hog_held')} processes")
    if hog in ("mem-fast", "mem-slow"):
        ended = row.get("hog_reason") in ("OOMKilled", "Evicted") or (row.get("hog_restarts") or 0) > 0
        lab.check(f"{hog}: the hog paid for it", ended or "memory_high" in row["actions"], row.get("hog_reason"))
    taken = dict(word.split("=") for word in row["actions"].split())
    if "evict" in taken:
        lab.check(f"{hog}: slowed before it was evicted", "memory_high" in taken or "freeze" in taken or "io_max" in taken, row["actions"])
