#!/bin/sh
# The embedded draft for SmolLM2-135M-Instruct, from public prompts to weights:
#
#   sh recipes/smollm2.sh train_prompts.jsonl
#
# Goes on where it was stopped. Two cores: about five hours without bfloat16 arithmetic, two with it, by the pace of the runs that made the
# shipped draft. Needs `pip install -e '.[demo,train]'`.
set -e
export OMP_NUM_THREADS=1
answer="pard2 data regenerate -t smollm2 --max-new-tokens 128 --batch-size 64"
train="torchrun --nproc-per-node 2 -m pard2 train"  # on two cores, faster than one process with two threads

mkdir -p data
python recipes/smollm2_prompts.py "$1" --output data/prompts.jsonl
pard2 data synthesize -t smollm2 -n 1000 -o data/own.jsonl --max-new-tokens 96 --batch-size 64
$answer -i data/prompts.jsonl -o data/answers.jsonl
$answer -i data/own.jsonl -o data/answers-own.jsonl
$answer -i data/prompts-sampled.jsonl -o data/answers-sampled.jsonl --temperature 1

$train recipes/smollm2-start.yaml
$train recipes/smollm2.yaml
$train recipes/smollm2-long.yaml
