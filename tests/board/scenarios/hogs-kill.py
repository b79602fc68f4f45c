"""`kill -9` of the agent in every state of its governor: calm, slowing a pod, holding one frozen, evicting one, killing one at once.

Protections stand without it, and nothing stays undone when it is back."""

import matrix_hogs as hogs
from board import Failure, Skip, wait_until
from matrix_board import NODE, has_governor_key, one_node
from matrix_cell import what_it_reached

DEFAULTS = {"arch": "amd64", "memory": 512}
# Waits on the board itself for the state, as it may last a second only, kills, and looks twenty times a second.
# MiB that shall be available on the board whose memory somebody else takes: more than the kernel needs to help itself first.
SHALL_BE = 96
KILL_AT = r"""#!/bin/bash
# usage: kill-at calm|brake|freeze|evict|cull SECONDS MIB: prints what was so when it was killed and when it was good again
state=$1 end=$((SECONDS + $2)) fill=/run/fill
SHALL_BE=$(($3 * 1024))
cd /sys/fs/cgroup || exit 1
shopt -s nullglob
# No programs are started to look: that takes a second here.
any_pod() { # FILE equal|other VALUE
  local file value
  for file in kubepods/{,*/}pod*/"$1" kubepods.slice/{,*/}kubepods*-pod*.slice/"$1"; do
    read -r value <"$file" || continue
    if [ "$2" = equal ]; then [ "$value" = "$3" ] && return 0; else [ "$value" != "$3" ] && return 0; fi
  done 2>/dev/null
  return 1
}
limits() { grep -s . edge.slice/memory.min system.slice/memory.min kubepods*/memory.max kubepods*/pids.max edge.slice/edge-agent.service/memory.min; }
told() { # WORD: whether the agent says that it goes to that state
  local line
  while read -r -t 0.01 -u 3 line; do [[ $line =~ \ to=\"?"$1" ]] && return 0; done
  return 1
}
ended() { # GROUP
  local key value
  while read -r key value; do [ "$key" = populated ] && return "$value"; done 2>/dev/null <"$1/cgroup.events"
  return 0
}
reached() {
  case $state in
    calm) true ;;
    brake) any_pod memory.high other max ;;
    freeze) any_pod cgroup.freeze equal 1 ;;
    evict) told evict ;;
    cull) ended "$victim" ;;
  esac
}
before=$(limits) pid=$(systemctl show -P MainPID edge-agent)
if [ "$state" = evict ]; then
  exec 3< <(exec journalctl -f -n 1 -o cat -u edge-agent)
  read -r -u 3 _
fi
# Memory that no pod has taken and no pod can give back, until only so much is there.
filled=0
leave() { # KIB
  local name kib
  while read -r name kib _; do
    [ "$name" != MemAvailable: ] || { filled=$((filled + kib - $1)); fallocate -l "${filled}K" "$fill/all"; }
  done </proc/meminfo
}
if [ "$state" = cull ]; then
  largest=0
  for pod in kubepods/besteffort/pod* kubepods.slice/kubepods-besteffort.slice/*-pod*; do
    read -r bytes <"$pod/memory.current" && [ "$bytes" -gt "$largest" ] && largest=$bytes victim=$pod
  done
  # Out of every group whose limit would slow it.
  echo $$ >cgroup.procs
  mkdir -p "$fill" && mount -t tmpfs -o size=100% none "$fill"
  # Up to where nobody minds, and from there faster than one rung after the other: nothing has to be given back first.
  echo 3 >/proc/sys/vm/drop_caches
  leave $((SHALL_BE + SHALL_BE / 3))
  sleep 1
  leave $((SHALL_BE / 4))
fi
until reached; do
  [ "$SECONDS" -lt "$end" ] || { echo "never=$state"; break; }
  sleep 0.05
done
kill -9 "$pid"
began=$(date +%s%N) thawed='' back=''
[ "$state" != cull ] || { rm -f "$fill/all"; umount "$fill"; }
echo "limits_kept=$([ "$(limits)" = "$before" ] && echo yes || echo no)"
while [ $(($(date +%s%N) - began)) -lt 60000000000 ]; do
  if [ -z "$thawed" ] && ! any_pod cgroup.freeze equal 1; then thawed=$((($(date +%s%N) - began) / 1000000)); fi
  if [ -z "$back" ]; then
    now=$(systemctl show -P MainPID edge-agent)
    [ "$now" != 0 ] && [ "$now" != "$pid" ] && systemctl is-active -q edge-agent && back=$((($(date +%s%N) - began) / 1000000))
  fi
  [ -n "$thawed" ] && [ -n "$back" ] && break
  sleep 0.05
done
echo "thawed_ms=$thawed back_ms=$back limits_after=$([ "$(limits)" = "$before" ] && echo yes || echo no)"
"""
HELD = 64 << 20
STATES = (("calm", None), ("brake", hogs.HOGS["mem-slow"]), ("freeze", hogs.HOGS["storm"]), ("evict", hogs.HOGS["mem-fast"]),
          ("cull", hogs.Hog("--kind", "mem-fast", "--bytes", HELD)))


def held(node):
    """Bytes the hog's own last line speaks of."""
    return what_it_reached(node.api).get("hog_held") or 0


def run(lab):
    if not has_governor_key(lab.binaries()):
        raise Skip("this edge-agent has no governor")
    node = one_node(lab, "C")
    node.board.write("/usr/local/sbin/kill-at", KILL_AT)
    node.board.sh("chmod 755 /usr/local/sbin/kill-at")
    for state, hog in STATES:
        lab.step(f"kill -9 while {state}")
        if hog:
            node.server.apply(hog.pods("hog", NODE, 600, None))
        if state == "cull":
            node.board.write("/etc/edge-agent/config.yaml.d/60-kill.yaml", f"kubelet-arg+: [eviction-hard=memory.available<{SHALL_BE}Mi]\n")
            node.board.sh("systemctl restart edge-agent", limit=120)
            node.server.wait_ready(NODE)
            # It has what it wants, and the node is calm, before memory goes elsewhere.
            wait_until("the hog holds its memory", lambda: held(node) >= HELD, 120)
        killed(lab, state, node.board.sh(f"kill-at {state} 180 {SHALL_BE}", limit=300))
        if state == "cull":
            said = node.board.sh("journalctl -u edge-agent -o cat | grep governor | tail -n 12")
            lab.check("cull: the governor killed it at once", 'to="cull"' in said, said)
        if hog:
            node.remove("hog")
        node.server.wait_ready(NODE)
        left = node.board.wait("all limits released", "cd /sys/fs/cgroup && ! grep -rsx 1 kubepods* --include=cgroup.freeze", 60)
        lab.check(f"{state}: nothing is frozen afterwards", left)
        why = node.healthy()
        lab.check(f"{state}: the node and the pods beside the hog work", not why, why or "")


def killed(lab, state, text):
    if "never=" in text:
        raise Failure(f"the governor never came to {state} within 180 s")
    seen = dict(word.split("=", 1) for word in text.split() if "=" in word)
    lab.say(f"{state}: {text.strip()}".replace("\n", " "))
    lab.check(f"{state}: reservations stand without the agent", seen.get("limits_kept") == "yes", text)
    lab.check(f"{state}: nothing stays frozen", seen.get("thawed_ms"), text)
    lab.check(f"{state}: the agent is back", seen.get("back_ms"), text)
    lab.check(f"{state}: reservations stand with the new one", seen.get("limits_after") == "yes", text)
