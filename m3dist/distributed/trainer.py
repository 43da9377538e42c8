"""Ray Train's trainer without the helpers that a run has no use for.

Each is a process that imports Ray Train: about two seconds of a core, at the time when the workers start.
Ray Train's controller imports this module, so it loads no torch.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_SPLITS_DATASETS = "DatasetsCallback"  # of Ray Data, between workers; ours read their own shards
_CLEANS = "PlacementGroupCleanerCallback"  # when the controller dies, gives back what workers held; ray_train does so


class Trainer(DataParallelTrainer):
    """Ray Train's DataParallelTrainer; see it for the keywords.

    has_dashboard: whether the cluster has one, which Ray Train's cleaner asks; without, it could clean nothing.
    grows: whether the cluster may have to grow for a fixed number of workers, which Ray's autoscaler is then told.
    """

    def __init__(self, *args: Any, has_dashboard: bool, grows: bool, **keywords: Any):
        super().__init__(*args, **keywords)
        self._left_out = (_SPLITS_DATASETS,) if has_dashboard else (_SPLITS_DATASETS, _CLEANS)
        self._grows = grows

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ not in self._left_out]

    def _initialize_and_run_controller(self, **keywords: Any) -> Any:
        policy = keywords.get("scaling_policy")
        if type(policy) is FixedScalingPolicy and not self._grows:
            keywords["scaling_policy"] = _Fixed(policy.scaling_config)
        return super()._initialize_and_run_controller(**keywords)


class _Fixed(FixedScalingPolicy):
    """A number of workers for which the cluster has room, so that no autoscaler is asked for it."""

    def _maybe_send_resource_request(self) -> None:
        pass

    def _send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass
