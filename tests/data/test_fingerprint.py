"""Hashes: equal for what tokenises alike, different for what does not."""

import pytest

from chat_tokenizer import CHATML, byte_tokenizer
from pard2.data.fingerprint import template_hash, tokenizer_hash


def test_they_do_not_depend_on_the_process():
    """Python's own hashes and the order of sets differ between processes, and so would a cache's name."""
    assert tokenizer_hash(byte_tokenizer()).startswith("796b0facbcdfcc3e")
    assert template_hash(byte_tokenizer()).startswith("9954c4b908057895")


def test_a_template_changes_only_its_own_hash():
    one, other = byte_tokenizer(CHATML), byte_tokenizer(CHATML + " ")
    assert template_hash(one) != template_hash(other)
    assert tokenizer_hash(one) == tokenizer_hash(other)
    assert template_hash(byte_tokenizer(None)) == template_hash(byte_tokenizer(None)) != template_hash(one)


@pytest.mark.parametrize("change", ["token", "special"])
def test_another_vocabulary_or_special_token_is_another_tokenizer(change):
    tokenizer = byte_tokenizer()
    before = tokenizer_hash(tokenizer)
    if change == "token":
        tokenizer.add_tokens(["word"])
    else:
        tokenizer.pad_token = "<|start|>"
    assert tokenizer_hash(tokenizer) != before


def test_saving_and_loading_keep_them(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert (tokenizer_hash(loaded), template_hash(loaded)) == (tokenizer_hash(tokenizer), template_hash(tokenizer))
