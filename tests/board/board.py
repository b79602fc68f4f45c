"""A whole board in QEMU: boots it, runs commands on it over ssh, cuts its power, and reads what it left behind.

Standard library only. Emulated processors are about ten times slower than real ones, so every limit is generous and none is
a measurement."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("EDGE_BOARD_CACHE", HERE.parents[1] / "target/board"))
# Where a board reaches the machine that runs it.
HOST = "10.0.2.2"

MACHINES = {
    "amd64": ["qemu-system-x86_64", "-machine", "q35", "-cpu", "max"],
    # The core of a Raspberry Pi 4.
    "arm64": ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72"],
}
# Bytes and operations a second, reads and writes together: a good and a poor SD card.
CARDS = {"good": (20_000_000, 500), "poor": (12_000_000, 400), "none": None}


class Failure(Exception):
    """A condition that did not come true: one line that says what was expected and what was seen instead."""


class Skip(Exception):
    """What this machine lacks for the scenario."""


def wait_until(what, probe, limit, pause=1.0):
    """Calls `probe` until it returns something true, and returns that. A Failure or time-out of the probe counts as not yet."""
    end, seen = time.monotonic() + limit, None
    while True:
        try:
            seen = probe()
            if seen:
                return seen
        except (Failure, subprocess.TimeoutExpired, OSError) as error:
            seen = error
        if time.monotonic() >= end:
            raise Failure(f"{what}: not within {limit} s; last seen: {str(seen).strip() or 'nothing'}")
        time.sleep(pause)


def kernel_words(cmdline_txt):
    """The words a Pi's firmware hands the kernel: those of the device tree, then the first line of cmdline.txt.

    The device tree of a Pi turns the memory controller off, and its kernel leaves PSI off unless told otherwise. The word that
    turns the controller on again, cgroup_enable=memory, is known to the Pi's kernel only, so here it takes the other word away.
    One word is the board's own: after a panic it goes off, instead of standing there until somebody looks."""
    lines = [line.strip() for line in cmdline_txt.splitlines() if line.strip()]
    if not lines or "root=" not in lines[0]:
        raise Failure(f"the board cannot boot: cmdline.txt has no line with root=: {cmdline_txt!r}")
    words = lines[0].split()
    tree = ["psi=0", "panic=-1"]
    if "cgroup_enable=memory" not in words:
        tree.append("cgroup_disable=memory")
    return tree + words


