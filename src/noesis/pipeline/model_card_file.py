"""merged/<name>/README.md: derived from what the run knows, so it is written again when a verdict is added."""

from __future__ import annotations

from noesis.pipeline.session import RunSession


def card_text(s: RunSession) -> str:
    """The model card of the run as it stands."""
    from noesis.release.model_card import model_card

    manifest = s.run.manifest.to_json()
    if (plan := s.run.executed_plan()) is not None:
        manifest["stages"]["plan"]["result"] = plan  # of this copy: the card says what was trained
    return model_card(s.run.merged.name, s.config.training.model, s.model.licence, manifest)


def refresh_card(s: RunSession) -> None:
    """Bring the card of a merged model up to date."""
    card = s.run.merged / "README.md"
    if not s.run.is_done("merge") or not card.is_file():
        return
    text = card_text(s)
    if card.read_text(encoding="utf-8") != text:
        s.run.write_derived("merge", card, text)
