"""A run that stops before its first step: everything is read but the weights of both models."""

import dataclasses

from pard2.config import TrainConfig
from pard2.data.records import read_records
from pard2.train.evaluate import check_evaluation, held_out_prompts
from pard2.train.plan import Plan, make_plan
from pard2.train.run_checkpoint import check_output
from pard2.train.stand_ins import absent, planned_examples, planned_pair


def dry_run(config: TrainConfig) -> Plan:
    """The plan of a run, with an estimate of its time on this machine.

    Only configs, tokenizers and conversations are read; nothing is written. What is not there is planned with
    `target.shape`, `draft.shape` and `data.expected_tokens`, where the run has them, and told in the plan.

    Raises `Pard2Error` for what the run itself would refuse, as far as can be told without weights.
    """
    check_output(config)
    check_evaluation(config)
    missing: list[str] = []
    target, draft = planned_pair(config, missing)
    examples = planned_examples(config, target, draft, missing)
    held_out = config.data.evaluation
    if held_out is not None and config.data.expected_tokens is not None and (why := absent(held_out)):
        missing.append(f"data.evaluation: {why}")
    elif held_out is not None and target.tokenizer is not None:
        records = read_records(held_out)[: config.loop.evaluation_prompts]
        held_out_prompts(target, records, config.data.chat_template_kwargs, examples)
    return dataclasses.replace(make_plan(config, target, draft, examples, measure=True), missing=tuple(missing))
