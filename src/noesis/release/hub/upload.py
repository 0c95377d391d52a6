"""Files onto the Hub in one commit, by `huggingface_hub`: nobody sees half of a model.

An interrupted upload goes on with the same call: what the Hub holds is not sent again, what it has in this form is left
out of the commit. The token is the one that `huggingface_hub` finds (HF_TOKEN, or `hf auth login`); no message has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from noesis.core.console import say, size
from noesis.core.errors import ModelError, NoesisError, UsageError
from noesis.core.i18n import _, ngettext

WEIGHTS = (
    ".gguf",
    ".safetensors",
    ".safetensors.index.json",
)  # an earlier push's are taken away where not pushed again
OWN = {"model": "noesis.json", "dataset": "croissant.json"}  # by which a repository is known as one of ours
UNTOUCHED = {".gitattributes", "README.md"}  # what the Hub itself puts into a new repository
FORBIDDEN, UNKNOWN, CONFLICT, NO_TOKEN = 403, 404, 409, 401  # HTTP


@dataclass(frozen=True)
class Publication:
    """What is to be published.

    repo: `owner/name`, or `name` for one's own account
    files: path in the repository → the file here, or its content
    """

    repo: str
    kind: Literal["model", "dataset"]
    files: Mapping[str, Path | bytes]
    message: str


@dataclass(frozen=True)
class Published:
    """Where it is; `commit` is the hash of the last one."""

    repo: str
    url: str
    commit: str
    private: bool


def full_name(repo: str) -> str:
    """`repo` with its owner: the account of the token, where none is named.

    Raises:
        UsageError: no token, or no name that the Hub would take. ModelError: the token is not accepted, or no network.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(
            _(
                "--repo {repo!r} is no name for the Hub: give OWNER/NAME or NAME, of letters, digits, -, _ and .",
                repo=repo,
            )
        ) from None
    with _explained(repo):
        account = str(_client().whoami()["name"])
    return repo if "/" in repo else f"{account}/{repo}"


def upload(what: Publication, *, public: bool) -> Published:
    """Make the repository if there is none, and commit all files at once.

    Raises:
        UsageError: the repository is public and was not meant to be, or holds something else.
        ModelError: it is another's, the token is not accepted, or the network fails; the same call goes on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    client = _client()
    with _explained(what.repo):
        there = _existing(client, what, public=public)
        if there is None:
            client.create_repo(what.repo, repo_type=what.kind, private=not public)
            there = client.repo_info(what.repo, repo_type=what.kind)
        stale = [
            file.rfilename
            for file in there.siblings or ()
            if file.rfilename.endswith(WEIGHTS) and file.rfilename not in what.files
        ]
        total = sum(file.stat().st_size if isinstance(file, Path) else len(file) for file in what.files.values())
        say(
            _(
                "  {files}, {total} → {repo}",
                files=ngettext("{count:,} file", "{count:,} files", len(what.files)),
                total=size(total),
                repo=what.repo,
            )
        )
        additions = [
            CommitOperationAdd(name, str(file) if isinstance(file, Path) else file)
            for name, file in sorted(what.files.items())
        ]
        commit = client.create_commit(
            what.repo,
            [*additions, *(CommitOperationDelete(name) for name in stale)],
            commit_message=what.message,
            repo_type=what.kind,
            parent_commit=there.sha,
        )
    page = f"{client.endpoint}/{'datasets/' if what.kind == 'dataset' else ''}{what.repo}"
    return Published(what.repo, page, str(commit.oid), bool(there.private))


def _client() -> Any:
    """Raises UsageError where there is no token."""
    import sys

    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import disable_progress_bars

    token = get_token()
    if not token:
        raise UsageError(
            _(
                "no token for the Hub: set HF_TOKEN to one that may write (https://huggingface.co/settings/tokens), "
                "or run  hf auth login"
            )
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(token=token, library_name="noesis")


def _existing(client: Any, what: Publication, *, public: bool) -> Any:
    """What the Hub says of the repository; None where there is none.

    Raises:
        UsageError: it is public and was not meant to be, or holds something that this command did not put there.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = client.repo_info(what.repo, repo_type=what.kind)
    except RepositoryNotFoundError:
        return None
    if not found.private and not public:
        raise UsageError(
            _(
                "{repo} exists and is public: push with --public if that is meant, or choose another --repo",
                repo=what.repo,
            )
        )
    names = {file.rfilename for file in found.siblings or ()} - UNTOUCHED
    if names and OWN[what.kind] not in names:
        raise UsageError(
            _(
                "{repo} exists and holds what was not pushed from here ({names!r}): choose another --repo",
                repo=what.repo,
                names=min(names)[:80],
            )
        )
    return found


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Errors of the Hub and of the network as one message."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        yield
    except NoesisError:
        raise
    except OfflineModeIsEnabled:
        raise ModelError(_("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it and push again")) from None
    except HfHubHTTPError as error:
        raise ModelError(_reason(repo, error.response.status_code, error)) from None
    except ValueError as error:  # of a card's front matter, or of large files
        raise ModelError(_("the Hub refuses {repo}: {reason}", repo=repo, reason=_without_token(error))) from None
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: the Xet client, or one around the cause
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ModelError(_reason(repo, error.__cause__.response.status_code, error.__cause__)) from None
        if isinstance(error, OSError) and error.filename:
            raise  # a file here
        raise ModelError(
            _(
                "the Hub can't be reached ({reason}): the same command goes on when the network is back",
                reason=_without_token(error),
            )
        ) from None


def _reason(repo: str, status: int, error: Exception) -> str:
    if status == NO_TOKEN:
        return _("the Hub does not accept the token: make one that may write at https://huggingface.co/settings/tokens")
    if status in (FORBIDDEN, UNKNOWN):
        return _(
            "{repo} is another's, or the token may not write there: choose a --repo of your own account or "
            "organisation, with a token that may write",
            repo=repo,
        )
    if status == CONFLICT:
        return _(
            "{repo} exists already and this token does not see it, or it was changed meanwhile: push again", repo=repo
        )
    return _("the Hub refuses {repo} (HTTP {status}): {reason}", repo=repo, status=status, reason=_without_token(error))


def _without_token(error: Exception) -> str:
    from huggingface_hub import get_token

    text = " ".join(str(error).split())[:300]
    return text.replace(get_token() or "\0", "…")
