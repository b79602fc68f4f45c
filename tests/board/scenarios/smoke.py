"""Package, `join --yes` with missing boot flags, a pod, a power cut without the server: all in three boots."""

from lab import scenario

DEFAULTS = {"arch": "amd64", "memory": 512}


def run(lab):
    flags, join = scenario("boot-flags"), scenario("join")
    lab.step("a board as Raspberry Pi OS ships it; apt installs the package")
    board = lab.board()
    server = lab.server()
    before = board.cmdline()
    lab.install(board)
    join.units(lab, board)
    flags.repaired_and_ready(lab, board, server, before)
    join.check_processes(lab, board)
    lab.step("a pod")
    server.apply(join.POD)
    join.serves(lab, board, server)
    join.power_cut_without_server(lab, board, server, starts=2)
