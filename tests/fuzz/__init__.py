"""Fuzzing of everything that reads what Dialoom has not written itself: files, logs, replies, settings, command lines.

`targets` says what is tried and what must hold, `mutants` makes inputs out of good ones, `guided` runs one target under
atheris (coverage-guided), `found` keeps every input that once broke something. `python -m tests.fuzz` is the long run.
"""
