"""Training from a feature cache: the states are the same, wherever they come from."""

import json
from pathlib import Path

import pytest
import torch
from train_runs import assert_bit_for_bit, weights

from pard2.data import state_cache
from pard2.errors import Pard2Error
from pard2.train.loop import train
from pard2.train.run_checkpoint import load_checkpoint


def test_a_cache_changes_nothing_however_it_was_filled(make_config, quiet, tmp_path):
    """Generated on the way, read from disk, or generated each time: a run may be killed
    and go on with any of them."""
    cache = str(tmp_path / "cache")
    runs = {
        "filling": {"cache": cache},
        "reading": {"cache": cache, "on_missing": "raise"},
        "forgetting": {"cache": str(tmp_path / "none"), "on_generate": "delete"},
    }
    outputs = {name: str(tmp_path / name) for name in [*runs, "online"]}
    for name, features in runs.items():
        train(make_config(features=features, loop={"output": outputs[name]}), quiet)
        assert_bit_for_bit(outputs["filling"], outputs[name])
    assert len(list(Path(cache).glob("states-*.safetensors"))) == 1 and not (tmp_path / "none").exists()
    train(make_config(loop={"output": outputs["online"]}), quiet)
    cached, online = weights(outputs["filling"]), weights(outputs["online"])
    for name in cached:
        if not name.startswith("optimizer"):  # which magnifies rounding: online, conversations share padded passes
            torch.testing.assert_close(cached[name], online[name], rtol=1e-2, atol=1e-4)


def test_a_cache_of_more_hidden_states_serves_runs_of_several_methods(make_config, quiet, tmp_path):
    """PARD-2's and EAGLE-3's features are others; each run ends as with a cache of its own."""
    shared = str(tmp_path / "shared")
    train(make_config(features={"cache": shared, "layers": [1, 2, 3]}, loop={"output": str(tmp_path / "first")}), quiet)
    for method, layers in (("eagle3", [2, 1, 3]), ("pard2", [-2, -1])):
        outputs = []
        for name, features in (("shared", {"cache": shared, "on_missing": "raise"}), ("own", {"cache": str(tmp_path / f"own-{method}")})):
            config = make_config(method, draft={"target_layers": layers}, features=features, loop={"output": str(tmp_path / f"{method}-{name}")})
            train(config, quiet)
            outputs.append(config.loop.output)
        assert_bit_for_bit(*outputs)
    with pytest.raises(Pard2Error, match=r"was made by hidden states \[-1, -2, -3\], and the draft wants \[-1, -4\]"):
        train(make_config(draft={"target_layers": [-1, 0]}, features={"cache": shared}, loop={"output": str(tmp_path / "none")}), quiet)


def test_a_resumed_run_goes_on_with_the_cache_that_it_left(make_config, quiet, tmp_path, monkeypatch):
    """The shard that was being gathered is lost, and made again with other conversations around it."""
    whole = make_config(features={"cache": str(tmp_path / "one")}, loop={"output": str(tmp_path / "whole")})
    train(whole, quiet)
    monkeypatch.setattr(state_cache, "_SHARD_BYTES", 1)  # conversation by conversation
    parts = make_config(features={"cache": str(tmp_path / "two")}, loop={"output": str(tmp_path / "parts")})
    generate, count = state_cache.StateCache.generate, 0

    def failing(self, example):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return generate(self, example)

    with monkeypatch.context() as patch:
        patch.setattr(state_cache.StateCache, "generate", failing)
        with pytest.raises(KeyboardInterrupt):
            train(parts, quiet)
    checkpoint = load_checkpoint(tmp_path / "parts" / "checkpoints", parts)
    assert len(list((tmp_path / "two").glob("states-*.safetensors"))) == 3 and (checkpoint is None or checkpoint.progress.done < 6)
    train(parts, quiet)
    assert_bit_for_bit(str(tmp_path / "whole"), str(tmp_path / "parts"))


def test_missing_conversations_stop_or_shorten_a_run(make_config, quiet, tmp_path):
    cache = str(tmp_path / "cache")
    train(make_config(features={"cache": cache}), quiet)
    raising, skipping = (
        make_config(features={"cache": cache, "on_missing": policy}, loop={"output": str(tmp_path / policy)}) for policy in ("raise", "skip")
    )
    messages = [{"role": "user", "content": "new"}, {"role": "assistant", "content": "never seen"}]
    with open(tmp_path / "data.jsonl", "a") as file:
        file.write(json.dumps({"id": "new", "messages": messages}) + "\n")
    with pytest.raises(Pard2Error, match="lacks record new; fill it with `pard2 data cache`"):
        train(raising, quiet)
    train(skipping, quiet)
    assert_bit_for_bit(str(tmp_path / "run"), str(tmp_path / "skip"))
