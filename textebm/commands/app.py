"""`textebm app`."""

from collections.abc import Sequence

from textebm import options
from textebm.commands.terminal import choose_device, model_folder, parse, require_text, say
from textebm.errors import UsageError


def app(arguments: Sequence[str]) -> int:
    """`textebm app`."""
    chosen = parse(options.App, "app", arguments)
    from textebm import app as pages
    from textebm import checkpoint, generation

    pages.require_gradio()
    folder = model_folder(chosen)
    require_text(checkpoint.read_run(folder)[0], folder)
    model, tokenizer = generation.load(folder, choose_device(chosen.device))
    studio = pages.Studio(model, tokenizer, folder.name)
    try:
        blocks = pages.serve(studio, chosen.host, chosen.port, chosen.open_browser)
    except OSError as error:
        where = chosen.host if chosen.port is None else f"{chosen.host}:{chosen.port}"
        raise UsageError(f"no page can be served at {where}: {error.strerror or error}") from None
    print(blocks.local_url, flush=True)
    say("Ctrl-C ends it")
    blocks.block_thread()
    return 0
