"""The library behind `pard2 bench`: decoding methods side by side on a user's own prompts.

suites: the prompts
plan: what is run, and in which order
runner: runs it
measurement: what was counted and timed
summary: the numbers made from that
result_file: keeps all of it, for a run that goes on; read_results: reads it for whatever is made of it
table, progress: what the terminal shows
entries: results of several files under names that people read
plots, panels, canvas, svg: pictures of them; page: the report that holds these
compare: two files, and what differs beyond chance

The directory `benchmarks/` of the repository is something else: scripts, each for one question, that made the
figures of docs/results/. Several of them call this library.
"""
