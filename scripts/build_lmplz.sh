#!/usr/bin/env bash
# Builds KenLM's lmplz, the estimator of n-gram models, from KenLM's source distribution, with pip as the only source.
#
#   bash scripts/build_lmplz.sh [--required]
#
# It is installed as ${TEXTEBM_HOME:-~/.cache/textebm}/kenlm/bin/lmplz, where textebm finds it; a second run returns at
# once. Where it cannot be built (no Linux, no C++ compiler, no network) textebm uses its own estimator, which agrees with lmplz
# to 1e-5: so the script says why and ends well, unless --required is given. PYTHON names the Python whose pip is used.
set -euo pipefail
cd "$(dirname "$0")/.."

KENLM=0.3.0
BOOST=1.83.0
CMAKE=3.31.6
target="${TEXTEBM_HOME:-$HOME/.cache/textebm}/kenlm"
required=false
for argument in "$@"; do
  case "$argument" in
    --required) required=true ;;
    *) echo "usage: bash scripts/build_lmplz.sh [--required]" >&2; exit 2 ;;
  esac
done

python="${PYTHON:-.venv/bin/python}"
[[ -x "$(command -v "$python" || true)" ]] || python=python3

give_up() {
  echo "lmplz was not built: $1" >&2
  [[ $required == true ]] && exit 1
  echo "textebm will use its built-in estimator of n-gram models instead." >&2
  exit 0
}

works() { "$1" -o 2 -S 64M --discount_fallback > /dev/null 2>&1 <<< 'one two'; }

if [[ "$(cat "$target/VERSION" 2> /dev/null)" == "$KENLM" ]] && works "$target/bin/lmplz"; then
  exit 0
fi

mkdir -p "$(dirname "$target")" 2> /dev/null || give_up "cannot write to $(dirname "$target") (set TEXTEBM_HOME to a folder of yours)"
command -v c++ > /dev/null || command -v g++ > /dev/null || command -v clang++ > /dev/null ||
  give_up "there is no C++ compiler (on Debian: apt-get install g++ make)"
command -v make > /dev/null || give_up "there is no make (on Debian: apt-get install make)"

# Beside the target, so that the finished build moves into place in one step.
work="$(mktemp -d "$target.XXXXXX")"
trap 'rm -rf "$work"' EXIT
log="$work/log"
pip() { "$python" -m pip --disable-pip-version-check "$@" >> "$log" 2>&1; }
fail() { tail -n 15 "$log" >&2; give_up "$1"; }

echo "building KenLM's lmplz $KENLM (about a minute)" >&2
pip download --no-deps --no-binary kenlm --dest "$work" "kenlm==$KENLM" || fail "its sources could not be downloaded"
tar -xzf "$work/kenlm-$KENLM.tar.gz" -C "$work"
pip install --no-deps --target "$work/boost" "cmeel-boost==$BOOST" || fail "Boost could not be downloaded"
boost="$work/boost/cmeel.prefix"

cmake=cmake
if ! command -v cmake > /dev/null; then
  pip install --no-deps --target "$work/cmake" "cmake==$CMAKE" || fail "cmake could not be downloaded"
  cmake="$work/cmake/cmake/data/bin/cmake"
fi

# The binary looks for Boost beside itself ($ORIGIN is for the loader, not for the shell), so the folder can move.
# shellcheck disable=SC2016
"$cmake" -S "$work/kenlm-$KENLM" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DKENLM_MAX_ORDER=6 \
  -DENABLE_INTERPOLATE=OFF -DCMAKE_PREFIX_PATH="$boost" -DBoost_NO_SYSTEM_PATHS=ON \
  -DCMAKE_BUILD_RPATH='$ORIGIN/../lib' >> "$log" 2>&1 || fail "cmake could not configure it"
"$cmake" --build "$work/build" --parallel 2 --target lmplz build_binary query >> "$log" 2>&1 || fail "it does not compile"

mkdir -p "$work/kenlm/bin" "$work/kenlm/lib"
cp "$work"/build/bin/{lmplz,build_binary,query} "$work/kenlm/bin"
# Only the Boost libraries that are used, and those that they use in turn; the loader wants their full names.
for library in program_options system thread chrono atomic date_time; do
  cp "$boost/lib/libboost_$library.so.$BOOST" "$work/kenlm/lib" 2> /dev/null || true
done
cp "$work/kenlm-$KENLM/COPYING.LESSER.3" "$work/kenlm-$KENLM/LICENSE" "$work/kenlm"
echo "$KENLM" > "$work/kenlm/VERSION"
works "$work/kenlm/bin/lmplz" || fail "the new binary does not run"
rm -rf "$target"
mv "$work/kenlm" "$target"
echo "lmplz is at $target/bin/lmplz" >&2
