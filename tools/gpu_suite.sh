#!/usr/bin/env bash
# All that needs a GPU, in three commands of under ten minutes each:
#   1  is it correct, how fast is the loss, where does its time go      smoke correct loss profile
#   2  a training step, ours and TRL's, of a mixture of experts, too    step moe
#   3  other sizes of blocks and buffers, prompt masks, bf16 logits     tune masks bf16
#
#   tools/gpu_suite.sh [OUT] [--command 1,2,3] [--parts smoke,loss,...] [--budget S]
#                      [--rehearse | --full | --print]
#
# OUT: folder of suite.log, JSON and traces, at most six files of a command (default:
# runs/gpu_suite); benchmarks/gpu_tables.py OUT makes tables of it. --command: only these. --parts:
# only these parts. --budget: seconds of each command (default: 570); a part gets its share of what
# is left, one alone all of it.
# PYTHON names the interpreter (default: .venv/bin/python where it exists, else python3). Peers that
# are installed are measured: pip install liger-kernel cut-cross-entropy trl
# --full: more shapes and rounds (budget: 2800). --print: the three commands, as docs/performance.md
# gives them. --rehearse: every part without a GPU, on tiny shapes: shows that scripts, JSON and
# tables work, measures nothing of interest.
# Ends with 0 if all parts did; a part that fails does not stop the others.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out=runs/gpu_suite commands=1,2,3 parts= budget= mode=
while [ $# -gt 0 ]; do
    case $1 in
        --full | --rehearse | --print) mode=$1 ;;
        --command) commands=${2:?--command needs a list}; shift ;;
        --parts) parts=${2:?--parts needs a list}; shift ;;
        --budget) budget=${2:?--budget needs seconds}; shift ;;
        -h | --help) sed -n '2,21s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) echo "$1: no such option; see --help" >&2; exit 2 ;;
        *) out=$1 ;;
    esac
    shift
done
known="smoke correct loss profile profile_fp32 profile_bf16 step moe tune tune_fp32 tune_bf16"
known+=" masks bf16"
for name in ${parts//,/ }; do
    [[ " $known " == *" $name "* ]] || { echo "--parts $name: choose from $known" >&2; exit 2; }
done
for number in ${commands//,/ }; do
    [[ $number == [123] ]] || { echo "--command $number: choose from 1, 2 and 3" >&2; exit 2; }
done
if [[ -n $budget && ! $budget =~ ^[1-9][0-9]*$ ]]; then
    echo "--budget $budget: give whole seconds" >&2
    exit 2
fi

export PYTHONPATH=.:kernels${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
# one process; its host may have no network
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo}
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8}

device=cuda large="16384 4096 128256" loss=(--shape 8192 1536 151936 --shape 16384 4096 128256)
loss+=(--mask 0 --rounds 8) masks=(--mask 0.5 --rounds 8) interpret=()
step=(--steps 6) tune=() bf16=(--set train.loss_logits=bf16)
moe="adaptive;TRL;adaptive, compiled;adaptive, compiled, no router loss"
case $mode in
    --full)
        budget=${budget:-2800} loss=(--full --mask 0) masks=(--full --mask 0.5)
        step=(--steps 8 --rounds 3)
        ;;
    --rehearse)
        device=cpu large="256 64 1000" loss=(--shape 128 64 1000 --shape 256 64 1000)
        loss+=(--mask 0 --rounds 2) masks=(--shape 256 64 1000 --mask 0.5 --rounds 2)
        step=(--tiny --steps 3) tune=(--rounds 1) interpret=(env TRITON_INTERPRET=1)
        bf16+=(--set model.compute_dtype=bf16)
        moe="adaptive;TRL" # compiling it is left to the tests: a minute
        ;;
esac
tuned=$large && [ "$mode" != --rehearse ] || tuned="2 16 300" # the interpreter is slow
budget=${budget:-570}

