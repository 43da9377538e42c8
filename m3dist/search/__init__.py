"""Hyperparameter search: Ray Tune runs the trials, ASHA stops the poor ones, stages are trained once.

`space` is what a search file says, `proposals` what to try next, `rungs` who goes on, `claims` who trains a stage,
`trial` what runs in a trial's process, `ledger` what is known of every trial, `driver` the search itself and `report`
what it leaves behind.
"""
