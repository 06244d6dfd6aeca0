"""A byte-level tokenizer with chat templates: every text can be said, and a token can be seen."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

START, END = "<|start|>", "<|end|>"
# As in most chat models: role, text, end-of-turn token, and a newline that nobody generates.
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
VOCABULARY = 259  # 256 bytes, two special tokens, and one padding row that no text contains
END_ID, MASK_ID = 257, 258


def byte_tokenizer(template: str | None = CHATML, merges: Sequence[tuple[str, str]] = (), special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes.

    merges: pairs of letters of the byte alphabet that become one token wherever they meet.
    special: tokens beside START and END.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) + [one + other for one, other in merges]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (START, END, *special)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, additional_special_tokens=[START, *special])
    fast.chat_template = template
    return fast
