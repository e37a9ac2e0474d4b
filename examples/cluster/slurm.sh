#!/bin/bash
# A server on two hosts under Slurm, one rank a host: sbatch slurm.sh. Give the model's directory, which all hosts
# see, as MODEL; requests go to the first host of the job, port 30000.
#SBATCH --nodes 2 --ntasks-per-node 1 --exclusive --job-name ferry
set -euo pipefail
: "${MODEL:?is not set: sbatch --export ALL,MODEL=DIR slurm.sh}"
FERRY_TOKEN=$(head -c 16 /dev/urandom | base64)  # proves to rank 0 that a rank is of this job
export FERRY_TOKEN
# MASTER_ADDR and MASTER_PORT come from the job. scancel ends all ranks.
exec srun --export ALL "${FERRY:-ferry}" serve --model-path "$MODEL" --host 0.0.0.0 --port 30000
