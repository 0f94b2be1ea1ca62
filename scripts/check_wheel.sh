#!/usr/bin/env bash
# A user's first minute: the wheel and its declared dependencies, alone in an empty environment with no checkout around.
# Then the same from the source distribution, built in that environment, without network and without build isolation: it
# must install the same files.
# Usage: scripts/check_wheel.sh WHEEL SDIST
set -euo pipefail
export PIP_DISABLE_PIP_VERSION_CHECK=1
python="$(dirname "$0")/../.venv/bin/python"
constraints="$(realpath "$(dirname "$0")/../constraints.txt")"
wheel="$(realpath "$1")"
sdist="$(realpath "$2")"
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

seconds = []
for _ in range(5):  # the least of five: what the program costs, without what else the machine was doing
    start = time.perf_counter()
    subprocess.run(["venv/bin/textebm", "--help"], check=True, capture_output=True)
    seconds.append(time.perf_counter() - start)
print(f"textebm --help in an empty environment: {min(seconds):.2f} s")
assert min(seconds) < 0.5, "help must come within half a second"
PYTHON

echo "three sentences of the model that ships:"
venv/bin/textebm generate -n 3 --device cpu | tee sentences-of-wheel.txt

files() {  # of the package, with their checksums; what Python compiles is left out
  (cd venv/lib/python3*/site-packages/textebm && find . -type f -not -name '*.pyc' -exec sha256sum {} + | sort -k 2)
}
files > of-wheel.txt
venv/bin/python -m pip uninstall --quiet --yes textebm
venv/bin/python -m pip install --quiet --no-index --no-deps --no-build-isolation "$sdist"
files > of-sdist.txt
diff of-wheel.txt of-sdist.txt
venv/bin/textebm generate -n 3 --device cpu | diff sentences-of-wheel.txt -
echo "the source distribution installs the same $(wc -l < of-sdist.txt) files, which write the same sentences"
