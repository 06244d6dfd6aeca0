"""EAGLE-3 drafting written as plainly as possible: no cache, no batch, no tree masks; every proposal is
computed from the whole text, with features that transformers itself records (METHOD: sections 5 and 8)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [N, heads, D], each pair of halves turned by its position."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * theta ** -(torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


@dataclass
class PlainEagle3:
    """The draft of a target, and what it would propose after any text."""

    target: Target
    draft: Eagle3Draft

    def features(self, text: list[int]) -> Tensor:
        """g [N, hidden] of every token of the text."""
        spec, draft, eps = self.draft.spec, self.draft, self.draft.config.rms_norm_eps
        states = self.target.model(input_ids=torch.tensor([text]), output_hidden_states=True).hidden_states
        chosen = [states[layer][0] for layer in spec.target_layers]
        if draft.fc_norm is not None:
            chosen = [norm(state, one.weight, eps) for state, one in zip(chosen, draft.fc_norm, strict=True)]
        fused = torch.cat(chosen, -1)
        if draft.input_norm is not None:
            fused = norm(fused, draft.input_norm.weight, eps)
        return fused @ draft.fc.weight.T

    def layer(self, tokens: list[int], features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of tokens at positions 0, 1, .. with their features [N, hidden]: the logits [N, D], the features
        of the next depth [N, hidden], and the keys and values that attention saw [N, KV, D]."""
        draft, config, eps = self.draft, self.draft.config, self.draft.config.rms_norm_eps
        parts, attention, positions = draft.midlayer, draft.midlayer.self_attn, torch.arange(len(tokens))
        normed = norm(features, parts.hidden_norm.weight, eps)
        x = torch.cat([norm(draft.embed_tokens(torch.tensor(tokens)), parts.input_layernorm.weight, eps), normed], -1)
        q, k, v = ((x @ w.weight.T).unflatten(-1, (-1, config.head_dim)) for w in (attention.q_proj, attention.k_proj, attention.v_proj))
        if attention.q_norm is not None:
            q, k = norm(q, attention.q_norm.weight, eps), norm(k, attention.k_norm.weight, eps)
        theta = config.rope_parameters["rope_theta"]
        q, k = turned(q, positions, theta), turned(k, positions, theta)
        groups = config.num_attention_heads // config.num_key_value_heads
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(groups, 1)) / math.sqrt(config.head_dim)
        seen = positions <= positions[:, None]
        if getattr(config, "sliding_window", None):
            seen &= positions > positions[:, None] - config.sliding_window
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        attended = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(groups, 1)).flatten(1)
        stream = (normed if draft.spec.norm_before_residual else features) + attended @ attention.o_proj.weight.T
        y, mlp = norm(stream, parts.post_attention_layernorm.weight, eps), parts.mlp
        gate = y @ mlp.gate_proj.weight.T
        stream = stream + (gate * gate.sigmoid() * (y @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
        final = norm(stream, draft.norm.weight, eps)
        return final @ draft.lm_head.weight.T, final if draft.spec.norm_output else stream, k, v

    def says(self, text: list[int], path: tuple[int, ...], features: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [D] behind a text and guesses: token by token, from the start each time."""
        tokens, rows = text[1:], features[: len(text) - 1]
        logits, following, _, _ = self.layer(tokens, rows)
        for guess in path:
            tokens, rows = [*tokens, guess], torch.cat([rows, following[-1:]])
            logits, following, _, _ = self.layer(tokens, rows)
        return (logits[-1] / temperature).log_softmax(-1)

    def along(self, text: list[int], anchor: int, depths: int, features: Tensor) -> Tensor:
        """Logits [depths, D] of the slots (anchor, 0), (anchor, 1), .. that hold the text's own tokens, as in
        training, with gradients; anchors count as in `SlotLayout`."""
        tokens, rows, found = text[1 : anchor + 1], features[:anchor], []
        for depth in range(depths):
            logits, following, _, _ = self.layer(tokens, rows)
            found.append(logits[-1])
            tokens, rows = [*tokens, *text[anchor + depth + 1 :][:1]], torch.cat([rows, following[-1:]])
        return torch.stack(found)

    @torch.no_grad()
    def chain(self, text: list[int], depth: int) -> list[int]:
        features, path = self.features(text), ()
        for _ in range(depth):
            path = (*path, int(self.draft.token_ids[self.says(text, path, features).argmax()]))
        return list(path)

    @torch.no_grad()
    def tree(self, text: list[int], depth: int, width: int, nodes: int, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
        """EAGLE-2's: the log-probability of each path that is proposed.

        At each depth the `width` best children of each node of the frontier are met; the `width` best of all
        these are the next frontier. In the end the best `nodes` of all that were met are taken.
        """
        features = self.features(text)
        met: dict[tuple[int, ...], float] = {}
        frontier: dict[tuple[int, ...], float] = {(): 0.0}
        for _ in range(depth):
            children: dict[tuple[int, ...], float] = {}
            for path, before in frontier.items():
                said = self.says(text, path, features, temperature)
                for place in said.argsort(descending=True)[:width].tolist():
                    children[*path, int(self.draft.token_ids[place])] = before + float(said[place])
            met |= children
            frontier = dict(sorted(children.items(), key=lambda child: -child[1])[:width])
        return dict(sorted(met.items(), key=lambda node: -node[1])[:nodes])
