"""What the recipes take, computed from the shapes of their models: memory by part, disk,
and floating-point operations.

Only the models' shapes matter, so their configs are written from the numbers below and no hub is asked. The
conversations stand for real ones: texts of which half the tokens are an answer, in lengths up to the
recipe's. Time is operations over 40 % of an H100's 989 TFLOP/s (bfloat16, dense).

    python benchmarks/recipe_plans.py --json docs/results/recipe_plans.json
"""

import argparse
import random
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from pard2.bench.result_file import write_result
from pard2.config_file import load_config
from pard2.data.records import RecordWriter
from pard2.environment import meta
from pard2.train.dry_run import dry_run

# As in their config.json on the hub: architecture, vocabulary, hidden, intermediate, layers, heads,
# key-value heads, head_dim, tied
SHAPES = {
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "Qwen/Qwen3-8B": ("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "Qwen/Qwen3-0.6B": ("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, True),
}
NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
RECIPES = ("llama-3.1-8b", "llama-3.1-8b-pard", "llama-3.1-8b-eagle3", "qwen3-8b", "qwen3-8b-pard", "qwen3-8b-eagle3", "qwen3-8b-pruned")
H100 = 0.4 * 989e12
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}\u0120{% endif %}{% endfor %}"


def write_model(name: str, directory: Path) -> Path:
    """A directory with the config of a model and a tokenizer of bytes."""
    architecture, *numbers, tied = SHAPES[name]
    config = AutoConfig.for_model(architecture, **dict(zip(NAMES, numbers, strict=True)), max_position_embeddings=32768, tie_word_embeddings=tied)
    config.save_pretrained(directory)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return directory


def write_conversations(path: Path, longest: int) -> None:
    """500 of them, a letter a token; half of each is an answer."""
    draw = random.Random(0)
    with RecordWriter(path) as writer:
        for number in range(500):
            half = draw.randint(longest // 8, longest // 2 - 4)
            messages = [{"role": "user", "content": "u" * half}, {"role": "assistant", "content": "a" * half}]
            writer.write([{"id": str(number), "messages": messages}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", type=Path, default=[Path(f"recipes/{name}.yaml") for name in RECIPES])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about, results = meta(), []
    with tempfile.TemporaryDirectory() as folder:
        models_at = {name: write_model(name, Path(folder) / name) for name in SHAPES}
        for recipe in args.recipes:
            config = load_config(recipe)
            data = Path(folder) / f"{recipe.stem}.jsonl"
            write_conversations(data, config.data.max_length)
            changes = [
                f"target.name={models_at[config.target.name]}",
                f"data.train=[{data}]",
                "data.evaluation=null",
                "data.chat_template_kwargs=null",
                f"loop.output={folder}/run",
            ]
            if config.draft.path is not None:
                changes.append(f"draft.path={models_at[config.draft.path]}")
            plan = dry_run(load_config(recipe, changes))
            seconds = plan.work.flops / H100
            tokens = plan.data.tokens / plan.data.rows * plan.rows_per_step
            results.append(
                {
                    "recipe": recipe.stem,
                    "memory_bytes": plan.memory.as_dict(),
                    "checkpoint_bytes": plan.disk.checkpoint,
                    "flops_per_step": plan.work.flops,
                    "tokens_per_step": round(tokens),
                    "slots_per_row": round(plan.data.slots),
                    "seconds_per_step_one_h100": round(seconds, 2),
                    "hours_per_10m_tokens_one_h100": round(seconds * 1e7 / tokens / 3600, 2),
                }
            )
            print(results[-1])
    write_result(args.json, about, results, assumptions="40 % of 989 TFLOP/s; half of each conversation is an answer")


if __name__ == "__main__":
    main()