def stumbled(results):
    """Whether a guest's kernel ran into code it was patching: multi-threaded emulation of x86 allows that, no real processor does."""
    return any(b"Oops: int3" in console.read_bytes() for console in results.glob("console*.log"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Board:
    """One board with disks of its own, which last from boot to boot and are gone with close().

    arch       amd64 or arm64
    memory     MiB
    card       key of CARDS: how fast the disk is
    flags      words put at the end of cmdline.txt before the first boot; "psi=1 cgroup_enable=memory" makes a board that was set up
    results    directory for console.log and what collect() fetches
    """

    def __init__(self, arch, memory, results, card="good", flags="", cpus=2, say=print):
        self.arch, self.memory, self.cpus, self.card, self.say = arch, memory, cpus, card, say
        self.results = Path(results)
        self.results.mkdir(parents=True, exist_ok=True)
        if shutil.which(MACHINES[arch][0]) is None:
            raise Skip(f"{MACHINES[arch][0]} is missing: tools/setup board")
        made = subprocess.run([HERE / "image", arch], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if made.stderr.strip():
            say(made.stderr.strip())
        if made.returncode == 3:
            raise Skip(made.stderr.strip().splitlines()[-1])
        if made.returncode:
            raise Failure(f"tests/board/image {arch} failed, see above")
        self.image = Path(made.stdout.strip().splitlines()[-1])
        self.work = Path(tempfile.mkdtemp(prefix="run.", dir=CACHE))
        self.disk, self.firmware = self.work / "disk.qcow2", self.work / "firmware.img"
        self.qemu, self.port, self.boots = None, free_port(), 0
        try:
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.image / "disk.raw", self.disk])
            shutil.copyfile(self.image / "firmware.img", self.firmware)
            if flags:
                self.set_cmdline(f"{self.cmdline().strip()} {flags}")
        except BaseException:
            self.close()
            raise

    # --- power -----------------------------------------------------------------------------------------------------

    def boot(self, limit=900):
        """Switches the board on and waits until it can be logged in to; the boot flags are read from its disk each time."""
        words = kernel_words(self.cmdline())
        self.boots += 1
        console = self.results / "console.log"
        with open(console, "a") as log:
            log.write(f"\n--- boot {self.boots}: {' '.join(words)}\n")
        throttle = ""
        if CARDS[self.card]:
            bps, iops = CARDS[self.card]
            throttle = f",throttling.bps-total={bps},throttling.iops-total={iops}"
        self.qemu = subprocess.Popen(
            # A board does not outlive the program that runs it.
            ["setpriv", "--pdeathsig", "KILL", *MACHINES[self.arch],
             "-accel", "tcg,thread=multi", "-m", str(self.memory), "-smp", str(self.cpus), "-no-reboot",
             "-display", "none", "-nodefaults", "-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console",
             "-drive", f"file={self.disk},if=none,id=card,format=qcow2{throttle}", "-device", "virtio-blk-pci,drive=card",
             "-drive", f"file={self.firmware},if=none,id=firmware,format=raw", "-device", "virtio-blk-pci,drive=firmware",
             "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
             "-device", "virtio-rng-pci",
             "-kernel", str(self.image / "vmlinuz"), "-initrd", str(self.image / "initrd.img"), "-append", " ".join(words)],
            stdin=subprocess.DEVNULL, stdout=open(self.results / "qemu.log", "a"), stderr=subprocess.STDOUT)
        started = time.monotonic()
        wait_until(f"boot {self.boots} of the board", self._answers, limit, pause=0.5)
        self.say(f"booted {self.arch} with {self.memory} MB in {time.monotonic() - started:.0f} s: {' '.join(words)}")

    def _answers(self):
        if self.qemu.poll() is not None:
            raise SystemExit(f"QEMU ended with {self.qemu.returncode}: see {self.results}/qemu.log and console.log")
        # A port that is not forwarded yet is answered by QEMU itself, so only sshd's greeting counts.
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            sock.settimeout(5)
            if not sock.recv(4).startswith(b"SSH"):
                return False
        return self.sh("true", limit=30) == ""

    @property
    def on(self):
        return self.qemu is not None and self.qemu.poll() is None

    def power_cut(self):
        """What was not written yet is lost, as when the plug is pulled."""
        self._hang_up()
        self.qemu.kill()
        self.qemu.wait()

    def wait_off(self, limit=240):
        """Waits until the board has switched itself off or asked for a reboot; boot() is its next boot."""
        try:
            self.qemu.wait(limit)
        except subprocess.TimeoutExpired:
            raise Failure(f"the board did not go down within {limit} s") from None
        self._hang_up()

    def reboot(self, limit=240):
        """An orderly reboot, as `systemctl reboot` makes it."""
        self.sh("systemctl reboot", check=False)
        self.wait_off(limit)
        self.boot()

    def close(self):
        if self.on:
            self.power_cut()
        shutil.rmtree(self.work, ignore_errors=True)

    # --- firmware --------------------------------------------------------------------------------------------------

    def firmware_file(self, name):
        """A file of /boot/firmware; the board must be off, or have it synced."""
        return run(["mcopy", "-n", "-i", self.firmware, f"::{name}", "-"])

    def firmware_listing(self):
        """The long names of what lies in /boot/firmware, one a line; the board must be off."""
        return run(["mdir", "-b", "-i", self.firmware, "::"])

    def cmdline(self):
        return self.firmware_file("cmdline.txt")

    def set_cmdline(self, line):
        """Writes cmdline.txt while the board is off."""
        source = self.work / "cmdline.txt"
        source.write_text(line.strip() + "\n")
        run(["mcopy", "-o", "-i", self.firmware, source, "::cmdline.txt"])

    # --- commands --------------------------------------------------------------------------------------------------

    def _ssh(self):
        return ["ssh", "-F", "none", "-i", str(self.image / "key"), "-p", str(self.port), "-o", "StrictHostKeyChecking=no",
                "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
                "-o", "ControlMaster=auto", "-o", f"ControlPath={self.work}/ssh", "-o", "ControlPersist=yes", "root@127.0.0.1"]

    def _hang_up(self):
        control = self.work / "ssh"
        if control.exists():
            subprocess.run([*self._ssh()[:-1], "-O", "exit", "root@127.0.0.1"], check=False, timeout=20,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            control.unlink(missing_ok=True)

    def sh(self, command, limit=120, check=True, stdin=None):
        """Runs a shell command on the board as root; returns what it printed, both outputs together."""
        try:
            done = subprocess.run([*self._ssh(), f"timeout {limit} bash -c {quote(command)} 2>&1"], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, input=stdin, timeout=limit + 30, check=False)
        except subprocess.TimeoutExpired:
            raise Failure(f"on the board: {command}: no end within {limit} s") from None
        text = done.stdout.decode(errors="replace")
        if check and done.returncode:
            raise Failure(f"on the board: {command}: exit {done.returncode}: {text.strip()[-2000:]}")
        return text

    def code(self, command, limit=120):
        """The exit code of a command and what it printed."""
        text = self.sh(f"{command}\necho \"exit=$?\"", limit, check=False)
        found = re.search(r"exit=(\d+)\s*$", text)
        return (int(found.group(1)), text[:found.start()]) if found else (255, text)

    def put(self, local, remote):
        """Copies a file to the board; a missing directory is made."""
        with open(local, "rb") as source:
            subprocess.run([*self._ssh(), f"mkdir -p $(dirname {quote(remote)}) && cat >{quote(remote)}"], stdin=source, check=True, timeout=600)

    def get(self, remote, local):
        """Copies a file from the board."""
        with open(local, "wb") as target:
            subprocess.run([*self._ssh(), f"cat {quote(remote)}"], stdout=target, check=True, timeout=600)

    def write(self, remote, text):
        self.sh(f"mkdir -p $(dirname {quote(remote)}) && cat >{quote(remote)}", stdin=text.encode())

    def wait(self, what, command, limit=120, pause=1.0):
        """Waits until a shell command on the board succeeds, and returns what it printed."""
        return wait_until(what, lambda: self.sh(command, limit=60) or "done", limit, pause)

    def start(self, command):
        """Runs a command for as long as it takes, with its output in the results; the caller ends the process."""
        log = open(self.results / "started.log", "ab")
        return subprocess.Popen([*self._ssh(), command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    # --- what it leaves --------------------------------------------------------------------------------------------

    def collect(self):
        """Fetches the journal and the state of units and groups into the results; never fails."""
        wanted = {
            "journal.log": "journalctl --no-pager -o short-monotonic",
            "edge-agent.log": "journalctl --no-pager -o cat -u edge-agent",
            "units.txt": "systemctl --no-pager --failed; systemctl --no-pager status edge-agent containerd; free -m; systemctl --no-pager list-jobs",
            "cgroups.txt": "cd /sys/fs/cgroup && grep -rs . cgroup.controllers edge.slice system.slice/containerd.service kubepods* --include='memory.*' "
                           "--include='cpu.weight' --include='io.max' --include='pids.*' --include='cgroup.freeze' | head -n 4000",
        }
        for name, command in wanted.items():
            if not self.on:
                return
            try:
                (self.results / name).write_text(self.sh(command, limit=120, check=False))
            except (Failure, OSError) as error:
                (self.results / name).write_text(f"not collected: {error}\n")

    def console_tail(self, lines=15):
        console = self.results / "console.log"
        return console.read_text(errors="replace").splitlines()[-lines:] if console.exists() else []


def quote(text):
    return "'" + str(text).replace("'", "'\\''") + "'"


def run(command, limit=600, **options):
    """Runs a program of this machine and returns what it printed; its failure is a Failure with its last words."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit, check=False, **options)
    except FileNotFoundError:
        raise Skip(f"{command[0]} is missing: tools/setup board") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(command)}: no end within {limit} s") from None
    if done.returncode:
        raise Failure(f"{' '.join(command)}: exit {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


def end(process, limit=20):
    """Ends a process that was started here."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
