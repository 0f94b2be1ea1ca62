#!/usr/bin/env bash
# A user's first minute: the wheel and its declared dependencies, alone in an empty environment with no checkout around.
# Usage: scripts/check_wheel.sh WHEEL
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1
python="$(dirname "$0")/../.venv/bin/python"
constraints="$(realpath "$(dirname "$0")/../constraints.txt")"
wheel="$(realpath "$1")"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder/venv"
cd "$folder"
venv/bin/python -m pip install --quiet --constraint "$constraints" torch
venv/bin/python -m pip install --quiet --constraint "$constraints" "$wheel"
venv/bin/python -m pip check
venv/bin/textebm --help > help.txt  # the first run compiles; it is the second that is timed
venv/bin/python - <<'PYTHON'
import subprocess
import time

start = time.perf_counter()
subprocess.run(["venv/bin/textebm", "--help"], check=True, capture_output=True)
seconds = time.perf_counter() - start
print(f"textebm --help in an empty environment: {seconds:.2f} s")
assert seconds < 1, "help must come within a second"
PYTHON

echo "three sentences of the model that ships:"
venv/bin/textebm generate -n 3 --device cpu
