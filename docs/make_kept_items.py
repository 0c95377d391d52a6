"""Write the computed tasks of data/tribunal/kept: `make docs`; --check only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from noesis.tribunal.kept.computed.make import computed_items

FOLDER = Path(__file__).resolve().parents[1] / "data" / "tribunal" / "kept"


def lines(language: str) -> str:
    """The file of one language."""
    rows = [item.model_dump(mode="json", exclude_defaults=True) for item in computed_items(language)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> int:
    """Write the files, or with --check say which differ."""
    for language in ("en", "pt"):
        file, text = FOLDER / f"computed.{language}.jsonl", lines(language)
        if "--check" in sys.argv[1:]:
            if file.read_text(encoding="utf-8") != text:
                print(f"{file} is not what docs/make_kept_items.py writes: run it and commit the file")
                return 1
        else:
            file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
