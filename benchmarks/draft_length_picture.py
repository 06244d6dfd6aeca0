"""The picture of docs/draft_length.md: how K follows from acceptance rates and times of passes.

python benchmarks/draft_length_picture.py
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path

from pard2.engine.draft_length.plain import best_lengths, expected_seconds, expected_tokens

PAGE = Path(__file__).parent.parent / "docs/draft_length.svg"
# Acceptance rates by position: chosen, not measured.
TEXTS = {
    "text that is easy for the draft": [0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45],
    "text that is hard for it": [0.35, 0.3, 0.3, 0.25, 0.25, 0.2, 0.2, 0.2],
}
MOST = 8
EASY, HARD = ([*accumulate(rates, mul)] for rates in TEXTS.values())
DRAFT, TARGET, BEST, REST = "#7aa6c2", "#c9d6df", "#2f7d4f", "#b9c9bf"
LEFT, WIDTH, HEIGHT, BAR = 20, 380, 110, 30


def draft(rows: float) -> float:
    """Seconds of a pass by its rows; chosen, near what the embedded pair takes on two cores."""
    return 0.009 + 0.0005 * rows


def target(rows: float) -> float:
    return 0.022 + 0.002 * rows


def seconds(k: int) -> float:
    """Of a cycle of one sequence, with one token to read."""
    return expected_seconds([k], [1], draft, target, False)


def bars(x: float, y: float, title: str, values: Sequence[float], form: str, colours: Sequence[str], lower: Sequence[float] = ()) -> list[str]:
    """One bar for each K = 0, 1, .. with its value above.

    form: of the value, as in a format string
    colours: of the bars
    lower: the part of each bar that is drawn in the target's colour
    """
    parts = [f'<text x="{x}" y="{y}" font-weight="bold">{title}</text>']
    scale = (HEIGHT - 40) / max(values)
    for k, (value, colour) in enumerate(zip(values, colours, strict=True)):
        at, top = x + k * (WIDTH - 20) / (MOST + 1), y + HEIGHT - 14 - value * scale
        parts.append(f'<rect x="{at:.1f}" y="{top:.1f}" width="{BAR}" height="{value * scale:.1f}" fill="{colour}"/>')
        if lower:
            height = lower[k] * scale
            parts.append(f'<rect x="{at:.1f}" y="{y + HEIGHT - 14 - height:.1f}" width="{BAR}" height="{height:.1f}" fill="{TARGET}"/>')
        parts.append(f'<text x="{at + BAR / 2:.1f}" y="{top - 3:.1f}" text-anchor="middle">{value:{form}}</text>')
        parts.append(f'<text x="{at + BAR / 2:.1f}" y="{y + HEIGHT}" text-anchor="middle" fill="#666">{k}</text>')
    return parts


def column(x: float, text: str, chances: Sequence[float]) -> list[str]:
    """Tokens, seconds and their quotient for each K."""
    ks = range(MOST + 1)
    (best,) = best_lengths([chances], [MOST], [1], draft, target, False)
    tokens = [expected_tokens([k], [chances]) for k in ks]
    speeds = [tokens[k] / seconds(k) for k in ks]
    return [
        f'<text x="{x}" y="22" font-size="15" font-weight="bold">{text}</text>',
        f'<text x="{x}" y="40" fill="#666">acceptance rates {", ".join(f"{rate:g}" for rate in TEXTS[text])}</text>',
        *bars(x, 66, "expected tokens of a cycle, by K", tokens, ".2f", [REST] * len(ks)),
        *bars(
            x,
            196,
            "milliseconds: target below, draft above",
            [1000 * seconds(k) for k in ks],
            ".0f",
            [DRAFT] * len(ks),
            [1000 * target(1 + k) for k in ks],
        ),
        *bars(x, 326, f"tokens per second: K = {best} is chosen", speeds, ".1f", [BEST if k == best else REST for k in ks]),
    ]


def picture() -> str:
    together = best_lengths([EASY, HARD], [MOST, MOST], [1, 1], draft, target, False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (LEFT + WIDTH)} 470" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        *(
            part
            for number, (text, chances) in enumerate(zip(TEXTS, (EASY, HARD), strict=True))
            for part in column(LEFT + number * (LEFT + WIDTH), text, chances)
        ),
        f'<text x="{LEFT}" y="460">Decoded together, in one batch, the two sequences propose {together[0]} and {together[1]}.</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(picture())
