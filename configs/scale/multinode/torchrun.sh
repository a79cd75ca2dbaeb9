#!/usr/bin/env bash
# Starts this machine's part of a run of several machines. On each of them, with the same words:
#
#   NODES=2 FIRST=node0:29500 configs/scale/multinode/torchrun.sh -c configs/paper/math.yaml \
#     -c configs/scale/fsdp.yaml -c configs/scale/multinode/two_nodes.yaml
#
# NODES        number of machines, trainer.num_nodes
# FIRST        address and a free port of one of them, the same on all
# PROCESSES    of this machine, trainer.devices (8)
# PYTHON       interpreter (.venv/bin/python)
#
# A process that fails ends the run on all machines; go on from its checkpoint with --ckpt_path.
set -euo pipefail
: "${NODES:?the number of machines}" "${FIRST:?address:port of one machine, the same on all}"

exec "${PYTHON:-.venv/bin/python}" -m torch.distributed.run \
  --nnodes="$NODES" --nproc-per-node="${PROCESSES:-8}" \
  --rdzv-backend=c10d --rdzv-endpoint="$FIRST" --rdzv-id=repirl --max-restarts=0 \
  -m repirl fit "$@"
