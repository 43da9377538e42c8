"""What looks like a credential: passwords and signatures in URIs, tokens of known services, and keys named like one.

They are refused wherever they stand, before anything is printed or written, and never repeated: a command line can be
read by others, and a config is copied into run folders and manifests.
"""

from __future__ import annotations

import re
from typing import Any

_URI = re.compile(  # anywhere in a word: out=s3://KEY:SECRET@bucket/x, whose secret may hold / and is no port
    r"://[^/?#@\s\[]*:(?!\d+(?:[/?#,]|$))[^@\s]+@|://[^/?#@\s\[]*:\d+@|://(?:AKIA|ASIA)[A-Z0-9]{12,}:"
)
_SIGNED = re.compile(
    r"[?&#;](?:[a-z_-]*(?:secret|token|password|signature|credential)[a-z_-]*|sig|"
    r"(?:access|account|api|private|shared_?access)_?key)=",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?:bearer\s+|RAY_AUTH_TOKEN=)\S+", re.IGNORECASE)
_TOKEN = re.compile(  # GitHub, GitLab, ...; Google, JSON web tokens and keys in PEM
    r"\b(?:gh[oprsu]_|github_pat_|glpat-|hf_|xox[abprs]-|sk-)[A-Za-z0-9_-]{16,}|\bAIza[\w-]{35}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_KEY = re.compile(
    r"(?:^|[._-])(?:auth[._-]?token|token|password|passwd|secret|credential|(?:api|access|secret|private)[._-]?key)s?$",
    re.IGNORECASE,
)
_NAMES = ("auth_secret", "image_pull_secrets", "ssh_private_key")  # keys that name a Secret or a file, and hold none
INSTEAD = (
    "set RAY_AUTH_TOKEN_PATH for a cluster, and a store's own variables, such as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, where the run and its workers are"
)


def found(text: str) -> bool:
    """Whether a text carries a password, a signature or a token."""
    return any(kind.search(text) for kind in (_URI, _SIGNED, _BEARER, _TOKEN))


def names_one(key: str) -> bool:
    """Whether a key is named like a credential, such as `auth_token` or `password`."""
    return bool(_KEY.search(key)) and key.rpartition(".")[2].replace("-", "_") not in _NAMES


def refuse_words(words: list[str]) -> None:
    """Raises ValueError, without repeating it, when a word of a command line carries a credential."""
    if any(found(word) for word in words):
        raise ValueError(f"the command line: credentials in an address or a URI can be read by others there; {INSTEAD}")


def refuse_keys(words: list[str]) -> None:
    """Raises ValueError, without repeating its value, when a word KEY=VALUE or --KEY is named like a credential."""
    for word in words:
        key, equals, _ = word.partition("=")
        if (equals or word.startswith("-")) and names_one(key.lstrip("-")):
            raise ValueError(
                f"{key.lstrip('-')}: tokens and passwords are not taken from the command line, where others can read "
                "them; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file"
            )


def refuse_in(source: str, values: Any, key: str = "") -> None:
    """Raises ValueError, without repeating it, when a value of a file carries a credential.

    source: the file, for the message. values: plain values, which may hold lists and mappings. key: of the values.
    """
    if isinstance(values, dict):
        for name, inner in values.items():
            if found(str(name)):
                raise ValueError(f"{source}: {key or 'a key'}: holds credentials; {INSTEAD}")
            refuse_in(source, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for inner in values:
            refuse_in(source, inner, key)
    elif isinstance(values, str) and (found(values) or (values and names_one(key))):
        raise ValueError(
            f"{source}: {key}: holds credentials, which would travel in plain text; {INSTEAD}, or a Secret through "
            "cluster.env_from"
        )
