#!/usr/bin/env bash
# Builds the tests of the rooms with a sanitizer and runs them, room by room, bottom-up.
# Usage: tools/sanitize.sh asan|tsan [--seconds N] [ROOM ...]
#
# With --seconds it ends when that time is over: first come the rooms that changed, most changed first
# (tools/changed_files.sh), then the others, from one that the commit's hash draws, so that in time each has its
# turn. What it did not reach it names; a room that was begun and not built counts as such. Without, and for rooms
# that are named, it does all. Tests labelled `slow` need no sanitizer: they install the library.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:?usage: tools/sanitize.sh asan|tsan [--seconds N] [ROOM ...]}
shift
seconds=
if [[ ${1:-} == --seconds ]]; then
  seconds=$2
  shift 2
fi
begin=$SECONDS
left() { [[ -z $seconds ]] && echo 100000 || echo $((seconds - SECONDS + begin)); }

# Bottom-up, as the rooms stand on each other. The thread sanitizer sees those with threads, and the C interface,
# whose users bring threads of their own.
case $preset in
  asan) rooms=(core transport kernels compute exchange moe balance sim checkpoint state text model engine runtime c server apps fuzz) ;;
  tsan) rooms=(core transport compute exchange moe engine c) ;;
  *) echo "sanitize: no preset $preset; there are asan and tsan" >&2; exit 2 ;;
esac

# Changed rooms, then the others from the one that is drawn on.
in_turn() {
  local draw=$((16#$(git rev-parse HEAD | cut -c 1-6) % ${#rooms[@]})) room
  for room in $(tools/changed_files.sh --rooms) "${rooms[@]:draw}" "${rooms[@]:0:draw}"; do
    [[ " ${rooms[*]} " != *" $room "* ]] || echo "$room"
  done | awk '!seen[$0]++'
}

if (($#)); then
  rooms=("$@")
elif [[ -n $seconds ]]; then
  mapfile -t rooms < <(in_turn)
fi

cmake --preset "$preset" -DFERRY_UNITY=ON >/dev/null
not_reached=()
for room in "${rooms[@]}"; do
  status=0
  if (($(left) > 0)); then
    timeout "$(left)" ninja -C "build/$preset" --quiet "tests/$room/all" || status=$?
  else
    status=124
  fi
  if [[ $status == 124 ]]; then
    not_reached+=("$room")
    continue
  fi
  [[ $status == 0 ]] || exit $status
  # Many tests wait for time to pass.
  ctest --preset "$preset" -j $((2 * $(nproc))) -L "^$room(_device)?\$" -LE '^slow$' --no-tests=error
done
((${#not_reached[@]} == 0)) || echo "$preset: not reached in $seconds s: ${not_reached[*]}"
