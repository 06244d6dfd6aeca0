"""A model of speed: what other draft lengths, batch sizes and targets would give (docs/predict.md).

counts: what a result file holds, summed up by suite and configuration
acceptance: tokens of a cycle, from acceptance by position
time_curve: seconds of a pass by its rows
cycle_times: seconds of a cycle, fitted to a result file
times_file: the same, of another machine or target, from a file
predictor: one prediction
predictions: all that are asked for, beside what was measured, and how far off they are
table: what the terminal shows
"""
