"""A Modal app that uses what the project's uses, a line each: `modal run tests/helpers/modal_local/toys/toy_app.py --what NAME`."""

import importlib.util
import os
import time
from pathlib import Path

import modal

app = modal.App("toy")
volume = modal.Volume.from_name("toy-data")
cache = modal.Volume.from_name("toy-cache", create_if_missing=True)
secret = modal.Secret.from_name("toy-secret", required_keys=["TOY_KEY"])
HERE = Path(__file__).resolve().parent
image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install("PyYAML==6.0.3")
    .env({"TOY_CACHE": "/cache/hub", "TOY_ENV": "a b"})
    .add_local_dir(HERE, "/project/toy")
)
DATA = Path(os.environ.get("NOESIS_VOLUME_ROOT", "/data"))


class ToyError(Exception):
    """Raised in a container, caught where the function was called."""


@app.function(
    image=image, volumes={"/data": volume, "/cache": cache}, secrets=[secret], gpu=["L40S", "A100-80GB"], timeout=600
)
def look() -> dict:
    """What the body sees."""
    try:
        import noesis

        project = noesis.__file__
    except ImportError:
        project = ""
    packages = {name: importlib.util.find_spec(name) is not None for name in ("yaml", "modal", "torch")}
    shipped = Path(os.environ.get("NOESIS_PROJECT", "/project")) / "toy" / "toy_app.py"
    files = sorted(p.relative_to(DATA).as_posix() for p in DATA.rglob("*"))
    return {
        "key": os.environ["TOY_KEY"],
        "env": os.environ["TOY_ENV"],
        "noesis": project,
        "shipped": shipped.is_file(),
        "files": files,
        "token": os.environ.get("MODAL_TOKEN_ID"),
        "packages": packages,
    }


@app.function(image=image, volumes={"/data": volume}, single_use_containers=True)
def write(name: str, commit: bool) -> None:
    """Write a file, and commit it or forget to."""
    (DATA / name).parent.mkdir(parents=True, exist_ok=True)
    (DATA / name).write_text(name)
    if commit:
        volume.commit()


@app.function(image=image, volumes={"/data": volume})
def wait_for(name: str, reload: bool, stop_after: float = 3.0) -> bool:
    """Whether a file that another container commits becomes visible here."""
    (DATA / "waiting").write_text("")
    volume.commit()
    end = time.time() + stop_after
    while time.time() < end and not (DATA / name).exists():
        time.sleep(0.1)
        if reload:
            volume.reload()
    return (DATA / name).exists()


@app.function(image=image, volumes={"/data": volume})
def reload_open() -> str:
    """The error of a reload while a file is open."""
    (DATA / "open.txt").write_text("x")
    with (DATA / "open.txt").open():
        try:
            volume.reload()
        except RuntimeError as error:
            return str(error)
    return ""


@app.function(image=image)
def square(x: int) -> int:
    """A number squared, in a container of its own or not."""
    return x * x


@app.function(
    image=image,
    volumes={"/data": volume},
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
    single_use_containers=True,
)
def flaky(name: str, failures: int) -> int:
    """Fails so often, then gives the number of tries."""
    tries = len(list(DATA.glob(f"{name}.*"))) + 1
    (DATA / f"{name}.{tries}").write_text("")
    volume.commit()
    if tries <= failures:
        raise ToyError(f"try {tries}")
    return tries


@app.function(image=image)
def broken(kind: str) -> None:
    """An error of a class of this file, of a built-in class, or an end without a word."""
    if kind == "exit":
        os._exit(7)
    raise ToyError("mine") if kind == "toy" else MemoryError("CUDA out of memory")


@app.function(image=image, timeout=2)
def slow() -> None:
    """Longer than its time."""
    time.sleep(60)


@app.function(image=image, volumes={"/data": volume}, single_use_containers=True)
def steps(n: int, save: bool = True) -> dict:
    """Counts to n, a step each 0.1 s, with a commit after each, going on where the last container was stopped."""
    file = DATA / "step"
    start = int(file.read_text()) if file.exists() else 0
    starts = DATA / "starts"
    starts.write_text((starts.read_text() if starts.exists() else "") + f"{start} ")
    interrupted = False
    try:
        for i in range(start + 1, n + 1):
            print(f"step {i}", flush=True)
            time.sleep(0.1)
            file.write_text(str(i))
            if save:
                volume.commit()
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted", flush=True)
        raise
    finally:
        (DATA / "seen").write_text(str(interrupted))
    return {"started": start, "ended": n}


@app.cls(image=image, secrets=[secret])
class Greeter:
    """A class with a parameter, set up once a container."""

    name: str = modal.parameter(default="world")

    @modal.enter()
    def set_up(self) -> None:
        """Once, before the first call."""
        self.prefix = os.environ["TOY_KEY"]

    @modal.method()
    def greet(self, word: str) -> str:
        """A greeting."""
        return f"{self.prefix} {word} {self.name}"


@app.local_entrypoint()
def main(what: str = "look", n: int = 3, fast: bool = False) -> None:
    """One of the demonstrations, by name."""
    if what == "look":
        print("RESULT", look.remote())
    elif what == "forgotten":
        write.remote("kept", True)
        write.remote("lost", False)
        print("RESULT", look.remote()["files"])
    elif what == "reload":
        call = wait_for.spawn("late", fast)
        time.sleep(2)
        write.remote("late", True)
        print("RESULT", call.get())
    elif what == "open":
        print("RESULT", reload_open.remote())
    elif what == "map":
        print("RESULT", list(square.map(range(n))), list(square.starmap([(7,)])))
    elif what == "spawn":
        calls = [square.spawn(i) for i in range(n)]
        print("RESULT", [c.get() for c in calls])
    elif what == "retries":
        print("RESULT", flaky.remote("a", 2), flaky.spawn("b", 2).get(), list(flaky.map(["c"], kwargs={"failures": 2})))
    elif what == "exhausted":
        flaky.remote("d", 9)
    elif what in ("toy", "memory", "exit"):
        try:
            broken.remote(what)
        except ToyError as error:
            print("RESULT ToyError", error)
        except MemoryError as error:
            print("RESULT MemoryError", error)
    elif what == "slow":
        try:
            slow.remote()
        except modal.exception.FunctionTimeoutError as error:
            print("RESULT", error)
    elif what == "steps":
        print("RESULT", steps.remote(n))
    elif what == "class":
        print("RESULT", Greeter().greet.remote("hello"), "|", Greeter(name="you").greet.remote("hi"))
    elif what == "options":
        print("RESULT", look.with_options(gpu="H100:2", timeout=900).remote()["key"])
    else:
        raise SystemExit(5)
