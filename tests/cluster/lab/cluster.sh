#!/bin/bash
# A real SLURM cluster on one machine: one head node and N compute nodes, each in
# network/UTS/mount/PID/IPC namespaces of its own (own IP, host name, /proc, /dev/shm).
#   cluster.sh up            install what is missing, start, wait until all nodes are idle
#   cluster.sh down          end what `up` started (by recorded pid), drop the namespaces
#   cluster.sh status        sinfo and the recorded processes
#   cluster.sh exec CMD...   run CMD on the head node   (sbatch, srun, squeue, python ... )
#   cluster.sh on NODE CMD.. run CMD inside a compute node
#   cluster.sh crash NODE    node failure: SIGKILL the whole node (slurmd, steps, tasks)
#   cluster.sh boot NODE     start a crashed node again
#   cluster.sh cut|heal NODE pull the node's network cable out, put it back (peers get no FIN)
#   cluster.sh slow RATE     let each node send no more than RATE to the others (tc, as 100mbit); "off" lifts it
#   cluster.sh delay MS      a second network (delay0 on each node) whose packets take MS milliseconds; "off" removes it
# Environment: SLURMLAB_DIR, SLURMLAB_NODES, SLURMLAB_CPUS, SLURMLAB_GPUS, SLURMLAB_DBD=1, SLURMLAB_CGROUP=1
set -euo pipefail
S=${SLURMLAB_DIR:-/tmp/slurm-lab}        # keep it short: unix socket paths are limited to 107 bytes
[ -r "$S/env" ] && . "$S/env"           # what `up` was called with
N=${SLURMLAB_NODES:-4}
CPUS=${SLURMLAB_CPUS:-8}                # claimed per node (config_overrides): more than the machine has
GPUS=${SLURMLAB_GPUS:-4}                # pretended per node: sets CUDA_VISIBLE_DEVICES; no device behind it
CGROUP=${SLURMLAB_CGROUP:-0}             # 1: cgroup v1 limits of memory (OOM kills) and devices
DBD=${SLURMLAB_DBD:-0}                  # 1: slurmdbd + MariaDB, so that sacct works
NET=${SLURMLAB_NET:-10.77.0}            # lives only inside the namespaces; no route leads out
export SLURM_CONF=$S/slurm.conf

say() { printf '%s\n' "cluster: $*" >&2; }
die() { say "$*"; exit 1; }
# --- recorded processes: "pid starttime", so that a recycled pid is never signalled -------------
start_of() { # empty for a pid that is gone or a zombie
  local f; { f=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  read -ra f <<< "${f##*) }"; [ "${f[0]}" = Z ] || echo "${f[19]}"
}
record() { echo "$2 $(start_of "$2")" > "$S/pids/$1"; }
alive() { local p s; [ -r "$S/pids/$1" ] && read -r p s < "$S/pids/$1" && [ -n "$s" ] && [ "$(start_of "$p")" = "$s" ]; }
pid_of() { local p; read -r p _ < "$S/pids/$1"; echo "$p"; }
end() { # end NAME [SIGNAL]: signal, wait 5 s, then KILL
  alive "$1" || { rm -f "$S/pids/$1"; return 0; }
  local p; p=$(pid_of "$1"); kill "-${2:-TERM}" "$p" 2>/dev/null || true
  for _ in $(seq 100); do alive "$1" || break; sleep .05; done
  if alive "$1"; then kill -KILL "$p" 2>/dev/null || true; sleep .1; fi
  rm -f "$S/pids/$1"
}
wait_for() { # wait_for SECONDS WHAT CMD...
  local t=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $t ] || die "timed out waiting for $what"; sleep .1; done
}
# no -p: nsenter execs CMD in place, so that signals reach it and $! is its pid
head_() { nsenter -t "$(pid_of head)" -n -u -m -- "$@"; }
daemon() { # daemon NAME CMD...: on the head node, in the background, recorded
  local name=$1; shift
  (exec nsenter -t "$(pid_of head)" -n -u -m -- "$@" </dev/null >"$S/log/$name.out" 2>&1) &
  record "$name" $!
}

