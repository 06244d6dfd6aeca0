"""The prompts of the shipped draft's training data: public ones, those in other wordings,
and problems from templates.

    python recipes/smollm2_prompts.py train_prompts.jsonl --output prompts.jsonl

A draft is best at the kind of text that it was trained on. Word problems and coding tasks are public by the
thousand; functions to complete and mathematics in LaTeX are not, so that some are made of the former, and
others from the templates below. Records: `id`, `source`, `messages`. No prompt of an evaluation suite is
used, whole or in part: the templates' numbers are drawn here.
"""

import argparse
import ast
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pard2.data.records import read_records

STEPS = "\nPlease reason step by step, and put your final answer within \\boxed{}."
COMPLETE = "Complete the following Python function.\n\n```python\n{code}\n```"
NAMES = ["f", "g", "h", "p"]

Record = dict[str, Any]


def whole(random: random.Random, low: int, high: int, without: tuple[int, ...] = (0,)) -> int:
    return random.choice([n for n in range(low, high + 1) if n not in without])


def polynomial(random: random.Random, degree: int, letter: str = "x") -> str:
    """Such as 2x^2 - x + 7, with a leading coefficient that is positive."""
    terms = []
    for power in range(degree, -1, -1):
        factor = whole(random, -9, 9) if power < degree else whole(random, 1, 6)
        size = "" if abs(factor) == 1 and power else str(abs(factor))
        sign = ("-" if factor < 0 else "") if not terms else (" - " if factor < 0 else " + ")
        terms.append(sign + size + ("" if power == 0 else letter if power == 1 else f"{letter}^{power}"))
    return "".join(terms)


def _function_value(r: random.Random) -> str:
    name = r.choice(NAMES)
    return f"If ${name}(x) = {polynomial(r, r.choice([1, 2, 3]))}$, what is the value of ${name}({whole(r, -6, 9)})$?"


def _fraction_function(r: random.Random) -> str:
    name, low = r.choice(NAMES), whole(r, 1, 6)
    return (
        f"Let ${name}(x) = \\frac{{{polynomial(r, 1)}}}{{x + {low}}}$. Find ${name}({low + whole(r, 1, 6)}) + {name}({whole(r, 1, 5)})$. "
        "Express your answer as a common fraction."
    )


def _composition(r: random.Random) -> str:
    a, b = r.sample(NAMES, 2)
    return f"Let ${a}(x) = {polynomial(r, 1)}$ and ${b}(x) = {polynomial(r, 2)}$. Compute ${a}({b}({whole(r, -4, 5)}))$."


def _linear(r: random.Random) -> str:
    return f"Solve for $x$: ${polynomial(r, 1)} = {polynomial(r, 1)}$."


def _quadratic(r: random.Random) -> str:
    one, other = whole(r, -9, 9), whole(r, -9, 9)
    middle, last = -(one + other), one * other
    wanted = r.choice(["Find all solutions of", "What is the sum of the squares of the solutions of", "What is the larger solution of"])
    return f"{wanted} the equation $x^2 {middle:+d}x {last:+d} = 0${'?' if wanted.startswith('What') else '.'}"


def _system(r: random.Random) -> str:
    a, b, c, d = (whole(r, 1, 7) for _ in range(4))
    return (
        f"Find the ordered pair $(x, y)$ that satisfies\n\\begin{{align*}}\n{a}x + {b}y &= {whole(r, 3, 40)},\\\\\n"
        f"{c}x - {d}y &= {whole(r, -9, 20)}.\n\\end{{align*}}"
    )


def _divisors(r: random.Random) -> str:
    return r.choice(
        [
            f"How many positive divisors does ${whole(r, 24, 960)}$ have?",
            f"What is the sum of the positive divisors of ${whole(r, 12, 200)}$?",
            f"What is the greatest common divisor of ${whole(r, 24, 400)}$ and ${whole(r, 24, 400)}$?",
            f"What is the least common multiple of ${whole(r, 4, 60)}$ and ${whole(r, 4, 60)}$?",
            f"Find the remainder when ${whole(r, 2, 19)}^{{{whole(r, 5, 90)}}}$ is divided by ${whole(r, 3, 13)}$.",
            f"What is the units digit of ${whole(r, 2, 19)}^{{{whole(r, 5, 60)}}} + {whole(r, 2, 19)}^{{{whole(r, 5, 60)}}}$?",
            f"Write ${whole(r, 20, 500)}_{{10}}$ in base ${whole(r, 2, 9)}$.",
        ]
    )


def _coordinates(r: random.Random) -> str:
    x, y, z, w = (whole(r, -9, 9) for _ in range(4))
    return r.choice(
        [
            f"Convert the point $({x},{y})$ from rectangular coordinates to polar coordinates $(r,\\theta),$ "
            "with $r > 0$ and $0 \\le \\theta < 2 \\pi.$",
            f"What is the distance between the points $({x},{y})$ and $({z},{w})$? Express your answer in simplest radical form.",
            f"Find the midpoint of the segment that joins $({x},{y})$ and $({z},{w})$.",
            f"What is the slope of the line through $({x},{y})$ and $({z if z != x else z + 1},{w})$?",
            f"A line passes through $({x},{y})$ and has slope ${whole(r, -5, 5)}$. Write its equation in the form $y = mx + b$.",
        ]
    )


