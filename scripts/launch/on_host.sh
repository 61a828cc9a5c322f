#!/usr/bin/env bash
# What launch_tpu.py asks of each host of a slice. Beside the checkout, in ~/moe, lie the environment (env/), the log
# of the run (run.log), its process (run.pid), how it ended (run.end), and a lock that is held as long as it lives
# (run.lock).
#
#   on_host.sh install [NFS]            environment and disk; NFS is HOST:/EXPORT, mounted at /mnt/moe
#   on_host.sh start WORKDIR COMMAND... runs the command, apart from this shell; refused while one runs
#   on_host.sh state                    one line: state=not-installed, idle, running, lost or its exit code
#   on_host.sh stop                     SIGTERM, on which a training saves, and waits for its end
#   on_host.sh log                      follows the log
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "error: $(hostname): $1" >&2
  exit 1
}

mount_disk() {
  mountpoint --quiet /mnt/moe && return
  # A fresh host may be busy with updates of its own.
  sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet
  sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes nfs-common
  sudo mkdir -p /mnt/moe
  sudo mount -t nfs "$1" /mnt/moe
  sudo chmod go+rw /mnt/moe
}

install() {
  rm -f ../installed
  if [ $# -gt 0 ]; then mount_disk "$1"; fi
  # The TPU's runtime starts and ends faster with huge pages.
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled > /dev/null
  # The hosts' own Python is older than ours; uv brings one.
  local uv="$HOME/.local/bin/uv"
  [ -x "$uv" ] || curl -LsSf https://astral.sh/uv/install.sh | sh
  [ -x ../env/bin/python ] || "$uv" venv --python 3.11 ../env
  "$uv" pip install --python ../env/bin/python --editable ".[tpu]"
  touch ../installed
}

disk_of() {
  local path=$1
  until [ -e "$path" ]; do path=$(dirname "$path"); done
  df --output=source "$path" | tail -n 1
}

start() {
  local workdir=$1
  shift
  [ -e ../installed ] || fail "nothing is installed"
  [ "$(disk_of "$workdir")" != "$(disk_of /)" ] \
    || fail "$workdir is on the host's own disk, which goes when the slice goes; --workdir must be on a shared one"
  exec 9>> ../run.lock
  flock --nonblock 9 || fail "a run is going on already"
  echo lost > ../run.end # unless the run itself says otherwise
  rm -f ../run.pid
  # The run inherits descriptor 9, and with it the lock.
  PATH="$PWD/../env/bin:$PATH" nohup setsid bash -c \
    '"$@" & echo $! > ../run.pid; code=0; wait $! || code=$?; echo $code > ../run.end' run "$@" \
    >> ../run.log 2>&1 < /dev/null &
  until [ -s ../run.pid ]; do sleep 0.1; done # so that it can be stopped
}

state() {
  local now=idle
  if ! flock --nonblock ../run.lock true; then
    now=running
  elif [ ! -e ../installed ]; then
    now=not-installed
  elif [ -e ../run.end ]; then
    now=$(cat ../run.end)
  fi
  echo "state=$now"
}

stop() {
  flock --nonblock ../run.lock true && return
  kill -TERM "$(cat ../run.pid)" 2> /dev/null || true # it may just have ended
  flock --timeout 600 ../run.lock true || fail "the run has not ended after ten minutes"
}

log() {
  exec tail -n 100 -F ../run.log
}

"$@"
