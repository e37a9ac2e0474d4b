#!/usr/bin/env bash
# What a machine can check of the house rules (CONTRIBUTING.md): formatting, which room includes what,
# whether README.md knows every package that we install, and clang-tidy.
# Usage: tools/lint.sh [--tidy changed|all|none] [--seconds N]
#
# clang-tidy reads build/release/compile_commands.json. `changed` means the .cpp files of
# tools/changed_files.sh; it starts no further file after N seconds (default 300) and says how many
# it left out.
set -euo pipefail
cd "$(dirname "$0")/.."

tidy=changed
seconds=300
while (($#)); do
  case "$1" in
    --tidy) tidy=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    *) echo "usage: tools/lint.sh [--tidy changed|all|none] [--seconds N]" >&2; exit 2 ;;
  esac
done

mapfile -t sources < <(git ls-files '*.cpp' '*.h' '*.inl')
clang-format --dry-run -Werror "${sources[@]}"
echo "format: ${#sources[@]} files are as clang-format wants them"

tools/check_rooms.py

for package in $(scripts/setup.sh --list); do
  grep -q "\`$package\`" README.md || { echo "README.md does not say what $package is for"; exit 1; }
done

[[ $tidy == none ]] && exit
database=build/release/compile_commands.json
[[ -f $database ]] || { echo "lint: no $database; run cmake --preset release first" >&2; exit 2; }
if grep -q '/Unity/unity_' "$database"; then
  echo "lint: build/release is a unity build, whose files clang-tidy cannot tell apart; run cmake --preset release -DFERRY_UNITY=OFF" >&2
  exit 2
fi

if [[ $tidy == all ]]; then
  mapfile -t changed < <(git ls-files '*.cpp')
else
  mapfile -t changed < <(tools/changed_files.sh | grep '\.cpp$')
fi

# Only what this configuration builds: without a compile command clang-tidy would guess.
known=()
for file in "${changed[@]}"; do
  grep -qF "\"$PWD/$file\"" "$database" && known+=("$file")
done

left_out=$(mktemp)
trap 'rm -f "$left_out"' EXIT
stop_at=$(($(date +%s) + seconds))
tidy_one() {
  (($(date +%s) < stop_at)) || { echo "$1" >>"$left_out"; return 0; }
  clang-tidy --quiet -p build/release --extra-arg=-Wno-unknown-warning-option "$1" 2>/dev/null || { echo "clang-tidy: see above: $1"; return 1; }
}
export -f tidy_one
export stop_at left_out
status=0
if ((${#known[@]})); then
  printf '%s\0' "${known[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -c 'tidy_one "$0"' || status=1
fi
echo "clang-tidy: ${#known[@]} files, $(wc -l <"$left_out") of them left out for lack of time"
exit $status
