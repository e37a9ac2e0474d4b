#!/usr/bin/env bash
# Checks and measures exchanges on a machine with a CUDA device.
# Usage: tools/gpu_check.sh [pack|run|sanitize] [FOLDER]    (default: run)
#
#   pack      builds with FERRY_WITH_CUDA and puts what a run needs into build/gpu_check, libraries too: on any
#             machine, with a device or not. That folder, or build/gpu_check.tar.xz, which is the same in far fewer
#             bytes, and the tree are all that must travel (sizes are printed).
#   run       unpacks that, or packs, if neither has been done; then the exchange's conformance with 1, 2, 4 and 8 ranks
#             on the first device, called and as captured graphs, experts, whole layers and the demo model's tokens there,
#             `ferry bench a2a --device cuda` (its column "graph": launches of a captured exchange), experts with 8 and
#             with 512 rows each, weights and rows in bf16 and in fp8, and torch's index-and-copy and products of the
#             same shapes where a python3 with torch is there. Writes table.txt, exchange.json, experts_*.json (weights,
#             rows) and peer.json into FOLDER (build/gpu_check/out).
#   sanitize  a part of the conformance under compute-sanitizer: memcheck, then racecheck.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-run}
packed=build/gpu_check
out=${2:-$packed/out}

# Shared libraries but those that every system has, and must have its own of.
copy_libraries() {
  ldd "$1" | awk '$3 ~ /^\// { print $3 }' | grep -vE '/(libc|libm|libstdc\+\+|libgcc_s|libdl|libpthread|librt|ld-linux[^/]*)\.so' |
    xargs -r cp -uLt "$packed/lib"
}

# Programs look for libraries in lib/ beside themselves, also for those of libraries (which new dtags would not).
pack() {
  cmake --preset release -B build/gpu -DFERRY_WITH_CUDA=ON -DFERRY_BUILD_TESTS=ON -DFERRY_BUILD_BENCH=OFF \
    -DFERRY_BUILD_PYTHON=OFF -DFERRY_UNITY=ON -DCMAKE_BUILD_RPATH="\$ORIGIN/lib" \
    -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags >/dev/null
  cmake --build build/gpu -j "$(nproc)" --target ferry_app exchange_test moe_test
  mkdir -p "$packed/lib"
  local program
  for program in ferry exchange_test moe_test; do
    cp "build/gpu/$program" "$packed"
    copy_libraries "build/gpu/$program"
    strip "$packed/$program"
  done
  # With a window that holds all: each program has the same kernels in it.
  XZ_OPT=-9 tar -C build -cJf "$packed.tar.xz" --exclude=gpu_check/out gpu_check
  echo "gpu_check: $packed holds what a run needs, $(du -sh "$packed" | cut -f1); packed as $packed.tar.xz, $(du -sh "$packed.tar.xz" | cut -f1)"
}

# What was packed here or elsewhere.
ready() {
  local all=("$packed/ferry" "$packed/exchange_test" "$packed/moe_test")
  [[ -x ${all[0]} || ! -f $packed.tar.xz ]] || tar -C build -xJf "$packed.tar.xz"
  [[ -x ${all[0]} && -x ${all[1]} && -x ${all[2]} ]] || pack
}

conformance() {  # conformance ROOM FILTER [COMMAND...]: fails where all tests are skipped, too
  local room=$1 filter=$2 log
  shift 2
  log=$(mktemp)
  "$@" "$packed/${room}_test" --gtest_filter="$filter" | tee "$log"
  if grep -qF '[  SKIPPED ]' "$log"; then
    echo "gpu_check: no CUDA device was used; the reason is above" >&2
    return 1
  fi
}

# The demo model's tokens with its experts on the device, for any number of ranks, are those of the host.
whole_model() {
  local of_host of_device where
  tokens() {  # tokens OPTIONS...
    "$packed/ferry" generate --model assets/demo-moe --prompt "12 + 34 =" --max-new-tokens 32 \
      --weights bf16 --numerics fast --transport inproc --quiet "$@"
  }
  of_host=$(tokens --ep 1)
  for where in 1 2 4; do
    of_device=$(tokens --ep "$where" --experts-device cuda:0)
    [[ "$of_device" == "$of_host" ]] || {
      echo "gpu_check: on $where ranks the device's experts give '$of_device', the host's '$of_host'" >&2
      return 1
    }
  done
  echo "whole model: tokens with experts on the device are the host's, on 1, 2 and 4 ranks"
}

measure() {
  local shape=(--hidden 7168 --experts 256 --topk 8 --ep "2,4,8" --transport inproc --device cuda)
  "$packed/ferry" bench a2a "${shape[@]}" --tokens 1,8,128,4096 --json >"$out/exchange.json"
  "$packed/ferry" bench a2a "${shape[@]}" --tokens 1,8,128,4096 | tee "$out/table.txt"
  local experts=(--hidden 7168 --experts 16 --topk 8 --ep 1 --transport inproc --device cuda --inter 2048 --tokens "16,1024")
  local weights rows
  while read -r weights rows; do
    echo "experts: weights $weights, rows $rows" | tee -a "$out/table.txt"
    local how=("${experts[@]}" --weights "$weights" --dispatch-wire "$rows")
    "$packed/ferry" bench a2a "${how[@]}" --json >"$out/experts_${weights}_$rows.json"
    "$packed/ferry" bench a2a "${how[@]}" | tee -a "$out/table.txt"
  done <<<$'bf16 bf16\nfp8 bf16\nfp8 fp8'
  if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    python3 tools/gpu_peer.py --json "$out/peer.json" | tee -a "$out/table.txt"
  else
    echo "gpu_check: no python3 with torch that sees the device; the peer is left out"
  fi
}

case "$what" in
  pack) pack ;;
  run)
    ready
    mkdir -p "$out"
    conformance exchange '*GpuDevice*'
    conformance moe '*GpuDevice*'
    whole_model
    measure
    ;;
  sanitize)
    ready
    for tool in memcheck racecheck; do
      conformance exchange '*GpuDevice*/1' compute-sanitizer --tool "$tool" --error-exitcode 1
      conformance moe '*GpuDevice*' compute-sanitizer --tool "$tool" --error-exitcode 1
    done
    ;;
  *) echo "usage: tools/gpu_check.sh [pack|run|sanitize] [FOLDER]" >&2; exit 2 ;;
esac
