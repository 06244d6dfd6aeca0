"""The picture of a run: what it shows is what the metrics say."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from train_runs import CONVERSATIONS, interrupt, write_records

from pard2.train.curve import Point, picture, read_curve
from pard2.train.loop import train

SVG = "{http://www.w3.org/2000/svg}"


def step(number: int, loss: float | None = 2.0, **more) -> dict:
    return {"step": number, "tokens": 100, "seconds": 1.0, "loss": loss, "teacher_forced_al": 1.5, "accuracy_by_depth": [0.5, 0.25]} | more


def run(directory: Path, steps: list[dict]) -> Path:
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    return directory


def lines(svg: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(svg)
    return [[tuple(map(float, place.split(","))) for place in line.get("points").split()] for line in root.iter(f"{SVG}polyline")]


def point(step: int, loss: float | None = 2.0, al: float = 1.5, accuracy: list[float] | None = None, **evaluated: float) -> Point:
    depths = [0.5, 0.25] if accuracy is None else accuracy
    names = {name.replace("_", "-"): length for name, length in evaluated.items()}
    return Point(step=step, tokens=1000 * step, seconds=float(step), loss=loss, teacher_forced_al=al, accuracy_by_depth=depths, evaluated=names)


def test_points_are_not_means_of_their_steps(tmp_path):
    td = {"method": "pard2-td", "acceptance_length": 2.5}
    first = run(tmp_path / "first", [step(1, 4.0), step(2, None), step(3, 2.0, evaluation=[td]), step(4, 1.0)])
    second = run(tmp_path / "second", [step(1, 0.5)])
    points = read_curve([first, second], 300)
    assert [(p.step, p.tokens, p.loss) for p in points] == [(3, 300, 3.0), (4, 400, 1.0), (5, 500, 0.5)]
    assert points[0].evaluated == {"pard2-td": 2.5} and points[1].evaluated == {} and points[0].accuracy_by_depth == [0.5, 0.25]


def test_a_long_run_is_drawn_step_by_step(tmp_path):
    assert 190 <= len(read_curve([run(tmp_path / "long", [step(n) for n in range(1, 5001)])])) <= 210


def test_a_line_does_not_follow_its_figures():
    svg = picture({"run": [point(1, 4.0, 1.0), point(2, 3.0, 2.0), point(5, 1.0, 3.0, pard2_td=2.8, pard2_ti=2.1)]})
    loss, length, *depths = lines(svg)
    assert len(depths) == 2
    (x1, y1), (x2, y2), (x5, y5) = loss
    assert (x5 - x1) == pytest.approx(4 * (x2 - x1), abs=0.3) and (y5 - y1) == pytest.approx(3 * (y2 - y1), abs=0.3) and y5 > y1  # downward
    assert length[0][1] > length[-1][1]
    rings = [(float(ring.get("cy")), ring.get("r")) for ring in ElementTree.fromstring(svg).iter(f"{SVG}circle")]
    assert [radius for _, radius in rings] == ["4", "2"] and length[-1][1] < rings[0][0] < rings[1][0] < length[0][1]


def test_a_picture_has_no_words_or_places_outside():
    for curves in ({"a<b": [point(1)]}, {"one": [point(1, None)]}, {"a": [point(1), point(2)], "b&c": [point(3, 9.0, 4.0)]}):
        for by_tokens in (False, True):
            root = ElementTree.fromstring(picture(curves, by_tokens))
            _, _, width, height = map(float, root.get("viewBox").split())
            for line in lines(picture(curves, by_tokens)):
                assert all(0 <= x <= width and 0 <= y <= height for x, y in line)
            text = " ".join(node.text for node in root.iter(f"{SVG}text"))
            assert "loss" in text and "acceptance length" in text and ("tokens trained on" if by_tokens else "step") in text
            assert ("accuracy by depth" in text) == (len(curves) == 1) and (len(curves) == 1 or "b&c" in text)


def test_a_run_leaves_no_picture_or_an_old_one(make_config, quiet, tmp_path, monkeypatch):
    """A kill after step 5 leaves the picture of the checkpoint after step 4."""
    held_out = write_records(tmp_path / "held-out.jsonl", CONVERSATIONS[:1])
    config = make_config(data={"evaluation": str(held_out)}, loop={"evaluate_every": 3, "evaluation_tokens": 2, "save_every": 4})
    with monkeypatch.context() as patch:
        interrupt(patch, 5, RuntimeError)
        with pytest.raises(RuntimeError):
            train(config, quiet)
    svg = (tmp_path / "run" / "curve.svg").read_text()
    assert len(lines(svg)[0]) == 4 and len(re.findall("<circle", svg)) == 2
    train(config, quiet)
    svg = (tmp_path / "run" / "curve.svg").read_text()
    assert len(lines(svg)[0]) == 6 and len(re.findall("<circle", svg)) == 4
