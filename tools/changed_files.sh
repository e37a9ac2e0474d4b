#!/usr/bin/env bash
# The files that changed, newest first: against origin/main or, where that is no help, against ten commits ago.
# Usage: tools/changed_files.sh [--rooms]    with --rooms the rooms that they belong to, that with most changed lines first
set -euo pipefail
cd "$(dirname "$0")/.."

base=$(git merge-base origin/main HEAD 2>/dev/null || true)
if [[ -z $base || $base == $(git rev-parse HEAD) ]]; then
  base=$(git rev-list --max-count=11 HEAD | tail -n 1)
fi
if [[ ${1:-} == --rooms ]]; then
  git log --format= --numstat "$base..HEAD" | awk '
    match($3, "^((ferry|tests)/[a-z]+|apps)/") {
      room = substr($3, 1, RLENGTH - 1)
      sub(".*/", "", room)
      lines[room] += $1 + $2
    }
    END { for (room in lines) print lines[room], room }' | sort -k1,1nr -k2 | cut -d " " -f 2
else
  git log --format= --name-only --diff-filter=d "$base..HEAD" | awk 'NF && !seen[$0]++' |
    while read -r file; do [[ ! -f $file ]] || echo "$file"; done
fi
