#!/usr/bin/env bash
# Builds the program and continues a prompt with the demo model, its experts spread over two ranks.
# Usage: scripts/run.sh [arguments of `ferry generate`]    e.g. scripts/run.sh --prompt "..." --ep 4
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh program
# A build folder that scripts/test.sh made serves as well.
[[ -f build/release/build.ninja ]] ||
  cmake --preset release -DFERRY_BUILD_TESTS=OFF -DFERRY_BUILD_BENCH=OFF -DFERRY_UNITY=ON >&2
ninja -C build/release -n ferry_app | grep -q 'no work to do' ||
  cmake --build --preset release --target ferry_app >&2

given=" $* "
text="Once upon a time there was a little fox named Mia."
prompt=(--prompt "$text" --max-new-tokens 150)
[[ $given =~ \ --(prompts?|input-ids)[\ =] ]] && prompt=()
ranks=(--ep 2)
[[ $given =~ \ --ep[\ =] ]] && ranks=()
((${#prompt[@]})) && echo "run: prompt: $text" >&2
exec build/release/ferry generate "${ranks[@]}" "${prompt[@]}" "$@"
