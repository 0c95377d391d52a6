"""Write llms.txt, what a language model reads first, from the documents: `make docs`; --check only compares.

Form: https://llmstxt.org/
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from site_pages import FOLDERS, ROOT, SECTIONS, documents

FILE = ROOT / "llms.txt"
HEAD = """# Noesis

> Noesis turns a constitution and about a hundred hand-written examples into a small language model that speaks by them.
> It checks the data, trains (QLoRA), judges, merges, converts to GGUF with a certificate, and serves.

Package `noesis-tribunal`, command and import `noesis`. To drive it, read docs/agents.md; `noesis agent-docs` prints it.
Documents named `X.pt-BR.md` are the same in Brazilian Portuguese.
"""
ABOUT = {  # what is found in a document, where its title does not say it
    "README.md": "what it does, your own data, in the cloud, what is measured, where it was tried",
    "docs/constitution.md": "write principles, see what depends on a change, make data from them, train and compare",
    "docs/tribunal.md": "three judges, how a verdict is reached, how judges are calibrated, what they can't know",
    "docs/modal.md": "Llama-3.1-8B on rented GPUs, step by step: set-up, quote, training, costs, troubles",
    "docs/release.md": "merging, GGUF files, the certificate, a GGUF file as base",
    "docs/integrate.md": "the server, its page, keys, answers by a JSON schema, clients that were tried",
    "docs/verify.md": "every check of `noesis verify`, and what needs something from outside",
    "docs/scale.md": "time and cost of more examples, 70B weights, up to 64 GPUs",
    "docs/families.md": "which models the engine trains and which convert to GGUF",
    "docs/glossario.md": "each term in English and Portuguese",
    "docs/cli.md": "every command with its help",
    "docs/agents.md": "rules, recipes, stages, commands, exit codes",
    "CHANGELOG.md": "what each version brought, and how to come from the one before",
    "CONTRIBUTING.md": "set-up, the layout of the source, rules",
    "CODE_OF_CONDUCT.md": "how we argue, and whom to tell",
    "SECURITY.md": "what is promised, what is not, how to report, the attacks that are kept as tests",
    "benchmarks/README.md": "figures, with the script, the machine and the date of each",
    "tests/wild/README.md": "odd inputs, the right answer to each, and the test that holds it",
    "docs/decisions/README.md": "short notes on hard choices",
}
LEFT_OUT = ("docs/site/index.md", "docs/site/api.md")  # for people's browsers


def line(name: str, place: str) -> str:
    """A document's line: its title, its place, what is found in it."""
    title = (ROOT / name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    return f"- [{title}]({place})" + (f": {ABOUT[name]}" if name in ABOUT else "")


def llms_txt(places: Mapping[str, str] | None = None) -> str:
    """The whole file. A folder with an index is one line. `places`: where each document lies; None: as it is here."""
    parts = [HEAD]
    for (title, _), sources in SECTIONS.items():
        names = [name for source in sources for name in documents(source) if name not in LEFT_OUT]
        indexes = {name.rsplit("/", 1)[0] for name in names if name.endswith("/README.md")} & set(FOLDERS)
        names = [name for name in names if name.rsplit("/", 1)[0] not in indexes or name.endswith("/README.md")]
        parts.append(
            f"## {title}\n\n" + "\n".join(line(name, places[name] if places else name) for name in names) + "\n"
        )
    return "\n".join(parts)


def main() -> int:
    """Write or compare."""
    text = llms_txt()
    if "--check" not in sys.argv:
        FILE.write_text(text, encoding="utf-8")
    elif not FILE.is_file() or FILE.read_text(encoding="utf-8") != text:
        print("llms.txt is stale: run  make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
