"""A run that stops before its first step, without the weights of either model: everything is read but those."""

from pard2.config import TrainConfig
from pard2.data.records import read_records
from pard2.train.evaluate import held_out_prompts
from pard2.train.initial import run_examples, weightless_pair
from pard2.train.plan import Plan, make_plan


def dry_run(config: TrainConfig) -> Plan:
    """The plan of a run, with an estimate of its time on this machine. Only configs, tokenizers and conversations are read; nothing is written.

    Raises `Pard2Error` for what the run itself would refuse, as far as can be told without weights.
    """
    target, draft = weightless_pair(config)
    examples = run_examples(config, target, draft)
    if config.data.evaluation is not None:
        held_out_prompts(target, read_records(config.data.evaluation)[: config.loop.evaluation_prompts])
    return make_plan(config, target, draft, examples, measure=True)