def _geometry(r: random.Random) -> str:
    a, b = whole(r, 2, 15), whole(r, 3, 24)
    return r.choice(
        [
            f"A right triangle has legs of length ${a}$ and ${b}$. What is the length of its hypotenuse?",
            f"The circumference of a circle is ${2 * a}\\pi$ centimeters. "
            "What is its area, in square centimeters? Express your answer in terms of $\\pi$.",
            f"In triangle $ABC$, $\\angle A = {whole(r, 20, 80)}^\\circ$ and $\\angle B = {whole(r, 20, 80)}^\\circ$. "
            "What is the measure of $\\angle C$, in degrees?",
            f"A cylinder has radius ${a}$ and height ${b}$. What is its volume? Express your answer in terms of $\\pi$.",
            f"The perimeter of a rectangle is ${2 * (a + b)}$ inches and its length is ${b}$ inches. What is its area, in square inches?",
            f"Each interior angle of a regular polygon with ${whole(r, 5, 20)}$ sides has the same measure. What is it, in degrees?",
        ]
    )


def _counting(r: random.Random) -> str:
    n = whole(r, 4, 12)
    return r.choice(
        [
            f"In how many ways can ${n}$ people be seated in a row of ${n}$ chairs?",
            f"How many different committees of ${whole(r, 2, 4)}$ people can be chosen from a club with ${n + 4}$ members?",
            f"Two fair six-sided dice are rolled. What is the probability that the sum is ${whole(r, 2, 12)}$? "
            "Express your answer as a common fraction.",
            f"A bag holds ${n}$ red and ${whole(r, 2, 9)}$ blue marbles. "
            "Two are drawn without replacement. What is the probability that both are red?",
            f"What is the coefficient of $x^{{{whole(r, 1, 4)}}}$ in the expansion of $(x + {whole(r, 1, 5)})^{{{whole(r, 5, 8)}}}$?",
            f"Evaluate $\\binom{{{n + 3}}}{{{whole(r, 2, 4)}}}$.",
        ]
    )


def _arithmetic(r: random.Random) -> str:
    a, b, c = (whole(r, 2, 12) for _ in range(3))
    return r.choice(
        [
            f"Compute $\\frac{{{a}}}{{{b}}} + \\frac{{{c}}}{{{b + 1}}}$. Express your answer as a common fraction.",
            f"Simplify $\\sqrt{{{a * a * b}}}$.",
            f"Evaluate $\\left\\lfloor {whole(r, 11, 99) / 10} \\right\\rfloor + \\left\\lceil {whole(r, 11, 99) / 10} \\right\\rceil$.",
            f"What is ${a}\\%$ of ${10 * b}$?",
            f"Evaluate $\\log_{{{b}}} {b ** whole(r, 2, 4)}$.",
            f"Simplify $({polynomial(r, 2)}) - ({polynomial(r, 2)})$.",
            f"Expand the product $({polynomial(r, 1)})({polynomial(r, 1)})$.",
            f"The first term of an arithmetic sequence is ${a}$ and its common difference is ${b}$. What is the ${whole(r, 5, 40)}$th term?",
            f"Find the sum of the infinite geometric series with first term ${a}$ and common ratio $\\frac{{1}}{{{b}}}$.",
        ]
    )


def _complex(r: random.Random) -> str:
    a, b, c, d = (whole(r, -7, 7) for _ in range(4))
    return r.choice(
        [
            f"Simplify $({a} {b:+d}i)({c} {d:+d}i)$, where $i^2 = -1$.",
            f"Find the magnitude of the complex number ${a} {b:+d}i$.",
            f"Compute the determinant of the matrix $\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {d} \\end{{pmatrix}}$.",
            f"Compute the dot product of $\\begin{{pmatrix}} {a} \\\\ {b} \\end{{pmatrix}}$ and $\\begin{{pmatrix}} {c} \\\\ {d} \\end{{pmatrix}}$.",
            f"Find $\\cos {30 * whole(r, 1, 12)}^\\circ$.",
            f"For what values of $x$ is ${polynomial(r, 1)} > {whole(r, -9, 9)}$? Express your answer in interval notation.",
        ]
    )


MATHEMATICS: list[Callable[[random.Random], str]] = [
    _function_value,
    _fraction_function,
    _composition,
    _linear,
    _quadratic,
    _system,
    _divisors,
    _coordinates,
    _geometry,
    _counting,
    _arithmetic,
    _complex,
]


def mathematics(count: int, seed: int) -> Iterator[Record]:
    """`count` different problems."""
    r, seen = random.Random(seed), set()
    while len(seen) < count:
        text = r.choice(MATHEMATICS)(r)
        if text not in seen:
            seen.add(text)
            yield _record(f"template-math-{len(seen) - 1}", "template-math", text + STEPS)


