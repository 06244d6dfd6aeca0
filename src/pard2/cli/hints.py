"""What an option is called here that other programs call by another name."""

from collections.abc import Iterable
from typing import Any

from pard2.errors import Pard2Error

# Our options, and what transformers, vLLM, llama.cpp and other programs call them.
_FOREIGN = {
    "--target": ("--model", "--model-id", "--model-path", "--model-name", "--base-model", "--target-model"),
    "--draft": ("--draft-model", "--model-draft", "--speculative-model", "--assistant-model"),
    "--max-new-tokens": ("--max-tokens", "--max-new", "--n-predict", "--num-predict", "--predict", "--output-len"),
    "--draft-tokens": (
        "--num-speculative-tokens",
        "--speculative-tokens",
        "--num-draft-tokens",
        "--draft-max",
        "--prompt-lookup-num-tokens",
        "--k",
        "-k",
    ),
    "--ngram-min": ("--prompt-lookup-min",),
    "--ngram-max": ("--prompt-lookup-max", "--max-matching-ngram-size"),
    "--temperature": ("--temp", "-T"),
    "--n": ("-n", "--num-return-sequences", "--num-completions", "--best-of"),
    "--repetition-penalty": ("--repeat-penalty",),
    "--batch-size": ("--batch", "-b", "--max-batch", "--max-batch-size", "--max-num-seqs", "--concurrency"),
    "--dtype": ("--torch-dtype", "--precision"),
    "--weights": ("--quantization", "--quantize", "--load-in-8bit"),
    "--cache-tokens": ("--ctx-size", "-c", "--max-model-len", "--n-ctx"),
    "--prompt-file": ("-f", "--file"),
    "--suites": ("-f", "--file", "--dataset", "--datasets", "--tasks", "--suite"),
    "--input": ("-f", "--file", "--dataset", "--prompts"),
    "--system": ("--system-prompt",),
    "--output": ("--out", "--output-dir", "--output-path", "--output-file"),
    "--version": ("-v", "-V"),
}


def no_such_option(name: str, near: Iterable[str], options: Iterable[Any], command: str) -> Pard2Error:
    """One line: what the command calls this option, else what looks like it.

    near: options that look like it
    options: of the command
    command: as it was called
    """
    own = {flag: option.opts for option in options for flag in option.opts if flag.startswith("-")}
    asked = name.replace("_", "-")
    ours = next((one for one, names in _FOREIGN.items() if one in own and (asked in names or asked == one)), None)
    if ours is not None:
        return Pard2Error(f"no such option: {name}; here it is {'/'.join(own[ours])}")
    alike = ", ".join(sorted(set(near) - {"--help"}))
    return Pard2Error(f"no such option: {name}; {f'did you mean {alike}?' if alike else f'{command} --help lists them'}")
