"""Write the cost tables between `<!-- costs -->` and `<!-- /costs -->` from the planner: `make docs`.

    python docs/make_costs.py [--check] [FILE …]     default: both READMEs and both guides to Modal

--check only compares (a test does that). The plan is for Llama-3.1-8B on the 111 exported examples, at the prices in
planning/gpus.yaml. Tokens are estimated, so the table is the same with and without Llama's tokenizer at hand.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("README.md", "README.pt-BR.md", "docs/modal.md", "docs/modal.pt-BR.md")
MARKS = re.compile(r"(<!-- costs -->\n).*?(<!-- /costs -->)", re.DOTALL)
WORDS = {
    "en": {
        "head": ("operation", "machine", "first estimate", "the planner says"),
        "train": "training, {n} epochs",
        "train1": "training, 1 epoch",
        "judge": "judging, once",
        "beside": "judging 2 epochs during training",
        "fetch": "fetching both models' weights, the first time",
        "try": "trying the judge, during training",
        "trial": "the Tribunal's trial",
        "merge": "merge and GGUF",
        "conductor": "the container that orchestrates",
        "all": "**3 epochs, everything**",
        "min": "min",
        "h": "h",
        "usd": "{} USD",
        "guessed": ("~2 h, ~$3-4", "~30 min, ~$0.50", "~10 min, ~$0.10", "~6-8 h, **~$90**"),
        "cores": "4 cores",
        "fetcher": "2 cores",
        "core": "1/4 core",
        "note": "Planned for meta-llama/Llama-3.1-8B-Instruct on 111 examples ({tokens:,} tokens an epoch, ± "
        "{error:.0%}), "
        "at the prices of {date} ({source}). The trial is estimated from the GPU's data sheet, for a judge of 7 "
        "billion weights that scores items without writing and is asked about every prompt; a trial that ends "
        "at an early look takes less. The 90 USD of the first estimate are the default of `--max-usd`.",
    },
    "pt": {
        "head": ("operação", "máquina", "primeira estimativa", "o planejador diz"),
        "train": "treino, {n} épocas",
        "train1": "treino, 1 época",
        "judge": "julgamento, uma vez",
        "beside": "julgamento de 2 épocas durante o treino",
        "fetch": "baixar os pesos dos dois modelos, na primeira vez",
        "try": "testar o juiz, durante o treino",
        "trial": "a sessão do Tribunal",
        "merge": "merge e GGUF",
        "conductor": "o contêiner que coordena",
        "all": "**3 épocas, tudo**",
        "min": "min",
        "h": "h",
        "usd": "US$ {}",
        "guessed": ("~2 h, ~US$ 3-4", "~30 min, ~US$ 0,50", "~10 min, ~US$ 0,10", "~6-8 h, **~US$ 90**"),
        "cores": "4 núcleos",
        "fetcher": "2 núcleos",
        "core": "1/4 de núcleo",
        "note": "Planejado para meta-llama/Llama-3.1-8B-Instruct com 111 exemplos ({tokens:,} tokens por época, "
        "± {error:.0%}), com os preços de {date} (tabela do Modal). A sessão do Tribunal é estimada pela ficha técnica "
        "da GPU, para um juiz de 7 bilhões de pesos que pontua itens sem escrever e julga todos os prompts; a sessão "
        "que termina numa parcial leva menos. Os US$ 90 da primeira estimativa são o padrão de `--max-usd`.",
    },
}


def main() -> int:
    """Write or compare."""
    files = [Path(name) for name in sys.argv[1:] if not name.startswith("--")] or [ROOT / name for name in FILES]
    stale = []
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8")
        made = MARKS.sub(lambda m, f=file: m[1] + table("pt" if "pt-BR" in f.name else "en") + m[2], text)
        if made != text:
            stale.append(file)
            if "--check" not in sys.argv:
                file.write_text(made, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"the cost table is stale in {', '.join(map(str, stale))}: run  make docs", file=sys.stderr)
        return 1
    return 0


def table(language: str) -> str:
    """The table and the note under it, in Markdown."""
    w, (three, one, extra) = WORDS[language], plans()
    beside = {name.split()[0]: (seconds, usd) for name, seconds, usd in extra}
    total = three.usd + sum(usd for _, _, usd in extra)
    waits = next(seconds for name, seconds, _ in extra if name == "orchestrator")

    def cell(seconds: float, usd: float) -> str:
        minutes = seconds / 60
        took = f"{minutes:.0f} {w['min']}" if minutes < 100 else f"{minutes / 60:.1f} {w['h']}"
        return comma(f"{took}, {w['usd'].format(f'{max(usd, 0.01):.2f}')}")

    def comma(text: str) -> str:
        return text.replace(".", ",") if language == "pt" else text

    train, judge, merge, everything = w["guessed"]
    stages = {stage.name: cell(stage.seconds, stage.usd) for stage in three.stages}
    rows = [
        (w["fetch"], w["fetcher"], "", cell(*beside["fetch"])),
        (w["train1"], "L40S", train, cell(one.stages[0].seconds, one.stages[0].usd)),
        (w["train"].format(n=3), "L40S", "", stages["train"]),
        (w["judge"], "A10", judge, stages["choose and judge"]),
        (w["beside"], "A10", "", cell(*beside["judge"])),
        (w["try"], "A10", "", cell(*beside["try"])),
        (w["trial"], "A10", "", cell(*beside["trial,"])),
        (w["merge"], w["cores"], merge, stages["merge and gguf"]),
        (w["conductor"], w["core"], "", cell(*beside["orchestrator"])),
        (w["all"], "", everything, "**" + cell(waits, total) + "**"),
    ]
    lines = ["| " + " | ".join(w["head"]) + " |", "|---" * 4 + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    note = w["note"].format(
        tokens=round(three.tokens_per_epoch, -3),
        error=three.relative_error,
        date=three.prices.date,
        source=three.prices.source,
    )
    if language == "pt":
        note = re.sub(r"(\d),(\d{3})", r"\1.\2", note)
    return "\n".join([*lines, "", *textwrap.wrap(note, 118)]) + "\n"


def plans():
    """Of three epochs, of one, and what the cloud does beside the three."""
    os.environ["HF_HOME"] = os.environ["HF_HUB_CACHE"] = "/nonexistent"
    from noesis.cloud.quote import extra_costs
    from noesis.cloud.request import CloudRequest
    from noesis.constitution.document import load_constitution
    from noesis.core.config import load_config
    from noesis.core.project import Project
    from noesis.dataset.load import read_examples
    from noesis.dataset.schema import Dataset
    from noesis.pipeline.stages.plan import plan_without_run

    project = Project(ROOT)
    constitution = load_constitution(project.constitution)
    dataset = Dataset(read_examples(project.exports / "train.jsonl", constitution))
    modal = load_config(project).training.modal
    found = []
    for epochs in (3, 1):
        config = load_config(project, {"training.model": modal.model, "training.num_train_epochs": epochs})
        found.append((config, plan_without_run(config, dataset, constitution, gpu="L40S", gpus=1)[0]))
    request = CloudRequest(3, model=modal.model, judges=modal.judges)
    return found[0][1], found[1][1], extra_costs(project, found[0][0], request, found[0][1])


if __name__ == "__main__":
    sys.exit(main())
