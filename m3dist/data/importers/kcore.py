"""Users and items with few interactions, left out until all that remain have enough (a k-core).

Shapes: n interactions, U users, I items.
"""

from __future__ import annotations

import numpy as np

from m3dist.data.dataset import DataError
from m3dist.data.importers.splits import Plan, Splits


def keep(data: Splits, n_users: int, n_items: int, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Who stays, over all splits together: bool [U] and bool [I]. A pair counts once. Raises DataError."""
    key = np.concatenate([user.astype(np.int64) * n_items + item for user, item in data.values()])
    key.sort()
    fresh = np.ones(len(key), dtype=bool)
    np.not_equal(key[1:], key[:-1], out=fresh[1:])
    user, item = (x.astype(np.int32) for x in np.divmod(key[fresh], n_items))
    del key, fresh
    users, items = np.ones(n_users, dtype=bool), np.ones(n_items, dtype=bool)
    while True:
        degree_U, degree_I = np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)
        few_U, few_I = users & (degree_U < plan.min_user), items & (degree_I < plan.min_item)
        if not few_U.any() and not few_I.any():
            return users, items
        users &= ~few_U
        items &= ~few_I
        kept = users[user] & items[item]
        user, item = user[kept], item[kept]
        if not len(user):
            raise nothing_left(plan)


def nothing_left(plan: Plan) -> DataError:
    """What to say where all are left out."""
    return DataError(
        f"no interaction is left when users need {plan.min_user} and items {plan.min_item} interactions; "
        "lower --min-user or --min-item"
    )
