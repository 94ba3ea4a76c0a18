"""Secrets are left out of what is shown, kept and sent: of command lines, of addresses, and of errors that quote them.

Only what is marked as a secret by its name, its place or its form can be known: a value of an option that is named like
one, the user part and the query of a URL, the headers of OTLP, and tokens that begin as those of the large services do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

REDACTED = "[redacted]"

_ALWAYS = frozenset(
    {"secret", "password", "passwd", "passphrase", "passcode", "pwd", "credential", "apikey", "authorization", "bearer"}
)
"""As any part of a name."""
_LAST = frozenset({"token", "key", "auth", "pat", "pin", "cookie", "jwt", "pass"})
"""As the last part of a name; elsewhere in it, a number is no secret (``--key-frames 3``)."""
_ENDINGS = ("token", "password", "passwd", "secret", "apikey", "credential", "passphrase", "accesskey")
"""Of a part: ``hftoken``, but not ``tokenizer``, ``keyboard`` or ``monkey``."""
_PLURALS = {"tokens": "token", "keys": "key", "secrets": "secret", "passwords": "password", "credentials": "credential"}
_PLAIN = re.compile(r"(?i)[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?[kmgb]{0,2}")
_FLAG = re.compile(r"(?i)true|false|yes|no|on|off|none|null|auto")
_COMMON = frozenset({"key", "pass", "pin", "pat"})
"""Words that prose has before a colon, too."""

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_OPTION = re.compile(r"-{1,2}[A-Za-z][\w.:-]*")
_PAIR = re.compile(
    r"""(?P<name>[A-Za-z_][\w.-]*)(?P<is>["']?\s*(?:=|:(?![/:]))\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,;&"'})\]]+)"""
)
_WRITTEN = re.compile(
    r"""(?P<name>[A-Za-z_][\w.-]*)"""
    # Its value, also with a type, compared or added; or, behind a name in quotes, what follows: getenv("X", "y").
    r"""(?P<is>["']?\]?\s*(?:(?::[^=,()"']{0,60}?)?(?::=|[+=!]?=|:)|(?<=["'])\s*,)\s*[(\[]?\s*[bfruBFRU]{0,2})"""
    r"""(?P<value>\"{3}.*?(?:\"{3}|$)|'{3}.*?(?:'{3}|$)|"(?:[^"\\]|\\.)*(?:"|$)|'(?:[^'\\]|\\.)*(?:'|$))"""
)
"""In a line of code: a name, and a text in quotes that is given to it."""
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*|AIza[\w-]{30,})"
)
_SCHEME = re.compile(r"\b((?:[Bb]earer|Basic)\s+)(?=\S*[\d=A-Z])[\w.~+/-]{8,}=*")
_URL = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s'"<>`]+""")
_QUERY = re.compile(r"""\?[^\s'"<>`?]*=[^\s'"<>`)\]]*""")


def argv(words: Sequence[str]) -> tuple[str, ...]:
    """Return a command line without the values of options that are named like secrets.

    ``--api-key V``, ``--api-key=V``, ``wandb.api_key=V`` and ``API_KEY=V`` are such; what a single letter means (``-p
    V``) only its program knows.
    """
    found: list[str] = []
    waiting: str | None = None  # the name of an option whose value is next
    for word in words:
        if waiting is not None and not (word.startswith("--") and _OPTION.fullmatch(word.partition("=")[0])):
            found.append(REDACTED if _is_secret(waiting, word) else _word(word))
            waiting = waiting if _PLURALS.keys() & set(_parts(waiting)) and not word.startswith("-") else None
            continue
        waiting = word if _OPTION.fullmatch(word) and _sounds_secret(word) else None
        found.append(_word(word))
    return tuple(found)


def url(address: str) -> str:
    """Return an address without its user, its password, its query and its fragment."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        scheme, rest = "", address
    # A password may have any sign in it, though it should not: what is before the last @ of the host's part goes.
    host = re.match(r"[^/?#]*", rest)
    ends = host.end() if host is not None else 0
    if "@" in rest[ends:] and not re.search(r"@|^[\w.-]+(?::\d+)?$|^\[[\da-fA-F:.]+\](?::\d+)?$", rest[:ends]):
        ends = rest.rindex("@") + 1 + len(re.match(r"[^/?#]*", rest[rest.rindex("@") + 1 :])[0])  # type: ignore[index]  # always matches
    rest = rest[:ends].rpartition("@")[2] + rest[ends:]
    return scheme + mark + re.split(r"[?#]", rest, maxsplit=1)[0]


def text(said: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a sentence, or what an exception says, without the secrets that it quotes."""
    if "://" in said:
        said = _URL.sub(lambda found: _shown_url(found[0]), said)
    if "?" in said:
        said = _QUERY.sub(f"?{REDACTED}", said)
    for secret in _secrets(os.environ if environment is None else environment):
        if secret in said:
            said = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REDACTED, said)
    said = _SCHEME.sub(rf"\1{REDACTED}", _FORMS.sub(REDACTED, said))
    return _PAIR.sub(_pair, said) if "=" in said or ":" in said else said


