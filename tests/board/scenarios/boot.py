"""The board itself: boot flags have the effect they have on a Pi, a reboot and a power cut keep the disk."""

DEFAULTS = {"arch": "amd64", "memory": 512}


def run(lab):
    lab.step("a board as Raspberry Pi OS ships it")
    board = lab.board()
    controllers = board.sh("cat /sys/fs/cgroup/cgroup.controllers")
    lab.check("no memory controller at first", "memory" not in controllers, controllers)
    code, text = board.code("cat /proc/pressure/memory")
    lab.check("no PSI at first", code != 0, text)
    lab.check("containerd runs", "active" in board.wait("containerd", "systemctl is-active containerd"))

    lab.step("cmdline.txt is edited on the board, which reboots")
    board.sh("sed -i '1s/$/ psi=1 cgroup_enable=memory/' /boot/firmware/cmdline.txt && echo kept >/root/kept && sync")
    board.reboot()
    controllers = board.sh("cat /sys/fs/cgroup/cgroup.controllers")
    lab.check("a memory controller now", "memory" in controllers, controllers)
    lab.check("PSI now", "some" in board.sh("cat /proc/pressure/memory"))

    lab.step("power cut")
    board.sh("echo lost >/root/lost")
    board.power_cut()
    board.boot()
    lab.check("what was synced is there", board.sh("cat /root/kept").strip() == "kept")
    failed = board.sh("systemctl --failed --no-legend --plain")
    lab.check("no unit failed", not failed.strip(), failed)
