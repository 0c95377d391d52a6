"""What the licence of a base asks of those who publish a model made from it: its name, a notice, the licence's text.

Llama 3.1 Community License, 1.b: https://www.llama.com/llama3_1/license/ (3.2 and 3.3 ask for the same)
Gemma Terms of Use, 3.1: https://ai.google.dev/gemma/terms
"""

from __future__ import annotations

from dataclasses import dataclass

from noesis.core.errors import UsageError
from noesis.core.i18n import _
from noesis.release.model_card import LLAMA_NOTICE, llama_release
from noesis.release.provenance import Provenance

GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"


@dataclass(frozen=True)
class Terms:
    """What a base's licence asks for; the defaults are those of one that asks for nothing.

    licence: its name
    prefix: what the published model's name begins with
    notice: the text of a file NOTICE
    with_text: the licence itself goes with the model
    """

    licence: str = ""
    prefix: str = ""
    notice: str = ""
    with_text: bool = False

    def require_name(self, repo: str) -> None:
        """Refuse a name that the licence forbids.

        Raises:
            UsageError: it lacks the prefix; the message has one that would do.
        """
        owner, _slash, name = repo.rpartition("/")
        if not name.lower().startswith(self.prefix.lower()):
            fitting = f"{owner}/{self.prefix}-{name}" if owner else f"{self.prefix}-{name}"
            raise UsageError(
                _(
                    "--repo {repo}: the base's licence ({licence}) wants a name that begins with {prefix}: "
                    "for example --repo {fitting}",
                    repo=repo,
                    licence=self.licence,
                    prefix=self.prefix,
                    fitting=fitting,
                )
            )


def terms_of(base: Provenance) -> Terms:
    """The terms for a model made from `base`."""
    if llama := llama_release(base.base, base.licence, base.base_lineage):
        licence = f"{llama} Community License"
        return Terms(licence, prefix="Llama", notice=LLAMA_NOTICE.format(name=llama), with_text=True)
    if any("gemma" in text.lower() for text in (base.base.rsplit("/", 1)[-1], base.licence, base.base_lineage)):
        return Terms("Gemma Terms of Use", notice=GEMMA_NOTICE, with_text=True)
    return Terms(base.licence)