install() {
  local want=(slurmctld slurmd slurm-client munge iproute2 util-linux) miss=()
  [ "$DBD" = 1 ] && want+=(slurmdbd mariadb-server)
  for p in "${want[@]}"; do dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || miss+=("$p"); done
  [ ${#miss[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "no ${miss[*]} here, and no apt-get to install them"
  say "installing ${miss[*]}"
  # Debian's packages must not start their own daemons
  if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y -q --no-install-recommends "${miss[@]}" > "$S/log/apt.log" 2>&1 ||
    { apt-get update -q >> "$S/log/apt.log" 2>&1 && apt-get install -y -q --no-install-recommends "${miss[@]}" >> "$S/log/apt.log" 2>&1; } ||
    die "apt-get failed: $(tail -n 1 "$S/log/apt.log")"
}

configure() {
  { echo "127.0.0.1 localhost"; echo "$NET.1 head"
    for i in $(seq "$N"); do  # the mapped form too: else torch's store warns that it cannot name its clients
      echo "$NET.$((10 + i)) node$i"; echo "::ffff:$NET.$((10 + i)) node$i"; done; } > "$S/hosts"
  local acct="AccountingStorageType=accounting_storage/none"
  [ "$DBD" = 1 ] && acct=$'AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=head\nAccountingStoragePass='"$S/munge/sock"$'\nAccountingStorageTRES=gres/gpu'
  cat > "$S/slurm.conf" <<CONF
ClusterName=lab
FirstJobId=$(( $(date +%s) % 1000000 + 1 ))
SlurmctldHost=head($NET.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire also is how long a requeued job waits before it may start again (default 120)
AuthInfo=socket=$S/munge/sock,cred_expire=${SLURMLAB_CRED_EXPIRE:-5}
StateSaveLocation=$S/ctld
SlurmdSpoolDir=$S/spool/%n
SlurmctldPidFile=$S/ctld.pid
SlurmdPidFile=$S/spool/%n.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd.%n.log
SlurmctldDebug=${SLURMLAB_DEBUG:-info}
SlurmdDebug=${SLURMLAB_DEBUG:-info}
ProctrackType=proctrack/$([ "$CGROUP" = 1 ] && echo cgroup || echo linuxproc)
TaskPlugin=task/$([ "$CGROUP" = 1 ] && echo cgroup || echo none)
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
JobCompType=jobcomp/filetxt
JobCompLoc=$S/log/jobcomp.txt
$acct
ReturnToService=2
SlurmdTimeout=${SLURMLAB_SLURMD_TIMEOUT:-10}
SlurmctldTimeout=10
KillWait=${SLURMLAB_KILLWAIT:-10}
InactiveLimit=0
MinJobAge=3600
JobRequeue=1
RebootProgram=/bin/false
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core$([ "$CGROUP" = 1 ] && printf '_Memory\nDefMemPerCPU=1000')
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-$N] NodeAddr=$NET.[11-$((10 + N))] CPUs=$CPUS RealMemory=8000 Gres=gpu:$GPUS State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP DefaultTime=10 PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP DefaultTime=10 PriorityTier=2
CONF
  # stand-ins for the GPUs: slurmd wants character devices (240 is the local/experimental major: no driver
  # behind it) and sets CUDA_VISIBLE_DEVICES by their numbers
  rm -rf "$S/dev"; mkdir -p "$S/dev"; for i in $(seq 0 $((GPUS - 1))); do mknod "$S/dev/gpu$i" c 240 "$i"; done
  echo "NodeName=node[1-$N] Name=gpu File=$S/dev/gpu[0-$((GPUS - 1))]" > "$S/gres.conf"
  echo "CgroupAutomount=no" > "$S/cgroup.conf"
  [ "$CGROUP" != 1 ] || printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup \
    ConstrainRAMSpace=yes ConstrainDevices=yes >> "$S/cgroup.conf"
  printf 'SLURMLAB_%s\n' "NODES=$N" "CPUS=$CPUS" "GPUS=$GPUS" "DBD=$DBD" "CGROUP=$CGROUP" "NET=$NET" > "$S/env"
}

start_head() {
  alive head && return
  unshare --net --uts --mount -- bash -c '
    hostname head; mount --bind "$1/hosts" /etc/hosts
    ip link set lo up; ip link add br0 type bridge; ip addr add "$2.1/24" dev br0; ip link set br0 up
    : > "$1/head.ready"; exec sleep infinity' slurmlab-head "$S" "$NET" </dev/null >"$S/log/head.log" 2>&1 &
  record head $!; wait_for 5 "the head node's namespace" test -e "$S/head.ready"
}

start_munge() {
  alive munged && return
  mkdir -p -m 0755 "$S/munge"; chmod 755 "$S/munge"
  [ -s "$S/munge/key" ] || (umask 077; dd if=/dev/urandom of="$S/munge/key" bs=128 count=1 status=none)
  rm -f "$S"/munge/sock*
  daemon munged munged --foreground --force --key-file="$S/munge/key" --socket="$S/munge/sock" \
    --pid-file="$S/munge/pid" --log-file="$S/munge/log" --seed-file="$S/munge/seed"
  wait_for 5 munged munge --socket="$S/munge/sock" -n
}

start_dbd() {
  [ "$DBD" = 1 ] || return 0
  if ! alive mariadbd; then
    mkdir -p "$S/db"
    [ -d "$S/db/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$S/db" \
      --auth-root-authentication-method=socket --skip-test-db >"$S/log/mariadb-install.log" 2>&1
    daemon mariadbd mariadbd --no-defaults --user=root --datadir="$S/db" --socket="$S/db.sock" --skip-networking \
      --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
      --pid-file="$S/db.pid"
    wait_for 30 mariadbd mariadb --no-defaults -S "$S/db.sock" -e 'select 1'
    mariadb --no-defaults -S "$S/db.sock" -e 'create database if not exists slurm'
  fi
  if ! alive slurmdbd; then
    (umask 077; cat > "$S/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$S/munge/sock
DbdHost=head
DbdAddr=$NET.1
SlurmUser=root
PidFile=$S/dbd.pid
LogFile=$S/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CONF
    )
    MYSQL_UNIX_PORT="$S/db.sock" daemon slurmdbd slurmdbd -D
    wait_for 30 slurmdbd head_ sacctmgr -n show cluster
    head_ sacctmgr -i add cluster lab >/dev/null 2>&1 || true
  fi
}

start_ctld() {
  alive slurmctld && return
  mkdir -p "$S/ctld"
  daemon slurmctld slurmctld -D -f "$S/slurm.conf"
  wait_for 15 slurmctld head_ scontrol ping
}

start_node() { # start_node I
  local i=$1 n=node$1
  alive "$n" && return
  mkdir -p "$S/spool/$n"; rm -f "$S/$n.ready"
  unshare --net --uts --mount --ipc --pid --fork --kill-child=KILL --mount-proc -- bash -c '
    S=$1 n=$2 ip=$3
    hostname "$n"; mount --bind "$S/hosts" /etc/hosts; mount -t tmpfs -o size=2g tmpfs /dev/shm
    ip link set lo up
    until ip link show eth0 >/dev/null 2>&1; do sleep .02; done
    ip addr add "$ip/24" dev eth0; ip link set eth0 up; : > "$S/$n.ready"
    slurmd -D -f "$S/slurm.conf" &   # this shell stays as process 1 and reaps orphans
    wait' slurmlab-$n "$S" "$n" "$NET.$((10 + i))" </dev/null >"$S/log/$n.out" 2>&1 &
  record "$n" $!
  sleep .05
  wait_for 5 "namespaces of $n" bash -c "[ \"\$(readlink /proc/$(pid_of "$n")/ns/net)\" != \"\$(readlink /proc/self/ns/net)\" ]"
  # the old end of a crashed node goes with its namespace, a moment later
  wait_for 5 "veth of $n" head_ bash -c "! ip link show v$i"
  nsenter -t "$(pid_of head)" -n ip link add "v$i" type veth peer name eth0 netns "$(pid_of "$n")"
  nsenter -t "$(pid_of head)" -n ip link set "v$i" master br0 up
  wait_for 5 "$n" test -e "$S/$n.ready"
}

inner() { local c; read -r c _ < "/proc/$(pid_of "$1")/task/$(pid_of "$1")/children"; echo "$c"; }
all_idle() { [ "$(head_ sinfo -h -N -p main -t idle -o %N | sort -u | wc -l)" = "$N" ]; }
is_up() { head_ sinfo -h -p main -n "$1" -o %t | grep -Eq '^(idle|mix|alloc)$'; }

cmd=${1:-status}; shift || true
case $cmd in
up)
  [ "$(id -u)" = 0 ] || die "needs root"
  mkdir -p "$S"/{pids,log,spool,ctld}; chmod 755 "$S"
  install
  if alive head && all_idle 2>/dev/null; then say "already up"; exit 0; fi
  configure; start_head; start_munge; start_dbd; start_ctld
  for i in $(seq "$N"); do start_node "$i"; done
  wait_for 60 "all nodes idle" all_idle
  head_ sinfo -N -p main -o '%N %t %c %G' >&2 ;;
down)
  [ -d "$S/pids" ] || exit 0
  for i in $(seq "$N"); do
    alive "node$i" || continue
    c=$(inner "node$i") || true; [ -n "${c:-}" ] && kill -KILL "$c" 2>/dev/null || true   # process 1 of the node: all of it goes
    end "node$i" KILL
  done
  end delay; end slurmctld; end slurmdbd; end mariadbd; end munged; end head KILL
  [ "$CGROUP" != 1 ] || find /sys/fs/cgroup -depth -type d -path '*/slurm_node*' -exec rmdir {} \; 2>/dev/null || true
  rm -f "$S"/*.ready "$S/env"; rm -rf "$S/ctld" "$S/spool"   # logs stay
  ;;
status)
  [ -d "$S/pids" ] || { say "never started"; exit 1; }
  for f in "$S"/pids/*; do [ -e "$f" ] || continue; n=${f##*/}; alive "$n" && echo "$n pid $(pid_of "$n") alive" || echo "$n dead"; done
  alive head && head_ sinfo -N -o '%N %t %c %G %o' || { say down; exit 1; } ;;
