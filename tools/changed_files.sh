#!/usr/bin/env bash
# The files that changed, newest first: against origin/main or, where that is no help, against ten commits ago.
# Usage: tools/changed_files.sh [--rooms]    with --rooms the rooms that they belong to, in no order
set -euo pipefail
cd "$(dirname "$0")/.."

base=$(git merge-base origin/main HEAD 2>/dev/null || true)
if [[ -z $base || $base == $(git rev-parse HEAD) ]]; then
  base=$(git rev-list --max-count=11 HEAD | tail -n 1)
fi
files() {
  git log --format= --name-only --diff-filter=d "$base..HEAD" | awk 'NF && !seen[$0]++'
}
if [[ ${1:-} == --rooms ]]; then
  files | sed -nE 's#^(ferry|tests)/([a-z]+)/.*#\2#p; s#^apps/.*#apps#p' | sort -u
else
  files | while read -r file; do [[ ! -f $file ]] || echo "$file"; done
fi
