"""`textebm plot` and `textebm report`: a run as pictures, and as a page."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from textebm import options, whole_files
from textebm.commands.terminal import choose_device, parse, require_file, say, writing


def plot(arguments: Sequence[str]) -> int:
    """`textebm plot`."""
    chosen = parse(options.Plot, "plot", arguments)
    from textebm import checkpoint, plots

    run_dir = Path(chosen.run) if chosen.run is not None else checkpoint.newest_run()
    if chosen.csv is not None:
        with writing(chosen.csv, "--csv"):
            plots.write_numbers(run_dir, Path(chosen.csv))
        print(chosen.csv)
    if chosen.all is not None:
        with writing(chosen.all, "--all"):
            drawn = plots.every_curve(run_dir, Path(chosen.all))
        print("\n".join(map(str, drawn)))
    if chosen.output is not None or (chosen.all is None and chosen.csv is None):
        output = Path(chosen.output) if chosen.output is not None else run_dir / "curves.png"
        plots.learning_curves(run_dir, output)
        print(output)
    return 0


def report(arguments: Sequence[str]) -> int:
    """`textebm report`."""
    chosen = parse(options.Report, "report", arguments)
    from textebm import checkpoint
    from textebm import report as reporting
    from textebm.report_page import render

    for name in chosen.results:
        require_file("--results", name)
    size = reporting.Size(
        samples=chosen.samples,
        reconstructions=chosen.reconstructions,
        chains=chosen.chains,
        steps=chosen.steps,
        diagnostic_steps=chosen.diagnostic_steps,
    )
    folder, described = checkpoint.find_model(chosen.run if chosen.run is not None else chosen.model)
    say(f"model: {described}")
    with ExitStack() as stack:
        results = [Path(name) for name in chosen.results]
        if chosen.measure:
            results += stack.enter_context(_measured(chosen, folder))
        found = reporting.gather(
            folder,
            results,
            size,
            chosen.seed,
            str(choose_device(chosen.device)),
            chosen.data_dir,
            lambda what: say(f"report: {what}"),
        )
    with writing(chosen.output):
        whole_files.write_text(Path(chosen.output), render(found))
    if chosen.data is not None:
        with writing(chosen.data, "--data"):
            reporting.write_data(found, Path(chosen.data))
    print(chosen.output)
    return 0


@contextmanager
def _measured(chosen: options.Report, folder: Path) -> Iterator[list[Path]]:
    """Files with scores of a model, by the commands that measure them; they go again afterwards."""
    from textebm.commands import fid, measuring
    from textebm.model.latent_model import read_model_config

    of_images = read_model_config(folder).image is not None
    commands = {"fid": fid.fid} if of_images else {"fppl": measuring.fppl, "rppl": measuring.rppl}
    given = {"--n": chosen.n, "--data-dir": chosen.data_dir, "--features": chosen.features if of_images else None}
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{name}.json" for name in commands]
        for file, measure in zip(files, commands.values(), strict=True):
            say(f"report: measuring {file.stem}")
            how = ["--model", str(folder), "--seed", str(chosen.seed), "--device", chosen.device]
            measure([*how, *words, "--output", str(file)])
        yield files
