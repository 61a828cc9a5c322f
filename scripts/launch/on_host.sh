#!/usr/bin/env bash
# What tpu.py runs on each host of a slice. In ~/moe, next to the checkout (source/), are the environment (env/), the
# log of the run (run.log), its process id (run.pid), its exit code (run.end), and a lock held while it runs (run.lock).
#
#   on_host.sh install [NFS]            sets up environment and disk; NFS is HOST:/EXPORT, mounted at /mnt/moe
#   on_host.sh start WORKDIR COMMAND... runs the command in the background; refused while another one runs
#   on_host.sh state                    prints state=S, where S is not-installed, idle, running, lost or the exit code
#   on_host.sh stop                     sends SIGTERM, so that the training saves, and waits for its end
#   on_host.sh log                      follows the log
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
  echo "error: $(hostname): $1" >&2
  exit 1
}

mount_disk() {
  mountpoint --quiet /mnt/moe && return
  # A fresh host may be busy installing updates.
  sudo apt-get -o DPkg::Lock::Timeout=600 update --quiet
  sudo apt-get -o DPkg::Lock::Timeout=600 install --quiet --yes nfs-common
  sudo mkdir -p /mnt/moe
  sudo mount -t nfs "$1" /mnt/moe
  sudo chmod go+rw /mnt/moe
}

install() {
  rm -f ../installed
  if [ $# -gt 0 ]; then mount_disk "$1"; fi
  # The TPU runtime starts and stops faster with huge pages.
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled > /dev/null
  # The hosts' Python is too old; uv installs a newer one.
  local uv="$HOME/.local/bin/uv"
  [ -x "$uv" ] || curl -LsSf https://astral.sh/uv/install.sh | sh
  [ -x ../env/bin/python ] || "$uv" venv --python 3.11 ../env
  "$uv" pip install --python ../env/bin/python --editable ".[tpu,gcs]"
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
  [[ $workdir == gs://* ]] || [ "$(disk_of "$workdir")" != "$(disk_of /)" ] \
    || fail "$workdir is on the host's own disk, which is deleted with the slice; expected a --workdir on a shared disk"
  exec 9>> ../run.lock
  flock --nonblock 9 || fail "a run is already in progress"
  echo lost > ../run.end # until the run writes its exit code
  rm -f ../run.pid
  # The run inherits descriptor 9 and with it the lock.
  PATH="$PWD/../env/bin:$PATH" nohup setsid bash -c \
    '"$@" & echo $! > ../run.pid; code=0; wait $! || code=$?; echo $code > ../run.end' run "$@" \
    >> ../run.log 2>&1 < /dev/null &
  until [ -s ../run.pid ]; do sleep 0.1; done # from now on `stop` can find it
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
  kill -TERM "$(cat ../run.pid)" 2> /dev/null || true # it may have ended just now
  flock --timeout 600 ../run.lock true || fail "the run has not ended after ten minutes"
}

log() {
  exec tail -n 100 -F ../run.log
}

"$@"
