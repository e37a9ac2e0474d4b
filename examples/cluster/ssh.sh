#!/usr/bin/env bash
# A server on several hosts by plain ssh, one rank a host. Requests go to the first, port 30000; ^C ends all ranks.
# Usage: MODEL=DIR ./ssh.sh HOST...    FERRY names the program on the hosts, SSH the command with its options
set -euo pipefail
: "${MODEL:?set MODEL to the model directory on the hosts}"
hosts=("$@")
((${#hosts[@]})) || { echo "usage: MODEL=DIR ${0##*/} HOST..." >&2; exit 2; }
token=$(head -c 16 /dev/urandom | base64)
trap 'kill $(jobs -p) 2>/dev/null' EXIT

# The secret goes in by stdin, where no list of processes shows it. When the connection ends so does stdin, and with it
# the rank.
rank_on_host() {
  cat <<END
read -r FERRY_TOKEN
export FERRY_TOKEN RANK=$1 WORLD_SIZE=${#hosts[@]} MASTER_ADDR=${hosts[0]} MASTER_PORT=29500
${FERRY:-ferry} serve --model-path $MODEL --host 0.0.0.0 --port 30000 </dev/null & rank=\$!
exec 3<&0; { cat <&3 >/dev/null; kill \$rank 2>/dev/null; } &
wait \$rank
END
}

for rank in "${!hosts[@]}"; do
  { echo "$token"; exec sleep infinity; } | ${SSH:-ssh} "${hosts[rank]}" "$(rank_on_host "$rank")" &
done
wait -n  # the first rank that ends takes the others along
