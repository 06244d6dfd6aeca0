"""The library behind `pard2 bench`: decoding methods side by side on a user's own prompts.

suites: the prompts
plan: what is run, and in which order
runner: runs it
measurement: what was counted and timed
report: the numbers made from that
result_file: keeps all of it, for a run that goes on
table, progress: what the terminal shows

The directory `benchmarks/` of the repository is something else: scripts, each for one question, that made the
figures of docs/results/. Several of them call this library.
"""
