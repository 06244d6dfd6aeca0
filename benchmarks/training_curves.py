r"""How a draft gets better with training: the acceptance that its runs forecast, against the tokens that they
have seen, as a table and a picture.

A run that went on from another's draft is named behind it, with a plus. Reads the metrics that `pard2 train`
left, and draws as it does (`pard2.train.curve`), several runs in one picture.

    python benchmarks/training_curves.py "muon=runs/a+runs/b" "adamw=runs/c" --json training_curves.json \
        --svg training_curves.svg
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from pard2.bench.result_file import write_result
from pard2.environment import meta
from pard2.train.curve import picture, read_curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[+RUN..]", help="directories of runs, one curve each")
    parser.add_argument("--tokens", type=int, default=50_000, help="from point to point")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    about = meta()
    named = dict(run.split("=", 1) for run in args.runs)
    about["argv"] = [about["argv"][0], *(f"{name}=..." for name in named)]  # where the runs lay matters to nobody
    curves = {name: read_curve([Path(part) for part in parts.split("+")], args.tokens) for name, parts in named.items()}
    results = [{"run": name} | asdict(point) for name, points in curves.items() for point in points]
    write_result(args.json, about, results, tokens=args.tokens)
    if args.svg is not None:
        args.svg.write_text(picture(curves, by_tokens=True))
    for name, points in curves.items():
        print(name)
        for p in points:
            depths = " ".join(f"{accuracy:.2f}" for accuracy in p.accuracy_by_depth)
            seen = f"{p.tokens:>10,} tokens {p.seconds:>7,.0f} s"
            print(f"{seen}  loss {p.loss}  AL {p.teacher_forced_al:.2f}  by depth {depths}  {p.evaluated or ''}")


if __name__ == "__main__":
    main()
