"""Modal's errors as messages of this project, each with the command to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import modal

from noesis.core.config import ModalSection
from noesis.core.console import shell_command
from noesis.core.errors import NoesisError, RunError, UsageError
from noesis.core.i18n import _

TOKENS = "https://huggingface.co/settings/tokens"


@contextmanager
def explained(section: ModalSection) -> Iterator[None]:
    """Turn Modal's errors inside the block into this project's.

    Raises:
        UsageError: something is missing that a command creates.
        RunError: Modal can't be reached or refuses.
    """
    try:
        yield
    except modal.exception.Error as error:
        raise explain(error, section) from None


def explain(error: Exception, section: ModalSection) -> NoesisError:
    """The error to raise instead of one of Modal's."""
    text = " ".join(str(error).split())
    if isinstance(error, modal.exception.AuthError):
        return UsageError(
            _(
                "Modal did not accept this machine's token ({text}): type  modal token new  "
                "(it needs an account at https://modal.com)",
                text=text[:120],
            )
        )
    if isinstance(error, modal.exception.NotFoundError):
        if section.volume in text or "olume" in text:
            create = shell_command("modal", "volume", "create", section.volume)
            return UsageError(
                _("the volume {volume} does not exist: type  {create}", volume=section.volume, create=create)
            )
        if section.secret in text:
            return no_token(section)
        if "ecret" in text:
            return UsageError(_("{text}: create it with  modal secret create NAME NOESIS_KEY_<HOST>=…", text=text))
    if isinstance(error, modal.exception.ConnectionError):
        return RunError(
            _("Modal can't be reached ({text}): check the network, and https://status.modal.com", text=text[:160])
        )
    return RunError(_("Modal refused: {name}: {text}", name=type(error).__name__, text=text[:300]))


def no_token(section: ModalSection) -> UsageError:
    """The error for a secret that is missing or empty."""
    return UsageError(
        _(
            "HuggingFace token not found: type  {shell_command} HF_TOKEN=hf_… --force  with a token from {tokens}",
            shell_command=shell_command("modal", "secret", "create", section.secret),
            tokens=TOKENS,
        )
    )
