"""Two examples for the help of each command."""

EXAMPLES = {
    "demo": ("pard2 demo", "pard2 demo --max-new-tokens 200 --draft-tokens 4"),
    "generate": (
        'pard2 generate -t smollm2 -p "Why is the sky blue?"',
        "pard2 generate -t TARGET -d DRAFT --prompts prompts.jsonl --json",
    ),
    "chat": ("pard2 chat -t smollm2", 'pard2 chat -t TARGET -d DRAFT --system "Be brief."'),
    "serve": ("pard2 serve -t smollm2", "pard2 serve -t TARGET -d DRAFT --host 0.0.0.0 --batch-size 8"),
    "train": ("pard2 train recipes/smollm2-start.yaml --dry-run", "pard2 train recipes/smollm2-start.yaml optimizer.lr=1e-4"),
    "verify": ("pard2 verify -t smollm2", "pard2 verify -t TARGET -d DRAFT --dtype bfloat16"),
    "bench": (
        "pard2 bench -t smollm2 -s gsm8k,humaneval --prompts 10",
        "pard2 bench -t TARGET -d old=DIR -d new=DIR -s mine.jsonl --format csv",
    ),
    "bench compare": ("pard2 bench compare before.json after.json", "pard2 bench compare before.json after.json --json"),
    "report": ("pard2 report results.json --html report.html", "pard2 report old.json new.json --html report.html --png pictures"),
    "predict": (
        "pard2 predict result.json --batch-size 1,4",
        "pard2 predict result.json -m pard2-td --times docs/results/gpu.json",
    ),
    "draft init": (
        "pard2 draft init -t TARGET --layers 4 -o draft",
        "pard2 draft init -t TARGET --layers 0,9,19,29 --mask-token 151670 -o draft",
    ),
    "draft info": ("pard2 draft info smollm2", "pard2 draft info DRAFT -t TARGET"),
    "export": (
        "pard2 export smollm2 --to vllm -t smollm2 -o draft",
        "pard2 export runs/eagle3/best --to speculators -o draft",
    ),
    "card": (
        "pard2 card DRAFT --results results.json",
        "pard2 card smollm2 --results cpu.json gpu.json -o README.md",
    ),
    "data synthesize": (
        "pard2 data synthesize -t smollm2 -n 500 -o prompts.jsonl",
        "pard2 data synthesize -t TARGET -n 5000 -o prompts.jsonl --temperature 0.8",
    ),
    "data regenerate": (
        "pard2 data regenerate -t smollm2 -i prompts.jsonl -o answers.jsonl",
        "pard2 data regenerate -t TARGET -i org/prompts -o answers.jsonl",
    ),
    "data preview": ("pard2 data preview answers.jsonl -t smollm2", "pard2 data preview answers.jsonl -t TARGET -n 10"),
    "data prepare": (
        "pard2 data prepare answers.jsonl -t smollm2 -o prepared",
        "pard2 data prepare answers.jsonl -t TARGET -o prepared --max-length 2048",
    ),
    "data cache": (
        "pard2 data cache recipes/smollm2-start.yaml features.cache=states",
        "pard2 data cache run.yaml features.cache=/mnt/states",
    ),
    "data split": (
        "pard2 data split -i all.jsonl -n 16 -o prompts.jsonl --held-out held-out.jsonl",
        "pard2 data split -i org/prompts -n 100 -o some.jsonl --held-out held-out.jsonl",
    ),
    "env": ("pard2 env", "pard2 env --json"),
}
