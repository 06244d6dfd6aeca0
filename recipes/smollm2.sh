#!/bin/sh
# The embedded draft for SmolLM2-135M-Instruct, from public prompts to weights:
#
#   sh recipes/smollm2.sh train_prompts.jsonl
#   sh recipes/smollm2.sh train_prompts.jsonl small     # every step in small, within minutes, in small/: does it work here?
#
# train_prompts.jsonl, yours: {"id": .., "source": .., "messages": [..]} a line. `source` gsm8k: word problems; mbpp: tasks with tests ("Your code
# should pass these tests:"); others are taken as they are.
#
# Writes to data/ and runs/ beside the recipes, and goes on where it was stopped. Two cores: about seven hours without bfloat16 arithmetic, four with
# it, by the pace of the runs that made the shipped draft. Needs what `make demo` installs, and `pip install -e '.[train]'`.
set -e
export OMP_NUM_THREADS=1
prompts=$(realpath "$1")
recipes=$(realpath "$(dirname "$0")")
answer="pard2 data regenerate -t smollm2 --max-new-tokens 128 --batch-size 64"
train="torchrun --nproc-per-node 2 -m pard2 train"  # on two cores, faster than one process with two threads
own=2500 counts="" little="" little_vocabulary="" more="loop.steps=520 loop.evaluate_every=260"
if [ "$2" = small ]; then
    mkdir -p small/recipes && cp "$recipes"/* small/recipes && recipes=$(realpath small/recipes)  # their paths lead from there
    own=8 counts="--held-out 2 --plain 24 --sampled 4 --steps 4 --other 4 --functions 4 --mathematics 4" more=""
    little="loop.steps=2 loop.rows_per_step=2 optimizer.warmup_steps=1" little_vocabulary="draft.vocabulary_size=256"
fi

cd "$recipes/.." && mkdir -p data
python "$recipes/smollm2_prompts.py" "$prompts" --output data/prompts.jsonl $counts
pard2 data synthesize -t smollm2 -n $own -o data/own.jsonl --max-new-tokens 96 --batch-size 64
$answer -i data/prompts.jsonl -o data/answers.jsonl
$answer -i data/own.jsonl -o data/answers-own.jsonl
$answer -i data/prompts-sampled.jsonl -o data/answers-sampled.jsonl --temperature 1

$train "$recipes/smollm2-start.yaml" $little $little_vocabulary
$train "$recipes/smollm2.yaml" $little
$train "$recipes/smollm2-long.yaml" $little $little_vocabulary
$train "$recipes/smollm2-long.yaml" draft.path=runs/smollm2-long/draft loop.output=runs/smollm2-longer $more $little $little_vocabulary
