"""The matrix' rows as tables to read: one for each board and swap, a line for each hog, with all modes side by side."""

import statistics
from collections import defaultdict

import matrix_judge as judge


def number(row, name):
    text = row.get(name)
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def over(rows, name, pick):
    """`pick` of the repetitions' figures; None of none."""
    values = [value for value in (number(row, name) for row in rows) if value is not None]
    return pick(values) if values else None


def cell(rows):
    """Medians of p99 and the largest of the largest, over the repetitions of one cell."""
    if all(row.get("error") for row in rows):
        return "died"
    text = lambda value, form: "-" if value is None else form.format(value)
    exec_calm, exec_p99 = over(rows, "exec_calm", statistics.median), over(rows, "exec_p99", statistics.median)
    parts = [text(over(rows, "lease_gap_max", max), "{:.1f} s"), text(exec_p99 / exec_calm if exec_calm and exec_p99 else None, "{:.1f}x"),
             text(over(rows, "bystander_share", min), "{:.2f}"), text(over(rows, "agent_lag_max", max), "{:g} s")]
    if over(rows, "not_ready", max):
        parts.append("**NotReady**")
    missed = sorted({name[3:] for row in rows for name, verdict in row.items() if name.startswith("ok_") and verdict == judge.MISS})
    return ", ".join(parts) + (f" ({', '.join(missed)})" if missed else "")


def tables(rows, modes):
    """Markdown."""
    groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        groups[(row["board"], row["swap"])][row["hog"]][row["mode"]].append(row)
    lines = ["Longest gap between renewals, exec's p99 against the calm board's, what a Guaranteed bystander kept, latest heartbeat (criteria missed)", ""]
    for (board, swap), hogs in groups.items():
        there = [mode for mode in modes if any(mode in cells for cells in hogs.values())]
        lines += [f"| {board} MB, swap {swap} | " + " | ".join(there) + " |", "|---" * (len(there) + 1) + "|"]
        lines += [f"| {hog} | " + " | ".join(cell(cells[mode]) if mode in cells else "" for mode in there) + " |" for hog, cells in hogs.items()]
        lines.append("")
    return "\n".join(lines)
