#!/bin/sh
# forgotten_option.sh SOURCE_DIR COMPILER: adds a member to each options struct in turn and expects
# that ferry/runtime/agreement.cpp compiles no longer.
set -eu
source=$1
compiler=$2
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

compiles() {
  "$compiler" -std=c++20 -fsyntax-only -I"$copy" -I"$copy/include" -I"$source" -I"$source/include" \
    "$source/ferry/runtime/agreement.cpp" >"$copy/log" 2>&1
}

compiles || { cat "$copy/log"; echo "agreement.cpp does not compile as it is"; exit 1; }
while read -r header struct; do
  mkdir -p "$copy/$(dirname "$header")"
  sed "s/^struct $struct {/&\n  bool forgotten = false;/" "$source/$header" >"$copy/$header"
  if cmp -s "$source/$header" "$copy/$header"; then echo "$header has no struct $struct"; exit 1; fi
  if compiles; then echo "a new member of $struct goes unnoticed"; exit 1; fi
  grep -q "names provided\|decomposes into" "$copy/log" || { cat "$copy/log"; exit 1; }
  rm "$copy/$header"
done <<EOL
include/ferry/launch.h LaunchOptions
ferry/model/decoder_options.h DecoderOptions
ferry/engine/rebalancer.h RebalanceOptions
ferry/engine/balancer.h BalanceOptions
ferry/engine/engine.h EngineOptions
ferry/runtime/model_options.h ModelOptions
EOL
