"""A search's trials as an Optuna study in memory, and what Optuna makes of it: importances and plots."""

from __future__ import annotations

import warnings
from typing import Any

from m3dist.search.dimensions import Dimension
from m3dist.search.ledger import OPEN, Ledger, Trial
from m3dist.search.space import Plan


def distribution(dimension: Dimension) -> Any:
    """The Optuna distribution of a dimension; a finite one is categorical."""
    from optuna import distributions as kinds

    if dimension.finite is not None:
        return kinds.CategoricalDistribution([_label(value) for value in dimension.finite])
    low, high = dimension.ends()
    if dimension.randint is not None:
        return kinds.IntDistribution(low, high)
    return kinds.FloatDistribution(low, high, log=dimension.log_uniform is not None)


def encode(dimension: Dimension, value: Any) -> Any:
    """A value of a dimension as Optuna has it."""
    return value if dimension.finite is None else _label(dimension.finite[dimension.finite.index(value)])


def decode(dimension: Dimension, value: Any) -> Any:
    """The value of a dimension that `encode` made another of."""
    if dimension.finite is None:
        return value
    return next(one for one in dimension.finite if _label(one) == value)


def _label(value: Any) -> Any:
    """A choice as it is where it is a number or text, as text otherwise; True and False would equal 1 and 0."""
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)


def study_of(plan: Plan, ledger: Ledger, sampler: Any = None) -> Any:
    """All trials: those that a rung or the budget ended are pruned, with their curve."""
    from optuna.trial import TrialState

    states = dict.fromkeys(OPEN, TrialState.RUNNING) | {"failed": TrialState.FAIL}
    study = _study(plan, sampler)
    for trial in ledger.trials.values():
        whole = trial.status == "finished" and trial.metric is not None
        state = TrialState.COMPLETE if whole else states.get(trial.status, TrialState.PRUNED)
        study.add_trial(_frozen(plan, trial, state))
    return study


def measured(plan: Plan, ledger: Ledger) -> Any:
    """The trials that have a value, each counted with its best wherever it ended."""
    from optuna.trial import TrialState

    study = _study(plan)
    for trial in ledger.trials.values():
        if trial.metric is not None:
            study.add_trial(_frozen(plan, trial, TrialState.COMPLETE))
    return study


def _study(plan: Plan, sampler: Any = None) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize" if plan.search.mode == "max" else "minimize", sampler=sampler)


def _frozen(plan: Plan, trial: Trial, state: Any) -> Any:
    from optuna.trial import TrialState, create_trial

    whole = state == TrialState.COMPLETE
    used = {name: dimension for name, dimension in plan.space.items() if name in trial.values}
    return create_trial(
        state=state,
        value=trial.metric if whole else None,
        params={name: encode(dimension, trial.values[name]) for name, dimension in used.items()},
        distributions={name: distribution(dimension) for name, dimension in used.items()},
        intermediate_values={} if whole else dict(trial.curve),
    )


def importance(plan: Plan, ledger: Ledger) -> dict[str, float]:
    """Share of the metric's variation among good trials that each value explains (PED-ANOVA, Watanabe et al. 2023).

    A trial counts with its best value wherever it ended. Nothing is said of trials with fewer than four different
    values of the metric, or with the same values throughout.
    """
    import optuna

    study = measured(plan, ledger)
    if len({trial.value for trial in study.trials}) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PED-ANOVA is marked experimental
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
        except (ValueError, RuntimeError):  # every trial has the same values
            return {}


def plots(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Matplotlib figures by name: history (values by trial), importance of each value, parallel coordinates.

    Parallel coordinates show the values that all trials have. Empty while no trial has a value.
    """
    from matplotlib import pyplot
    from optuna import importance as importances
    from optuna.visualization import matplotlib as draw

    study = measured(plan, ledger)
    if not study.trials:
        return {}
    label = f"validation {plan.metric}"
    common = [name for name in plan.space if all(name in trial.params for trial in study.trials)]
    with warnings.catch_warnings(), pyplot.rc_context({"figure.figsize": (max(8, 1.5 * len(plan.space)), 5)}):
        warnings.simplefilter("ignore")  # Optuna's matplotlib plots are marked experimental
        axes = {"history": draw.plot_optimization_history(study, target_name=label)}
        if importance(plan, ledger):
            evaluator = importances.PedAnovaImportanceEvaluator()
            axes["importance"] = draw.plot_param_importances(study, evaluator=evaluator, target_name=label)
        if len(common) > 1:
            axes["parallel"] = draw.plot_parallel_coordinate(study, common, target_name=label)
    return {name: one.figure for name, one in axes.items()}
