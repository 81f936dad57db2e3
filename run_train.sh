#!/usr/bin/env bash
# Trains on this machine, after setting itself up if need be.
#
#   ./run_train.sh                                      the demo: a small Llama on CPU ranks, or on the GPUs here
#   ./run_train.sh --wlb.packing original --wlb.sharding per_sequence        the same as Plain-4D, the baseline
#   CONFIG_FILE=train_configs/llama3_8b_128k.toml NGPU=8 ./run_train.sh --training.steps 100
#
# From the environment, as in TorchTitan: CONFIG_FILE, NGPU (ranks), LOG_RANK (whose output is shown), TRAIN_FILE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source tools/setup_environment.sh

CONFIG_FILE="${CONFIG_FILE:-train_configs/debug_cpu.toml}"
TRAIN_FILE="${TRAIN_FILE:-titan_wlb.train}"
export LOG_RANK="${LOG_RANK:-0}"
if [ -n "${COMM_MODE:-}" ]; then
  echo "titan_wlb: COMM_MODE = '$COMM_MODE' is not supported (plans are compared over real ranks); unset it" >&2
  exit 78
fi

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
layout=()
if [ "$(basename "$CONFIG_FILE")" = debug_cpu.toml ]; then
  # The demo's layout follows from the ranks; flags of the user come later and overrule it.
  cores=$(env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)  # nproc takes OMP_NUM_THREADS for cores
  if [ "$gpus" -gt 0 ]; then units="$gpus GPUs"; most=$gpus; else units="$cores cores"; most=$cores; fi
  if [ -z "${NGPU:-}" ]; then
    if [ "$most" -ge 4 ]; then NGPU=4; elif [ "$most" -ge 2 ]; then NGPU=2; else NGPU=1; fi
  fi
  case "$NGPU" in
    1) words="one rank" ;;
    2) words="DP 2, which rewards balanced packing" ;;  # the file's data parallelism takes all ranks that are left
    4) words="PP 2 x CP 2, Interleaved1F1B"
       layout=(--parallelism.pipeline_parallel_degree 2 --parallelism.context_parallel_degree 2) ;;
    8) words="PP 2 x CP 2 x DP 2, Interleaved1F1B"
       layout=(--parallelism.pipeline_parallel_degree 2 --parallelism.context_parallel_degree 2) ;;
    *) words="DP over all" ;;
  esac
  echo "run_train.sh: $NGPU ranks on $units: $words, unless flags say otherwise (NGPU=... chooses another number)"
  # the file says float32 for CPUs
  [ "$gpus" -eq 0 ] || layout+=(--training.mixed_precision_param bfloat16)
  [ "$gpus" -gt 0 ] || [ "$NGPU" -le "$cores" ] ||
    echo "run_train.sh: more ranks than cores: their times include waiting for a core ('starved')"
fi
NGPU="${NGPU:-8}"
[ "$gpus" -gt 0 ] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"

exec "$PYTHON" -u -m titan_wlb.launch --nproc_per_node="$NGPU" --rdzv_backend c10d --rdzv_endpoint=localhost:0 \
  --local-ranks-filter "$LOG_RANK" --role rank --tee 3 \
  -m "$TRAIN_FILE" --job.config_file "$CONFIG_FILE" "${layout[@]+"${layout[@]}"}" "$@"
