"""A draft checkpoint in words: what `pard2 draft info` prints, and what stands on its card."""

from pard2.checkpoints.draft_report import DraftReport


def described(report: DraftReport, methods: list[str]) -> list[tuple[str, str]]:
    """What a draft is, line by line: a label and what it names.

    methods: that it can carry out, the best first.
    """
    layers = "1 layer" if report.layers == 1 else f"{report.layers} layers"
    lines = [
        ("model", f"{report.architecture}, {layers}, hidden {report.hidden_size}, vocabulary {report.vocab_size:,}"),
        ("stored", f"{report.parameters / 1e6:.1f} M parameters, {report.dtype}" + (", vocabulary left to the target" * report.shared_vocabulary)),
        ("methods", ", ".join(methods)),
    ]
    if report.mask_token is not None:
        lines.append(("mask token", f"{report.mask_token} ({report.mask_text!r})" if report.mask_text else str(report.mask_token)))
        part = f", out of {report.vocabulary_size:,} of the vocabulary" if report.vocabulary_size else ""
        lines.append(("proposes", f"up to {report.draft_tokens} tokens in one pass{part}"))
    if report.layout is not None:
        return [*lines, *_eagle3_lines(report)]
    if report.target_layers is not None:
        width = f", {report.target_dim} wide: a target of hidden size {report.target_hidden_size}" if report.target_dim else ""
        lines.append(("features", f"hidden states {report.target_layers}{width}"))
        projection = f"{report.projection}" if report.projection else "none"
        lines.append(("projection", f"{projection}, scale {report.scale}, {'with' if report.bias else 'no'} bias"))
    if report.target is not None:
        lines.append(("made for", report.target))
    if report.inexpressible:
        lines.append(("pard2 alone", f"{', '.join(report.inexpressible)}: no other engine can read it"))
    return lines


def _eagle3_lines(report: DraftReport) -> list[tuple[str, str]]:
    """What is said of EAGLE-3 drafts alone."""
    layers = f"hidden states {report.target_layers}" if report.target_layers else "the three hidden states that are the default for its target"
    lines = [
        ("layout", "the plain one of EAGLE-3" if report.layout == "eagle3" else "speculators'"),
        ("layer", str(report.layer)),
        ("proposes", f"{report.draft_tokens} tokens deep as it was trained, one a pass, out of {report.vocabulary_size:,} of the vocabulary"),
        ("features", f"{layers}, {report.target_dim} wide: a target of hidden size {report.target_hidden_size}"),
        ("fc", str(report.fc)),
        ("norms", str(report.norms)),
        ("embedding", "its own" if report.own_embedding else "the target's"),
    ]
    return lines + ([("made for", report.target)] if report.target is not None else [])
