"""How Noesis is installed: the distribution's name, its extras, and a stranger's package of the same import name.

`noesis` on the package index is somebody else's library for mining networks. Both are imported as `noesis`, so they
can't share an environment: whichever was installed last has written over the other's `__init__.py`.
"""

from __future__ import annotations

from noesis.core.i18n import _

DISTRIBUTION = "noesis-tribunal"
NAMESAKE = "noesis"
OUR_COMMAND = "noesis.cli:main"  # entry point by which a distribution `noesis` is one of ours, of before it was renamed

EXTRA_OF = {  # packages that come with an extra, by the name under which they are imported
    **dict.fromkeys(("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors"), "train"),
    **dict.fromkeys(("gguf", "xllamacpp", "aiohttp", "prompt_toolkit"), "gguf"),
    "modal": "modal",
}


def install_command(extra: str) -> str:
    """What to type to get an extra: `pip install 'noesis-tribunal[train]'`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


def namesake() -> str | None:
    """What of another distribution named `noesis` is in this environment and how to mend it; None: there is none."""
    import importlib.metadata

    try:
        other = importlib.metadata.distribution(NAMESAKE)
    except importlib.metadata.PackageNotFoundError:
        return None
    again = _(
        "pip uninstall {namesake}  and then  pip install --force-reinstall --no-deps {distribution}",
        namesake=NAMESAKE,
        distribution=DISTRIBUTION,
    )
    if any(entry.value == OUR_COMMAND for entry in other.entry_points):
        return _(
            "{namesake} {version} is Noesis under its earlier name:  {again}",
            namesake=NAMESAKE,
            version=other.version,
            again=again,
        )
    return _(
        "{namesake} {version} is another project's package and writes over this one's files:  {again}",
        namesake=NAMESAKE,
        version=other.version,
        again=again,
    )
