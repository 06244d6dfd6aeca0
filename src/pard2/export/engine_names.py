"""The engines that a draft can be exported for, in a file that imports nothing heavy."""

from typing import Literal, get_args

EngineName = Literal["vllm", "sglang", "tensorrt-llm", "speculators"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
