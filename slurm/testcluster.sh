#!/usr/bin/env bash
# A temporary Slurm cluster of two nodes on this machine, for tests and experiments. It writes only
# below one folder and does not touch /etc, /var or other Slurm daemons.
set -euo pipefail

usage() {
  cat >&2 <<'END'
usage: slurm/testcluster.sh VERB [--dir FOLDER]
  up [--accounting]   starts two simulated nodes, n1 and n2, with 4 CPUs and 16000 MB each;
                      eval "$(slurm/testcluster.sh up)" sets SLURM_CONF for Slurm's commands;
                      --accounting: starts a database for sacct as well
  down                stops everything, including running jobs, and removes the folder
  status              shows the daemons; exit code 0 if the cluster is up, 1 if not
  node-down NAME [--keep-jobs]
                      kills all processes of the node, as a power failure does; --keep-jobs:
                      kills only its slurmd, so that jobs run on without the controller
  node-up NAME        starts the node's slurmd again
partitions: test (default), short (at most a minute), low (requeued when others need its CPUs)
END
  exit 2
}

say() { echo "testcluster: $*" >&2; }
refuse() { say "$@"; exit 2; }

# --- requirements --------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null; }

check_machine() {
  local missing=()
  have munged || missing+=(munge)
  have slurmctld && have slurmd && have srun || missing+=(slurm-wlm)
  [[ $ACCOUNTING == no ]] || have slurmdbd || missing+=(slurmdbd)
  [[ $ACCOUNTING == no ]] || have mariadb-install-db || missing+=(mariadb-server)
  ((${#missing[@]} == 0)) || refuse "missing Debian packages; to install them:
  apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}"
  ((EUID == 0)) || refuse "Slurm starts jobs as root only: call this as root"
  # A socket's path has 107 bytes at most, and Slurm appends /spool/n1/n1_JOB.STEP.
  [[ $DIR =~ ^[A-Za-z0-9/._+-]{1,64}$ ]] ||
    refuse "$DIR: name a folder with --dir that has at most 64 characters, and only plain ones"
}

free_ports() { # prints the common prefix of free ports, below the range that Linux gives to clients
  local tens port
  while tens=$((2000 + RANDOM % 1200)); do
    for port in "$tens"{0..3}; do
      (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2
    done
    echo "$tens" && return
  done
}

# --- processes -----------------------------------------------------------------------------------

stat_field() { # PID NUMBER: a field of /proc/PID/stat, as proc(5) numbers them
  sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f $(($2 - 2))
}

start() { # NAME COMMAND...: a daemon in the background, without the caller's environment
  local name=$1
  shift
  # The execs make $! the daemon's own pid; setsid protects it from Ctrl-C.
  (cd / && exec env -i PATH="$PATH" HOME=/root LC_ALL=C.UTF-8 SLURM_CONF="$CONF" \
    MYSQL_UNIX_PORT="$DIR/mariadb.socket" setsid "$@") </dev/null >>"$DIR/log/$name.out" 2>&1 &
  echo "$! $(stat_field $! 22)" >"$DIR/pid/$name"
  disown
}

alive() { # NAME: prints the daemon's pid; the start time excludes a later process with that pid
  local pid began
  { read -r pid began <"$DIR/pid/$1"; } 2>/dev/null || return 1
  [[ -n $began && $(stat_field "$pid" 22) == "$began" ]] || return 1
  [[ $(stat_field "$pid" 3) != Z ]] || return 1 # a zombie
  echo "$pid"
}

stop() { # NAME...: kills daemons at once, because their files are removed anyway
  local name
  for name in "$@"; do alive "$name"; done | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
}

descendants() { # PID: prints it and its descendants
  echo "$1"
  cat "/proc/$1/task/"*/children 2>/dev/null | tr ' ' '\n' | while read -r child; do
    descendants "$child"
  done
}

processes_of() { # [NODE]: daemons, steps, tasks and waiting sruns of a node or the whole cluster
  local pid
  # Slurm's daemons have their log open. Their environment does not help: slurmstepd overwrites it.
  find /proc/[0-9]*/fd -maxdepth 1 -lname "$DIR/log/${1:-*}.*" 2>/dev/null | cut -d / -f 3 |
    while read -r pid; do
      [[ $(readlink "/proc/$pid/exe") != */slurm* ]] || descendants "$pid"
    done
  # Tasks that outlived their slurmstepd have a job's environment; an srun would wait without end.
  grep -lzsFx "SLURM_CONF=$CONF" /proc/[0-9]*/environ | cut -d / -f 3 | while read -r pid; do
    if [[ -n ${1:-} ]]; then
      grep -qzsFx "SLURMD_NODENAME=$1" "/proc/$pid/environ" || continue
    elif [[ $(readlink "/proc/$pid/exe") != */srun ]]; then
      grep -qzs '^SLURM_JOB_ID=' "/proc/$pid/environ" || continue
    fi
    echo "$pid"
  done
}

swept() { # [NODE]: kills what is left; fails if anything was, because it may have started more
  local pids
  pids=$(processes_of "$@" || true)
  [[ -z $pids ]] || { xargs kill -KILL <<<"$pids"; return 1; }
}

await() { # SECONDS COMMAND...: waits until the command succeeds
  local seconds=$1 until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || { say "after $seconds s, this still fails: $*"; return 1; }
    sleep 0.1
  done
}

# --- verbs ---------------------------------------------------------------------------------------

start_accounting() {
  local options=(--no-defaults --user=root --datadir="$DIR/mariadb" --innodb-log-file-size=4M)
  (umask 077 && fill_in slurmdbd.conf)
  sed -i 's/^#accounting: //' "$CONF"
  mariadb-install-db "${options[@]}" --auth-root-authentication-method=normal --skip-test-db \
    >"$DIR/log/mariadb-install.out" 2>&1
  start mariadbd mariadbd "${options[@]}" --socket="$DIR/mariadb.socket" --skip-networking \
    --pid-file="$DIR/mariadb.pid" --innodb-buffer-pool-size=32M
  await 30 test -S "$DIR/mariadb.socket"
  start slurmdbd slurmdbd -D
  await 30 sacctmgr --noheader show cluster
  sacctmgr --immediate add cluster salmask >"$DIR/log/sacctmgr.out" 2>&1
}

fill_in() { # FILE of slurm/testcluster/
  sed "s|@FOLDER@|$DIR|; s|@HOST@|$HOST|; s|@PORT@|$PORT|" "$TEMPLATES/$1" >"$DIR/$1"
}

start_all() {
  chmod 755 "$DIR" # other users may submit jobs
  mkdir -p "$DIR"/{pid,log,state,spool/n1,spool/n2}
  PORT=$(free_ports)
  fill_in slurm.conf
  (umask 077 && head --bytes 1024 /dev/urandom >"$DIR/munge.key")
  # --force: munge would refuse a folder below one where others can write.
  start munged munged --foreground --force --num-threads=2 --key-file="$DIR/munge.key" \
    --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" --log-file="$DIR/log/munged.log" \
    --seed-file="$DIR/munge.seed"
  await 10 test -S "$DIR/munge.socket"
  [[ $ACCOUNTING == no ]] || start_accounting
  start slurmctld slurmctld -D
  for NODE in n1 n2; do start "$NODE" slurmd -D -N "$NODE"; done
  await 30 nodes_are n1,n2 idle
}

nodes_are() { # NODES STATE...
  local state
  state=$(sinfo --noheader --Node --partition test --nodes "$1" --format %t | sort -u)
  [[ -n $state && " ${*:2} " == *" $state "* ]]
}

start_failed() {
  say "the cluster did not start; the ends of its logs:"
  tail -n 15 "$DIR"/log/*.out >&2 || true
  down
}

is_up() { alive munged && alive slurmctld; }

up() {
  check_machine
  if is_up >/dev/null; then
    [[ $ACCOUNTING == no || -f $DIR/slurmdbd.conf ]] || refuse "the running cluster has no accounting: call down first"
    say "runs already in $DIR"
  else
    down # removes what a crash may have left
    mkdir "$DIR" # fails if another `up` runs; start_failed would stop its cluster
    touch "$DIR/$MARK"
    trap start_failed EXIT
    start_all
    trap - EXIT
    say "$(sinfo --version) with the nodes n1 and n2 runs in $DIR; to stop it: $0 down --dir $DIR"
  fi
  printf 'export SLURM_CONF=%q\n' "$CONF"
}

down() {
  [[ -e $DIR ]] || return 0
  rmdir "$DIR" 2>/dev/null && return
  [[ -f $DIR/$MARK ]] || refuse "this script did not create $DIR: it stays as it is"
  stop slurmctld n1 n2
  await 20 swept || refuse "these processes do not end: $(processes_of | tr '\n' ' ')"
  stop slurmdbd mariadbd munged
  await 10 eval '! alive slurmdbd && ! alive mariadbd && ! alive munged'
  rm -rf "$DIR"
}

status() {
  local file
  is_up >/dev/null || { echo "down: no cluster runs in $DIR"; return 1; }
  echo "up: SLURM_CONF=$CONF"
  for file in "$DIR"/pid/*; do
    echo "  ${file##*/}: $(alive "${file##*/}" || echo dead)"
  done
  sinfo --Node --partition test
}

node-down() {
  stop "$NODE"
  [[ $KEEP_JOBS == yes ]] || await 20 swept "$NODE"
}

node-up() {
  local booted=-b # simulates a reboot, so that the controller notices the jobs that died
  [[ -z $(processes_of "$NODE") ]] || booted=
  alive "$NODE" >/dev/null || start "$NODE" slurmd -D -N "$NODE" $booted
  await 30 nodes_are "$NODE" idle mix alloc comp || { tail "$DIR/log/$NODE.out" >&2; return 1; }
}

MARK=.salmask-testcluster
TEMPLATES=$(dirname "$(realpath "$0")")/testcluster
DIR=${TMPDIR:-/tmp}/salmask-testcluster ACCOUNTING=no KEEP_JOBS=no NODE=
VERB=${1:-}
shift || usage
while (($#)); do
  case $1 in
    --dir) DIR=${2:?--dir needs a folder}; shift ;;
    --accounting) ACCOUNTING=yes ;;
    --keep-jobs) KEEP_JOBS=yes ;;
    n1 | n2) NODE=$1 ;;
    *) usage ;;
  esac
  shift
done
DIR=$(realpath --canonicalize-missing "$DIR")
CONF=$DIR/slurm.conf
HOST=$(uname -n | cut -d . -f 1) # the name that Slurm uses
export PATH=$PATH:/usr/sbin:/sbin
[[ ${SLURM_CONF:-} != "$CONF" || -z ${SLURM_JOB_ID:-} ]] ||
  refuse "a job of this cluster cannot control the cluster"
export SLURM_CONF=$CONF
case $VERB,$NODE in
  up, | down, | status,) "$VERB" ;;
  node-down,n? | node-up,n?) is_up >/dev/null || refuse "no cluster runs in $DIR"; "$VERB" ;;
  *) usage ;;
esac
