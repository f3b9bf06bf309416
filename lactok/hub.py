"""Files of hub repositories and of URLs: fetched where there is a network, and why not where they can't be.

Whether a host answers is decided once a process, in seconds; huggingface_hub alone retries each file for half a minute.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

PROBE_SECONDS = 5.0
"""How long a host may take to answer before it counts as unreachable."""


class NotFetched(Exception):
    """A file was not fetched; the message says why and, where there is one, the way out."""


def is_offline() -> bool:
    """Whether no request may be made: HF_HUB_OFFLINE is set, or the block of `offline` is open."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@contextlib.contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """No request is made inside the block, nor by processes that are started in it. wanted: False changes nothing."""
    if not wanted:
        yield
        return
    from huggingface_hub import constants

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    before, constant = {name: os.environ.get(name) for name in names}, constants.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(names, "1"))
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = constant
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def cached(repo: str, filename: str, revision: str | None) -> Path | None:
    """The file in the hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def cache_folder() -> str:
    """Where the hub's cache lies."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def page(repo: str) -> str:
    """The address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def download_command(repo: str, filenames: list[str], revision: str | None) -> str:
    """The shell command that gets these files into the hub's cache."""
    pinned = ["--revision", revision] if revision else []
    return shlex.join(["hf", "download", repo, *filenames, *pinned])


def fetch(repo: str, filename: str, revision: str | None) -> Path:
    """The file, downloaded into the hub's cache. Raises NotFetched."""
    from huggingface_hub import constants, hf_hub_download

    require_network(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(repo, filename, revision=revision, etag_timeout=10))
    except Exception as error:  # hub errors share no base
        raise NotFetched(explained(error, repo, filename, revision)) from error


def require_network(url: str) -> None:
    """Raises NotFetched when no request may be made, or when the URL's host does not answer."""
    if is_offline():
        raise NotFetched("offline=true or HF_HUB_OFFLINE is set, so nothing is asked of the network")
    parts = urllib.parse.urlsplit(url)
    if reason := unreachable(f"{parts.scheme}://{parts.netloc}/"):
        raise NotFetched(f"no network: {parts.netloc} does not answer ({reason})")


@lru_cache(maxsize=64)
def unreachable(url: str) -> str:
    """Why the host of a URL gives no HTTP answer, through the proxy if one is set; "" where it gives any.

    Takes PROBE_SECONDS at most, and is asked once a process.
    """
    reasons = [f"no answer within {PROBE_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            reasons[:] = [""]
        except urllib.error.HTTPError:
            reasons[:] = [""]
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):  # the libraries bring certificates of their own
                reasons[:] = [""]
            else:
                name = "unknown host" if isinstance(reason, socket.gaierror) else ""
                reasons[:] = [name or one_line(reason)]

    thread = threading.Thread(target=ask, daemon=True)  # looking a name up has no timeout
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0]


def one_line(error: object) -> str:
    """All of an error's text on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def explained(error: Exception, repo: str, filename: str, revision: str | None) -> str:
    """What went wrong with a file of a hub repository and what to do, then all that the hub said."""
    from huggingface_hub import errors

    at = page(repo)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        meaning = (
            f"{repo} is gated: accept its terms at {at} with your account, then `hf auth login` here with a token of "
            "that account"
        )
    elif isinstance(error, errors.DisabledRepoError):
        meaning = f"{repo} is disabled by the hub: see {at}, and look for a mirror"
    elif isinstance(error, errors.RepositoryNotFoundError):
        meaning = (
            f"the hub shows no repository {repo}: it is removed, renamed or private (the hub says 401 for all of them "
            f"to whoever is not logged in); see {at}, `hf auth login` if it is private, else name a mirror's copy"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        meaning = f"{repo} has no revision {revision}: its history was rewritten; see {at}/commits/main"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        meaning = (
            f"{repo} has no file {filename}{f' at revision {revision}' if revision else ''}: it was renamed or moved; "
            f"see {at}/tree/{revision or 'main'}"
        )
    elif status == 401:
        meaning = "the hub refuses the token of this machine: `hf auth login` anew, or `hf auth logout`"
    elif status == 403:
        meaning = f"this machine's token may not read {repo}: accept the terms at {at}, or `hf auth login` with one"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        cause = f": {one_line(error.__cause__)}" if error.__cause__ else ""
        meaning = f"no network, or the hub does not answer{cause}"
    else:
        meaning = "the download failed"
    return f"{meaning}. {type(error).__name__}: {one_line(error)}"
