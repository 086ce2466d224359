#!/bin/bash
# Installs the requirements of the source folder that this script is in, and makes that folder the one that runs.
#
# bash launch/NAME/source.new/launch/setup_host.sh        the folder becomes launch/NAME/source
#
# It may be repeated: what is installed already is kept. It refuses to replace the source of an active run.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
folder=$(dirname "$source")

fail() { echo "error: $(hostname): $1" >&2; exit 2; }

exec 9>>"$folder/lock"
flock --nonblock 9 || fail "a run is active here; stop it first"

supported() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
find_python() {
  for python in python3.11 python3.12 python3.13 python3; do
    if supported "$python"; then echo "$python"; return; fi
  done
}

if ! supported "$folder/venv/bin/python"; then
  python=$(find_python)
  if [ -z "$python" ]; then
    sudo apt-get update --quiet --quiet || fail "apt-get cannot reach its mirror; hosts without external addresses need Cloud NAT"
    sudo apt-get install --quiet --quiet --yes python3.11 python3.11-venv || sudo apt-get install --quiet --quiet --yes python3-venv
    python=$(find_python)
  fi
  [ -n "$python" ] || fail "there is no Python 3.11 or newer; use an image that has one"
  "$python" -m venv --clear "$folder/venv"
fi

"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --requirement="$source/requirements.txt" --requirement="$source/requirements-tpu.txt" ||
  fail "pip cannot install the requirements; hosts without external addresses need Cloud NAT"

if [ "$source" != "$folder/source" ]; then
  rm -rf "$folder/source"
  mv "$source" "$folder/source"
fi
echo "$(hostname): $("$folder/venv/bin/python" --version), revision $(cat "$folder/source/REVISION")"
