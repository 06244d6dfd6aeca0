"""A run that stops before its first step, without the weights of either model: everything is read but those."""

import torch

from pard2.config import TrainConfig
from pard2.data.examples import load_examples
from pard2.data.records import read_records
from pard2.errors import Pard2Error
from pard2.models.weightless import weightless_target
from pard2.train.evaluate import held_out_prompts
from pard2.train.initial import initial_draft
from pard2.train.plan import Plan, make_plan


def dry_run(config: TrainConfig) -> Plan:
    """The plan of a run, with an estimate of its time on this machine. Only configs, tokenizers and conversations are read; nothing is written.

    Raises `Pard2Error` for what the run itself would refuse, as far as can be told without weights.
    """
    target = weightless_target(config.target.name)
    if target.tokenizer is None:
        raise Pard2Error(f"{config.target.name!r} has no tokenizer, which training needs")
    with torch.device("meta"):
        draft = initial_draft(config, target)
    examples = load_examples(config.data.train, target.tokenizer, target.eos_token_ids, config.data.max_length, config.data.on_long)
    if config.data.evaluation is not None:
        held_out_prompts(target, read_records(config.data.evaluation)[: config.loop.evaluation_prompts])
    return make_plan(config, target, draft, examples, measure=True)
