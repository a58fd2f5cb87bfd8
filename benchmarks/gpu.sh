#!/usr/bin/env bash
# What only a GPU can show, in three commands of less than ten minutes each, on a machine with one GPU:
#   benchmarks/gpu.sh correct   a GPU computes what a CPU computes; the program runs, is killed, goes on, runs out of memory
#   benchmarks/gpu.sh two       two ranks on the one GPU, over gloo and over NCCL: layouts agree, a lost rank is named
#   benchmarks/gpu.sh speed     seconds a step, share of the peak, memory against the estimate, and a trace of two steps
# They leave logs and tables in $OUT (gpu-results/ without it). A machine without network gets what it lacks beforehand:
#   benchmarks/gpu.sh carry     wheels for its Python into .gpu-wheels/, about 30 MB; copy the folder along (PYTHON_VERSION=3.12)
# LIMOE_TEST_DEVICE=cpu rehearses the first two without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-gpu-results}
WHEELS=.gpu-wheels
mkdir -p "$OUT"
export OMP_NUM_THREADS=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

# What is installed here, with all that it needs, but for torch and what comes with any machine that has it: a line each.
pins() {
  .venv/bin/python - "$@" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, distribution
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
there = {"torch", "numpy", "pillow", "pyyaml", "psutil", "setuptools", "ninja", "packaging", "typing-extensions", "rich"}
found, open_names = {}, sys.argv[1:]
while open_names:
    name = canonical(open_names.pop())
    if name in found or name in there:
        continue
    try:
        package = distribution(name)
    except PackageNotFoundError:
        continue  # for another Python or system
    found[name] = package.version
    needs = map(Requirement, package.requires or [])
    open_names += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
print("\n".join(f"{name}=={version}" for name, version in sorted(found.items())))
PY
}

carry() {
  local pin wheel=() source=() version=${PYTHON_VERSION:-3.12}
  [ -x .venv/bin/python ] || { echo "make setup first: what is carried is what is installed"; return 1; }
  for pin in $(pins deepspeed fairscale hydra-core wandb webdataset); do
    case $pin in deepspeed=* | fairscale=* | antlr4-*) source+=("$pin") ;; *) wheel+=("$pin") ;; esac
  done
  rm -rf "$WHEELS"
  .venv/bin/pip download -q --no-deps --only-binary=:all: --python-version "$version" --platform manylinux2014_x86_64 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -d "$WHEELS" "${wheel[@]}" &&
    DS_BUILD_OPS=0 .venv/bin/pip wheel -q --no-deps --no-build-isolation -w "$WHEELS" "${source[@]}" && du -sh "$WHEELS"
}

# The Python to use: the project's own, or the machine's with what was carried.
python_here() {
  if [ -n "${PYTHON:-}" ]; then echo "$PYTHON"; return; fi
  if [ -x .venv/bin/python ]; then echo .venv/bin/python; return; fi
  local home=${TMPDIR:-/tmp}/limoe-gpu
  if [ ! -x "$home/bin/python" ]; then
    python3 -m venv --without-pip "$home" >&2 || return 1
    # What the machine has, also if its Python is an environment itself.
    python3 -c 'import site, sys; print("\n".join(p for p in sys.path if p.endswith("-packages")))' > \
      "$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
    python3 -m pip --python "$home/bin/python" install -q --no-index --no-deps --find-links "$WHEELS" "$WHEELS"/*.whl >&2 || return 1
  fi
  echo "$home/bin/python"
}

# tests NAME FILES…: their log, and one line for the end.
tests() {
  local name=$1; shift
  timeout 560 "$PY" -m pytest -p no:cacheprovider --timeout 300 -rs -o addopts="-q --strict-markers" "$@" > "$OUT/$name.log" 2>&1
  local code=$?
  echo "$name: $(tail -n 1 "$OUT/$name.log") (exit $code; $OUT/$name.log)"
  [ $code = 0 ] || { grep -E "^(FAILED|ERROR|E  )" "$OUT/$name.log" | head -n 40; FAILED=1; }
}

facts() {
  "$PY" - <<'PY' | tee "$OUT/machine.txt"
import platform, torch
on = torch.cuda.is_available()
print(platform.python_version(), "torch", torch.__version__, torch.cuda.get_device_name(0) if on else "no GPU",
      "NCCL", ".".join(map(str, torch.cuda.nccl.version())) if on else "-")
PY
}

FAILED=0
case ${1:-} in
  carry) carry; exit ;;
  correct | two | speed) PY=$(python_here) || exit 1; facts || exit 1 ;;
  *) sed -n 2,9p "$0"; exit 2 ;;
esac
LAYOUTS="tests/distributed/test_layouts.py tests/distributed/test_nonfinite.py"
case $1 in
  correct)
    tests numbers tests/gpu/test_numbers.py
    tests run tests/gpu/test_run.py -k "not two_ranks and not a_rank"
    LIMOE_TEST_DEVICE=${LIMOE_TEST_DEVICE:-cuda} tests one tests/distributed/test_compile.py -k "one"
    ;;
  two)
    export LIMOE_TEST_DEVICE=${LIMOE_TEST_DEVICE:-cuda}
    LIMOE_TEST_BACKEND=gloo tests gloo $LAYOUTS tests/distributed/test_pieces.py tests/distributed/test_checkpoint.py -k "not world4"
    export LIMOE_TEST_BACKEND=nccl
    [ "$LIMOE_TEST_DEVICE" = cpu ] || tests nccl $LAYOUTS -k "not world4"
    tests failures tests/gpu/test_run.py -k "two_ranks or a_rank"
    ;;
  speed)
    "$PY" tests/gpu/start.py trainer.bench step 2>&1 | tee "$OUT/step.log" || FAILED=1
    "$PY" tests/gpu/start.py trainer.bench layer 2>&1 | tee "$OUT/layer.log" || FAILED=1
    cp -f benchmarks/step*.md benchmarks/layer*.md "$OUT" 2> /dev/null
    "$PY" tests/gpu/start.py trainer.train experiment=limoe_b16 data=shapes data.shapes_train=4096 model.text_length=64 train.batch_size=256 \
      train.steps=12 train.profile=10:11 parallel.expert_parallel=1 eval.zeroshot={} eval.fewshot={} eval.retrieval=false checkpoint.every_steps=null \
      log.every=1 log.wandb=disabled run.dir="$OUT/b16" > "$OUT/b16.log" 2>&1 || { tail -n 5 "$OUT/b16.log"; FAILED=1; }
    tail -n 3 "$OUT/b16/metrics.jsonl" | cut -c 1-600
    ;;
esac
exit $FAILED