def to_complete(record: Record, typed: bool = False) -> Record | None:
    """A task with tests (MBPP's) as a function to complete: its text and the tests become the docstring.

    None for a task that is not of that form.

    typed: with the types of the first test's values, and the task as an order; None
        where they are not literals.
    """
    text, _, tests = record["messages"][0]["content"].partition("\nYour code should pass these tests:\n")
    examples = []
    for line in tests.splitlines():
        found = re.fullmatch(r"assert (\w+)\((.*)\) == (.+)", line.strip())
        if found:
            examples.append(found.groups())
    if not examples:
        return None
    name, given, result = examples[0]
    try:
        call = ast.parse(f"{name}({given})", mode="eval").body
    except SyntaxError:
        return None
    assert isinstance(call, ast.Call)
    signature, task, kind = f"def {name}({', '.join('abcdefgh'[: len(call.args)])}):", text.strip(), "complete"
    if typed:
        try:
            *types, returned = (type_name(ast.literal_eval(part)) for part in [*call.args, result])
        except (SyntaxError, ValueError):
            return None
        signature = typed_signature(name, types, returned)
        task = re.sub(r"^Write a (python )?function to ", "", task, flags=re.IGNORECASE)
        task, kind = task[:1].upper() + task[1:], "typed"
    doc = "".join(f"    >>> {called}({arguments})\n    {value}\n" for called, arguments, value in examples[:2])
    code = f'{signature}\n    """ {task}\n{doc}    """'
    return _record(f"{kind}-{record['id']}", f"mbpp-{kind}", COMPLETE.format(code=code))


def typed_signature(name: str, types: list[str], returned: str) -> str:
    """The head of a function with arguments of these types, and the imports that it needs before it."""
    parameters = ", ".join(f"{parameter}: {type_}" for parameter, type_ in zip("abcdefgh", types, strict=False))
    signature = f"def {name}({parameters}) -> {returned}:"
    generic = [word for word in ("Dict", "List", "Set", "Tuple") if any(f"{word}[" in type_ for type_ in [*types, returned])]
    return f"from typing import {', '.join(generic)}\n\n\n{signature}" if generic else signature


def type_name(value: object) -> str:
    """Such as List[int]; of a collection's first element."""
    name = type(value).__name__
    if isinstance(value, dict) and value:
        key, item = next(iter(value.items()))
        return f"Dict[{type_name(key)}, {type_name(item)}]"
    if isinstance(value, tuple) and value:
        return f"Tuple[{', '.join(map(type_name, value))}]"
    if isinstance(value, list | set) and value:
        return f"{name.title()}[{type_name(next(iter(value)))}]"
    return "None" if value is None else name


def step_by_step(record: Record) -> Record:
    return _record(f"steps-{record['id']}", "gsm8k-steps", record["messages"][0]["content"] + STEPS)


def write(path: Path, records: list[Record]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _record(name: str, source: str, text: str) -> Record:
    return {"id": name, "source": source, "messages": [{"role": "user", "content": text}]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="train_prompts.jsonl: records with `source` gsm8k, mbpp and others")
    parser.add_argument("--held-out", type=int, default=64, help="prompts to evaluate on, into OUTPUT-held-out")
    parser.add_argument("--plain", type=int, default=5000, help="prompts to take as they are")
    parser.add_argument("--sampled", type=int, default=1000, help="others to be answered at temperature 1, into OUTPUT-sampled")
    parser.add_argument("--steps", type=int, default=1000, help="word problems to ask for step by step, others than those")
    parser.add_argument("--other", type=int, default=3400, help="other prompts than all those that are no word problems, as they are")
    parser.add_argument("--functions", type=int, default=1200, help="functions to complete, made of tasks with tests")
    parser.add_argument("--mathematics", type=int, default=2000, help="problems to make from templates")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    records = read_records(args.prompts)
    random.Random(args.seed).shuffle(records)
    held_out, records = records[: args.held_out], records[args.held_out :]
    plain, sampled, rest = records[: args.plain], records[args.plain :][: args.sampled], records[args.plain + args.sampled :]
    problems = [step_by_step(record) for record in rest if record["source"] == "gsm8k"][: args.steps]
    other = [record for record in rest if record["source"] != "gsm8k"][: args.other]
    tasks = [record for record in records if record["source"] == "mbpp"]
    functions = [made for typed in (False, True) for task in tasks if (made := to_complete(task, typed))][: args.functions]
    chosen = plain + problems + other + functions + list(mathematics(args.mathematics, args.seed))
    random.Random(args.seed).shuffle(chosen)
    write(args.output, chosen)
    write(args.output.with_stem(args.output.stem + "-sampled"), sampled)
    write(args.output.with_stem(args.output.stem + "-held-out"), held_out)
    print(
        f"{args.output}: {len(plain) + len(other):,} plain, {len(problems):,} step by step, {len(functions):,} functions, "
        f"{args.mathematics:,} from templates"
    )


if __name__ == "__main__":
    main()
