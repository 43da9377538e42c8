"""Hyperparameter search: Ray Tune runs the trials, ASHA stops the poor ones, stages are trained once.

`space` is what a search file says, of values in `dimensions`; `searchers` propose what to try next, `rungs` say which
trials go on. `trial` is what runs in a trial's process, `ledger` what is known of every trial, `session` what a report
means, `ray_tune` and `resources` where trials run, `driver` the whole search. `report`, `table` and `optuna_study` are
what people see, and `stages` is all that a search asks of training.
"""
