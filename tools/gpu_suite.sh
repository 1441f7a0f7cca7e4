#!/usr/bin/env bash
# Everything that needs a GPU, in one command of under 10 minutes: is it correct, how fast is it, where does the time go.
#
#   tools/gpu_suite.sh [OUT] [--full | --rehearse] [--parts correct,loss,profile,step,tune]
#
# OUT: folder for suite.log, JSON and traces, six files (default: runs/gpu_suite). --parts: only these (default: all but tune, which measures
# other block and buffer sizes); one alone gets all the time.
# PYTHON names the interpreter (default: .venv/bin/python where it exists, else python3). Peers that are installed are measured:
#   pip install liger-kernel cut-cross-entropy trl
# --full: also N = 1k, 4k and 64k, a vocabulary of 262144, and more rounds (about 40 minutes).
# --rehearse: every part without a GPU, on tiny shapes: shows that scripts, JSON and tables work, measures nothing of interest.
# Ends with 0 if all parts did; each part runs whatever became of the others.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=runs/gpu_suite parts=correct,loss,profile,step mode=
while [ $# -gt 0 ]; do
    case $1 in
        --full | --rehearse) mode=$1 ;;
        --parts) parts=${2:?--parts needs a list}; shift ;;
        -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "$1: no such option; see --help" >&2; exit 2 ;;
        *) out=$1 ;;
    esac
    shift
done
for part in ${parts//,/ }; do
    case $part in
        correct | loss | profile | step | tune) ;;
        *) echo "--parts $part: choose from correct, loss, profile, step, tune" >&2; exit 2 ;;
    esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$here" || exit 1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=.:kernels${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo} # one process; its host may have no network

budget=560 device=cuda shape=(16384 4096 128256) loss=() step=(--steps 6) tune=(--shape 16384 4096 128256) interpret=0
case $mode in
    --full) budget=2800 loss=(--full) step=(--steps 8 --rounds 3) ;;
    --rehearse)
        budget=1200 device=cpu shape=(256 64 1000) loss=(--shape 256 64 1000 --rounds 2)
        step=(--tiny --steps 3 --only "NLL;adaptive;TRL") tune=(--shape 2 16 300 --rounds 1) interpret=1
        ;;
esac
: >"$out/suite.log"
say() { echo "$*" | tee -a "$out/suite.log"; }
if [ $device = cuda ]; then
    gpu=$("$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())') || { echo "no GPU; --rehearse needs none" >&2; exit 1; }
    say "$gpu"
fi

failed=() summary=()
part() { # part NAME SHARE COMMAND...: at most SHARE percent of the budget, and what is left of it; its output goes to suite.log too
    local name=$1 limit=$((budget * $2 / 100)) left=$((budget - SECONDS)) start=$SECONDS result=passed
    shift 2
    [[ $parts == *,* ]] && [ $limit -lt $left ] || limit=$left
    say "== $name (at most $limit s)"
    # killed 10 s later where it does not heed the request to end: a hang must not eat the other parts
    timeout -k 10 "$((limit > 0 ? limit : 1))" "${@//LIMIT/$((limit > 25 ? limit - 15 : 10))}" 2>&1 | tee -a "$out/suite.log" || result=FAILED
    [ $result = passed ] || failed+=("$name")
    summary+=("$(printf '%-14s%5d s  %s' "$name" $((SECONDS - start)) $result)")
    say "== ${summary[-1]}"
}

for wanted in ${parts//,/ }; do
    case $wanted in
        correct) part correct 18 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/test_linear_objective.py tests/test_gpu.py ;;
        loss) part loss 33 "$python" benchmarks/loss_kernels.py --device $device "${loss[@]}" --out "$out/loss_kernels.json" ;;
        profile)
            for logits in fp32 bf16; do
                part "profile_$logits" 5 "$python" tools/profile_kernels.py --device $device --shape "${shape[@]}" --logits $logits \
                    --trace "$out/trace_$logits.json.gz"
            done
            ;;
        tune)
            part tune 15 env TRITON_INTERPRET=$interpret "$python" tools/tune_kernels.py --device $device "${tune[@]}" --out "$out/tune_kernels.json"
            ;;
        step)
            part step 100 "$python" benchmarks/train_step.py --device $device "${step[@]}" --limit LIMIT --trace "$out/trace_step.json.gz" \
                --out "$out/train_step.json"
            ;;
    esac
done

say "== $SECONDS s in all"
for line in "${summary[@]}"; do say "$line"; done
[ ${#failed[@]} -eq 0 ] && say "all parts passed: $out" || { say "failed: ${failed[*]}; see $out/suite.log"; exit 1; }