exec) alive head || die "not up"; exec nsenter -t "$(pid_of head)" -n -u -m --wdns="$PWD" -- "$@" ;;
on)   n=$1; shift; alive "$n" || die "$n is not up"; exec nsenter -t "$(inner "$n")" -n -u -m -i -p --wdns="$PWD" -- "$@" ;;
crash) c=$(inner "$1"); kill -KILL "$c"; end "$1" KILL ;;
cut)   head_ ip link set "v${1#node}" down ;;
heal)  head_ ip link set "v${1#node}" up ;;
slow)  for i in $(seq "$N"); do
         "$0" on "node$i" tc qdisc del dev eth0 root 2>/dev/null || true
         # a token bucket: unlike netem, every kernel has it; it limits the rate and adds no latency
         [ "$1" = off ] || "$0" on "node$i" tc qdisc add dev eth0 root tbf rate "$1" burst 128kb latency 400ms
       done ;;
delay) end delay   # MILLISECONDS (one way) or off: a second network between the nodes, interface delay0
       [ "$1" != off ] || exit 0
       nodes=(); for i in $(seq "$N"); do nodes+=("$(pid_of "node$i"):${NET%.*}.$((128 + ${NET##*.})).$((10 + i))"); done
       rm -f "$S/log/delay.out"
       python3 "$(dirname "${BASH_SOURCE[0]}")/delay.py" "$1" "${nodes[@]}" </dev/null >"$S/log/delay.out" 2>&1 &
       record delay $!
       wait_for 10 "the slow network" grep -q ready "$S/log/delay.out" ;;
boot)  start_node "${1#node}"; wait_for 60 "$1" is_up "$1" ;;
*) sed -n '2,15p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
