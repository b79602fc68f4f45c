"""Boot flags missing at first: `join --yes` repairs them, reboots the board, and the node ends with full protection."""

import re

from board import Failure
from lab import busybox_pod, full_protection

DEFAULTS = {"arch": "arm64", "memory": 512}


def run(lab):
    lab.step("a board as Raspberry Pi OS ships it")
    board = lab.board()
    server = lab.server()
    before = board.cmdline()
    lab.install(board)

    lab.step("preflight names what is missing and changes nothing")
    code, text = board.code("edge-agent preflight", limit=300)
    (lab.results / "preflight-before.txt").write_text(text)
    lab.check("preflight is blocked by the memory controller", code == 2 and "cgroup_enable=memory" in text, f"exit {code}: {text}")
    lab.check("it names PSI", "psi=1" in text, text)
    board.sh("sync")
    lab.check("cmdline.txt is as it was", board.cmdline() == before, board.cmdline())
    code, text = join(lab, board, server)
    lab.check("join without --yes refuses, and says what to type", code != 0 and "--yes" in text, f"exit {code}: {text}")
    lab.check("cmdline.txt is still as it was", board.sh("cat /boot/firmware/cmdline.txt") == before)

    repaired_and_ready(lab, board, server, before)

    lab.step("preflight once more")
    code, text = board.code("edge-agent preflight", limit=300)
    (lab.results / "preflight-after.txt").write_text(text)
    lab.check("nothing blocks any more", code in (0, 1), f"exit {code}: {text}")
    again = [line for line in text.splitlines() if re.match(r"(warning|blocked)\b", line) and re.search("psi=1|cgroup_enable", line)]
    lab.check("no boot flag is missing", not again, again)
    server.apply(busybox_pod("web", "sleep infinity"))
    server.wait_pod("web")
    lab.say("ok: a pod runs")


def join(lab, board, server, options=""):
    """What `edge-agent join` answers: exit code and text. A join that reboots the board may end with the connection."""
    board.write("/root/token", server.token() + "\n")
    return board.code(f"chmod 600 /root/token; edge-agent join {server.url} --token-file /root/token {options}", limit=600)


def repaired_and_ready(lab, board, server, before):
    """join --yes on a board without boot flags: it reboots by itself into a protected node."""
    lab.step("join --yes repairs the flags and reboots")
    code, text = join(lab, board, server, "--yes")
    lab.say("join printed:\n           " + text.strip().replace("\n", "\n           "))
    if code not in (0, 255):
        raise Failure(f"join --yes: exit {code}: {text[-1500:]}")
    board.wait_off()
    line = board.cmdline()
    lab.check("the line is kept and the flags stand at its end", line.startswith(before.strip()) and {"psi=1", "cgroup_enable=memory"} <=
              set(line[len(before.strip()):].split()) and line.strip().count("\n") == 0, line)
    backups = re.findall(r"cmdline\.txt\.edge-agent\.\S+", board.firmware_listing())
    lab.check("a backup stands beside it", len(backups) == 1 and board.firmware_file(backups[0]) == before, backups)

    lab.step("the board boots into a node")
    board.boot()
    server.wait_ready(limit=400)
    full_protection(lab, board)
    lab.check("no reboot is pending", server.condition("board", "RebootRequired") in (None, "False"), server.condition("board", "RebootRequired"))
