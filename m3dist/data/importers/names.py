"""Names of columns and files that people use, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

USER = (
    *("userid", "user", "uid", "reviewerid", "customerid", "visitorid", "memberid", "accountid", "authorid"),
    *("useridx", "userindex"),
)
ITEM = (
    *("itemid", "item", "iid", "movieid", "parentasin", "asin", "productid", "bookid", "artistid", "songid", "trackid"),
    *("videoid", "newsid", "businessid", "gmapid", "recipeid", "gameid", "appid", "articleid", "itemidx", "itemindex"),
)
RATING = ("rating", "score", "stars", "overall", "ratingvalue", "weight", "playcount", "plays")
TIME = ("timestamp", "unixreviewtime", "time", "datetime", "date", "ts", "createdat", "ratedat", "reviewtime")
SPLIT = ("xlabel", "split", "fold")
TITLE = ("title", "name", "itemname", "movietitle", "producttitle")
IDS = (
    *ITEM,
    "id",
    "ids",
    "itemids",
    "asins",
    "key",
    "keys",
    "names",
    "index",
)  # of what belongs to items: tables, features


def plain(column: str) -> str:
    """userID, user_id, User-Id and user_id:token are all `userid`."""
    return re.sub(r"[\W_]+", "", column.split(":")[0]).lower()


def listed(columns: Sequence[object], most: int = 20) -> str:
    """Names for a message, not too many of them."""
    more = len(columns) - most
    return ", ".join(str(column)[:60] for column in columns[:most]) + (f" and {more:,} more" if more > 0 else "")


def known(columns: tuple[str, ...] | list[str], names: tuple[str, ...]) -> bool:
    """Whether a column has one of the names."""
    return any(plain(column) in names for column in columns)
