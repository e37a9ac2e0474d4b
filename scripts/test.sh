#!/usr/bin/env bash
# Builds the release and runs all tests. FERRY_ISA=scalar (avx2, avx2_vnni, avx512, amx, neon) tests that instruction
# set instead of the best one that the machine has.
# Usage: scripts/test.sh [--long] [arguments of ctest]    e.g. scripts/test.sh -R Dispatcher
#   --long   the tests that take minutes too: every combination of the conformance suite, 100,000
#            exchanges with random delays, ...
set -euo pipefail
cd "$(dirname "$0")/.."

long=()
if [[ ${1:-} == --long ]]; then
  export FERRY_LONG_TESTS=1
  long=(--schedule-random)
  shift
fi

scripts/setup.sh tests
# Configured again only where an earlier run.sh left the tests out, or setup.sh has just brought Python.
python=OFF
[[ ! -x build/venv/bin/python ]] || python=ON
# A build folder that is there keeps its way of building; a new one is built once, and whole.
unity=()
[[ -f build/release/CMakeCache.txt ]] || unity=(-DFERRY_UNITY=ON)
configured() { grep -qs "$1:BOOL=$2" build/release/CMakeCache.txt; }
configured FERRY_BUILD_TESTS ON && configured FERRY_BUILD_PYTHON $python && [[ -f build/release/build.ninja ]] ||
  cmake --preset release "${unity[@]}" -DFERRY_BUILD_TESTS=ON -DFERRY_BUILD_BENCH=ON -DFERRY_BUILD_PYTHON=$python
cmake --build --preset release
ctest --preset release -j 4 "${long[@]}" "$@"