# part NAME SECONDS COMMAND...: SECONDS is its share of the budget. --parts tune means tune_fp32 and
# tune_bf16.
command_1() {
    part smoke 40 python3 tools/gpu_smoke.py --device $device
    part correct 240 python3 -m pytest -v -m gpu -p no:cacheprovider \
        tests/test_linear_objective.py tests/test_gpu.py
    part loss 200 python3 benchmarks/loss_kernels.py --device $device "${loss[@]}" \
        --out '$OUT/loss_dense.json'
    for logits in fp32 bf16; do
        part profile_$logits 40 python3 tools/profile_kernels.py --device $device --shape $large \
            --logits $logits --trace "\$OUT/trace_$logits.json.gz" \
            --out "\$OUT/profile_$logits.json"
    done
}
command_2() {
    part step 330 python3 benchmarks/train_step.py --device $device "${step[@]}" --limit LIMIT \
        --only "NLL;adaptive;TRL;adaptive, compiled" --trace '$OUT/trace_step.json.gz' \
        --out '$OUT/train_step.json'
    part moe 240 python3 benchmarks/train_step.py --device $device "${step[@]}" --limit LIMIT \
        --model qwen3-30b-a3b --only "$moe" --out '$OUT/train_step_moe.json'
}
command_3() {
    for logits in fp32 bf16; do
        part tune_$logits 120 "${interpret[@]}" python3 tools/tune_kernels.py --device $device \
            --shape $tuned "${tune[@]}" --logits $logits --out "\$OUT/tune_$logits.json"
    done
    part masks 130 python3 benchmarks/loss_kernels.py --device $device "${masks[@]}" \
        --only "bare,ours,naive,liger,cce" --out '$OUT/loss_masks.json'
    part bf16 200 python3 benchmarks/train_step.py --device $device "${step[@]}" --limit LIMIT \
        --only "adaptive, compiled" "${bf16[@]}" --out '$OUT/train_step_bf16.json'
}

line() { # line SECONDS COMMAND...: as it is typed
    local seconds=$1 text="timeout -k 10 $1" word
    shift
    for word in "$@"; do
        [ "$word" = LIMIT ] && word=$((seconds - 30))
        [[ $word == *[\ \;]* ]] && word="\"$word\""
        text+=" $word"
    done
    echo "$text"
}
if [ "$mode" = --print ]; then
    part() { echo "$(line "${@:2}") 2>&1 | tee -a \$OUT/suite.log"; }
    for number in ${commands//,/ }; do
        echo "# $number"
        command_$number
    done
    exit 0
fi

mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$here" || exit 1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
: >"$out/suite.log"
say() { echo "$*" | tee -a "$out/suite.log"; }
if [ $device = cuda ]; then
    query='import torch; print(torch.__version__, torch.cuda.get_device_name())'
    gpu=$("$python" -c "$query") || { echo "no GPU; --rehearse needs none" >&2; exit 1; }
    say "$gpu"
fi

failed=() summary=() shares=0 ends=0
wanted() { [[ -z $parts || ",$parts," == *",$1,"* || ",$parts," == *",${1%_*},"* ]]; }
count() { ! wanted "$1" || shares=$((shares + $2)); }
run() {
    local name=$1 share=$2 start=$SECONDS result=passed limit words=() word
    shift 2
    wanted $name || return 0
    limit=$(((ends - SECONDS) * share / shares)) shares=$((shares - share))
    [ $limit -gt 0 ] || limit=1
    for word in "$@"; do
        word=${word//\$OUT/$out}
        [ "$word" = LIMIT ] && word=$((limit > 60 ? limit - 30 : limit / 2 + 1))
        [ "$word" = python3 ] && word=$python
        words+=("$word")
    done
    say "== $name (at most $limit s)"
    # killed 10 s later where it does not heed the request to end: a hang must not eat the others
    timeout -k 10 $limit "${words[@]}" 2>&1 | tee -a "$out/suite.log" || result=FAILED
    [ $result = passed ] || failed+=("$name")
    summary+=("$(printf '%-14s%5d s  %s' $name $((SECONDS - start)) $result)")
    say "== ${summary[-1]}"
}
for number in ${commands//,/ }; do
    shares=0 ends=$((SECONDS + budget))
    part() { count "$@"; }
    command_$number
    part() { run "$@"; }
    command_$number
done

say "== $SECONDS s in all"
for text in "${summary[@]}"; do say "$text"; done
[ ${#failed[@]} -eq 0 ] && say "all parts passed: $out" && exit 0
say "failed: ${failed[*]}; see $out/suite.log"
exit 1
