"""What the governor costs a calm board: processor time of its threads, memory of the agent with and without it, bytes written."""

from matrix_board import one_node

DEFAULTS = {"arch": "amd64", "memory": 512}
SECONDS = 120


def run(lab):
    lab.step("a node with the governor and three pods")
    node = one_node(lab, "C")
    board = node.board
    board.sh("systemctl stop matrix-sampler")
    rows = []
    for mode in ("enforce", "static"):
        lab.step(f"an agent that has just been started with governor: {mode}")
        board.sh(f"sed -i 's/^governor: .*/governor: {mode}/' /etc/edge-agent/config.yaml.d/50-matrix.yaml && systemctl restart edge-agent", limit=300)
        node.server.wait_ready("board", limit=300)
        rows.append(measure(lab, board, mode))
    header = "governor,thread_cpu_ms_per_s,agent_cpu_ms_per_s,pss_kib,written_bytes_per_min\n"
    (lab.results / "idle.csv").write_text(header + "".join(",".join(map(str, row)) + "\n" for row in rows))
    enforced, static = rows
    lab.check("the governor's threads run", enforced[1] > 0, rows)
    lab.check("nothing is written on a calm board", enforced[4] <= static[4] + 4096, rows)


def measure(lab, board, mode):
    pid = board.sh("systemctl show -p MainPID --value edge-agent").strip()
    board.sh("sleep 60", limit=120)
    # schedstat begins with nanoseconds on a processor; stat would tell them in hundredths of a second.
    look = (f"p={pid}; t=0; a=0; for d in /proc/$p/task/*; do read -r n _ <$d/schedstat; read -r c <$d/comm; a=$((a + n));"
            f" case $c in governor|write-probe) t=$((t + n));; esac; done; echo $t $a $(sed -n 's/^write_bytes: //p' /proc/$p/io)"
            f" $(sed -n 's/^Pss: *\\([0-9]*\\).*/\\1/p' /proc/$p/smaps_rollup)")
    thread, all_threads, written, _ = map(int, board.sh(look).split())
    board.sh(f"sleep {SECONDS}", limit=SECONDS + 60)
    last = list(map(int, board.sh(look).split()))
    per_second = lambda before, now: round((now - before) / 1e6 / SECONDS, 3)
    row = (mode, per_second(thread, last[0]), per_second(all_threads, last[1]), last[3], round((last[2] - written) * 60 / SECONDS))
    lab.say(f"{mode}: governor {row[1]} ms, whole agent {row[2]} ms of processor time a second, PSS {row[3]} KiB, {row[4]} bytes written a minute")
    return row
