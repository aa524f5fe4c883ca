#!/usr/bin/env bash
# Fifteen minutes of a GPU, in stages that print and save as they end, the most telling first, each bounded in time.
#
#   bash experiments/gpu/quarter_hour.sh [STAGE ...]       correctness speed fits science; all of them by default
#   SMOKE=1 bash experiments/gpu/quarter_hour.sh           every stage, tiny, on any machine: a dry run
#
# Needs python3 with jax for the device, flax, optax, orbax, tokenizers, xarray, pyarrow and rich, and gpu-bundle/ (make
# gpu-bundle). Results go to $OUT (default runs/gpu): a log a stage, and the two surfaces of the science, .tar.gz.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
SMOKE=${SMOKE:-}
mkdir -p "$OUT"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# The wheels are for Python 3.12, and only where it lacks them.
"$PYTHON" -c 'import grain, jaxopt, tyro' 2>/dev/null || PYTHONPATH="$PYTHONPATH:$PWD/gpu-bundle/site"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # stages are processes of their own, and ask for what they need
failed=0

stage() { # name, seconds, command ...: its output is kept, and what it exits with
    local name=$1 seconds=$((${SMOKE:+10 *} $2)) begin=$SECONDS
    shift 2
    echo "== $name (at most $seconds s)"
    timeout --signal=INT --kill-after=20 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log"
    local code=${PIPESTATUS[0]}
    echo "== $name: exit code $code after $((SECONDS - begin)) s"
    [ "$code" = 0 ] || failed=$((failed + 1))
}

correctness() { stage correctness 120 "$PYTHON" experiments/gpu/correctness.py ${SMOKE:+--tiny}; }

speed() {
    if [ -n "$SMOKE" ]; then
        stage speed-smoke 240 "$PYTHON" experiments/benchmarks/gpu_train.py --piece smoke
        return
    fi
    for piece in 124m 10m 468m 1.2b; do
        stage "speed-$piece" 75 "$PYTHON" experiments/benchmarks/gpu_train.py --piece "$piece" --vocabularies 50304
    done
}

fits() {
    local small=(--curves 65536 --points 64)
    [ -n "$SMOKE" ] || small=()
    stage fits 75 "$PYTHON" experiments/benchmarks/gpu_fit.py "${small[@]}"
}

# The paper's smallest size, at its context: 200 M tokens of four kinds of text, 40 evaluations by overlapping windows,
# under a cosine and under WSD. Passes over the text are counted in the log.
science() {
    local size=(--model.preset 9.8m --context 1024 --batch-size 64 --tokens 200000000 --evaluations 40)
    local windows=(--evaluation.id-stretches 256 --evaluation.id-offsets 32 --evaluation.ood-stretches 128
        --evaluation.ood-offsets 16 --evaluation-batch 64)
    local seconds=240
    if [ -n "$SMOKE" ]; then
        size=(--model.preset tiny --context 32 --batch-size 4 --tokens 2000 --evaluations 4)
        windows=(--evaluation.id-stretches 4 --evaluation.id-offsets 4 --evaluation.ood-stretches 4 --evaluation.ood-offsets 2)
    fi
    for schedule in cosine wsd; do
        stage "science-$schedule" $seconds "$PYTHON" -m tsl_jax.cli train --out "$OUT/run-$schedule" \
            --data.corpus gpu-bundle/corpus --text dictionary@0.4 linux@0.35 cloud@0.25 perl@0 \
            --model.dtype bfloat16 --optimizer.schedule "$schedule" --optimizer.peak-lr 3e-3 --optimizer.beta2 0.95 \
            --keep 1 "${size[@]}" "${windows[@]}"
        tar -C "$OUT/run-$schedule" -czf "$OUT/surface-$schedule.tar.gz" surface record.json config.yaml metrics.jsonl
    done
}

[ -d gpu-bundle/corpus ] && [ -d gpu-bundle/site ] || "$PYTHON" experiments/gpu/unpack.py || exit 1
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
for name in "${@:-all}"; do
    case $name in
        correctness | speed | fits | science) "$name" ;;
        all) correctness; speed; fits; science ;;
        *) echo "expected correctness, speed, fits or science, found $name"; exit 2 ;;
    esac
done
echo "$failed stages failed; results in $OUT"
exit $((failed > 0))