def source(line: str) -> str:
    """Return a line of code without the secrets that are written in it.

    Only a text in quotes can be one: any other value is a name, or an expression.  What has only a common name, such as
    ``key`` or ``pad_token``, is one if it has eight characters or more, and a digit among them.
    """
    if "://" in line:
        line = _URL.sub(lambda found: _shown_url(found[0]), line)
    return _WRITTEN.sub(_written, _FORMS.sub(REDACTED, line))


def _written(found: re.Match[str]) -> str:
    value = found["value"].strip("\"'")
    is_named = _is_secret(found["name"], value)
    is_common = is_named and not any(
        part in _ALWAYS or (part.endswith(_ENDINGS) and part not in _LAST)
        for part in (_PLURALS.get(part, part) for part in _parts(found["name"]))
    )
    if not is_named or (is_common and (len(value) < 8 or not re.search(r"\d", value))):
        return found[0]
    quote = found["value"][0]
    return f"{found['name']}{found['is']}{quote}{REDACTED}{quote}"


def _word(word: str) -> str:
    """One word of a command line by itself."""
    name, equals, value = word.partition("=")
    if equals and re.fullmatch(r"[-+~]{0,2}[A-Za-z_][\w./:@+-]*", name) and _is_secret(name, value):
        return f"{name}={REDACTED}"
    return text(word)


def _pair(found: re.Match[str]) -> str:
    value = found["value"].strip("\"'")
    if value == REDACTED[:-1] or found["name"] in _FILES or not _is_secret(found["name"], value):
        return found[0]
    if found["is"].startswith(":"):  # as prose has it: only what ends in such a word, and is more than a common one
        parts = _parts(found["name"])
        if found["name"].lower() in _COMMON or not _sounds_secret(parts[-1]):
            return found[0]
    quote = found["value"][0] if found["value"][0] in "\"'" else ""
    return f"{found['name']}{found['is']}{quote}{REDACTED}{quote}"


def _parts(name: str) -> list[str]:
    return [part.lower() for part in _PARTS.findall(name)]


def _sounds_secret(name: str) -> bool:
    parts = [_PLURALS.get(part, part) for part in _parts(name)]
    return any(part in _ALWAYS or part in _LAST or part.endswith(_ENDINGS) for part in parts)


def _is_secret(name: str, value: str) -> bool:
    """Whether the value of what has this name is to be left out."""
    if not value or not _sounds_secret(name):
        return False
    parts = _parts(name)
    if any(_PLURALS.get(part, part) in _ALWAYS or part.endswith(_ENDINGS) for part in parts if part not in _LAST):
        return True
    return _FLAG.fullmatch(value) is None and (parts[-1] in _LAST or _PLAIN.fullmatch(value) is None)


def _shown_url(address: str) -> str:
    plain = url(address)
    return f"{plain}?{REDACTED}" if "?" in address else plain


_ENDPOINTS = re.compile(r"OTEL_EXPORTER_OTLP_(?:[A-Z]+_)?(ENDPOINT|HEADERS)|[A-Za-z]+_PROXY", re.IGNORECASE)
_SHORTEST = 4
"""Shorter ones are words of every other sentence."""


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """What is secret in the variables of OTLP, the longest first: the exporters quote it in their errors."""
    from urllib.parse import quote, unquote

    found: set[str] = set()
    for name, value in environment.items():
        kind = _ENDPOINTS.fullmatch(name)
        if kind is None:
            continue
        if kind[1] and kind[1].upper() == "HEADERS":
            values = [unquote(pair.partition("=")[2]).strip() for pair in value.split(",")]
            found.update(word for one in values for word in (one, *one.split()) if word.lower() not in _SCHEMES)
        else:
            rest = value.partition("://")[2] or value
            user, colon, password = rest.rpartition("@")[0].partition(":")
            found.add(password if colon else user)
            found.update(pair.partition("=")[2] for pair in re.split(r"[&;#]", rest.partition("?")[2]))
    found |= {unquote(secret) for secret in found} | {quote(secret, safe="") for secret in found}
    return iter(sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True))


_FILES = frozenset(f"OTEL_EXPORTER_OTLP_{signal}CLIENT_KEY" for signal in ("", "TRACES_", "METRICS_", "LOGS_"))
"""Variables that name a file: it may be shown."""
_SCHEMES = frozenset({"bearer", "basic", "token", "digest"})
