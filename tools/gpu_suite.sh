#!/usr/bin/env bash
# Everything that needs a GPU, in one command of under 10 minutes: is it correct, how fast is it, where does the time go.
#
#   tools/gpu_suite.sh [OUT] [--full]      OUT: folder for logs, JSON and tables (default: runs/gpu_suite)
#
# PYTHON names the interpreter (default: .venv/bin/python where it exists, else python3). Peers that are installed are measured:
#   pip install liger-kernel cut-cross-entropy trl
# --full: also N = 1k, 4k and 64k, a vocabulary of 262144, and more rounds (about 40 minutes).
# Ends with 0 if all parts did; each part runs whatever became of the others.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=runs/gpu_suite full=
for argument in "$@"; do
    case $argument in
        --full) full=--full ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) out=$argument ;;
    esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=.:kernels${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no CUDA device"; print(torch.__version__, torch.cuda.get_device_name())' || exit 1

failed=()
part() { # part NAME SECONDS COMMAND...: its output goes to the screen and to OUT/NAME.log
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name (at most $limit s)"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
    echo "== $name: $((SECONDS - start)) s"
}

scale=$([ -n "$full" ] && echo 5 || echo 1)
part correct $((80 * scale)) "$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_linear_objective.py tests/test_gpu.py
part loss $((200 * scale)) "$python" benchmarks/loss_kernels.py --device cuda $full --out "$out/loss_kernels.json"
for logits in fp32 bf16; do
    part "profile_$logits" 30 "$python" tools/profile_kernels.py --device cuda --shape 16384 4096 128256 --logits "$logits" \
        --trace "$out/trace_$logits.json"
done
part step $((240 * scale)) "$python" benchmarks/train_step.py --steps 8 --rounds $([ -n "$full" ] && echo 3 || echo 1) --out "$out/train_step.json"

[ ${#failed[@]} -eq 0 ] && echo "all parts passed: $out" || { echo "failed: ${failed[*]}; logs in $out"; exit 1; }
