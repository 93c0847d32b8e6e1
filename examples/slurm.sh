#!/usr/bin/env bash
# Train on several nodes of a Slurm cluster: sbatch examples/slurm.sh my.txt --steps 20000
#
# One torchrun on each node starts one process for each of its GPUs; they meet at the first node. A job that Slurm puts
# back into the queue goes on from its last checkpoint, and so do processes that torchrun starts again after a fault.
# Shortly before the end of its time the job is told to stop: torchrun then gives its processes 30 seconds to save.
# What was run: this script, by two torchruns on one machine without Slurm, and two that started again. What was only
# read by bash: the lines #SBATCH, srun on real nodes.
# DATA and runs/ lie on a file system that all nodes see: the first process alone writes.
#SBATCH --job-name=tformer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # of several jobs on a node each has its own
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_PER_NODE))

exec srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_PER_NODE" --max-restarts 3 \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:$port" \
  -m tformer train "$@" --out "runs/job-$SLURM_JOB_ID" --resume
