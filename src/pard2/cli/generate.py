"""`pard2 generate`: one prompt, one answer, and how it came about."""

import json
from typing import Annotated

import typer

from pard2.cli.console import print_note, working
from pard2.cli.options import (
    DeviceOption,
    DraftOption,
    DraftTokensOption,
    DtypeOption,
    JsonOption,
    MethodOption,
    TargetOption,
    choose_draft,
    parse_draft_tokens,
)


def generate(
    target: TargetOption,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="What to say to the model.")],
    draft: DraftOption = None,
    method: MethodOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer, in tokens.")] = 128,
    draft_tokens: DraftTokensOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of the answer, for measurements.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt: the target's own greedy text, faster."""
    asked = parse_draft_tokens(draft_tokens)
    with working("importing torch"):
        from pard2.engine.engine import Engine
        from pard2.engine.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_new_tokens, ignore_eos=ignore_eos)
    with working(f"loading {target}"):
        engine = Engine.from_pretrained(target, choose_draft(target, draft, method), method, dtype, device, asked)
    with working("generating"):
        (completion,) = engine.generate([prompt], params, raw=raw)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "text": completion.text,
                    "token_ids": completion.token_ids,
                    "prompt_tokens": completion.prompt_tokens,
                    "completion_tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                    "method": completion.method,
                    "stats": completion.stats.as_dict(),
                },
                ensure_ascii=False,
            )
        )
        return
    typer.echo(completion.text if completion.text is not None else " ".join(map(str, completion.token_ids)))
    stats = completion.stats
    print_note(
        f"{completion.method}: {len(completion.token_ids)} tokens ({completion.finish_reason}) after a prompt of {completion.prompt_tokens}; "
        f"{stats.cycles} cycles of {stats.acceptance_length:.2f} tokens, {stats.tokens_per_second:.1f} tokens/s"
    )
