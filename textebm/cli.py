"""The program `textebm`: which command, its exit code, and how errors are told.

The commands stand in `textebm.commands`. None is imported but the one that is asked for, so that help comes at once.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from pathlib import Path

from textebm import processes
from textebm._version import __version__
from textebm.errors import ProcessError, TextebmError, UsageError

COMMANDS = {
    "train": "training",
    "generate": "generation",
    "reconstruct": "generation",
    "interpolate": "generation",
    "score": "scoring",
    "map": "latent_space",
    "neighbours": "latent_space",
    "arithmetic": "latent_space",
    "fppl": "measuring",
    "rppl": "measuring",
    "evaluate": "measuring",
    "likelihood": "likelihood",
    "fid": "fid",
    "transition": "transition",
    "anomaly": "anomaly",
    "calibrate": "judges",
    "signature": "measuring",
    "compare": "measuring",
    "experiment": "experiment",
    "data": "corpora",
    "plot": "report",
    "report": "report",
    "share": "sharing",
    "app": "app",
    "env": "surroundings",
}
"""Command -> the module of `textebm.commands` that has a function of its name."""

SHARED = ("train", "generate", "fppl", "rppl", "evaluate")
"""Commands that several processes do together."""

HELP = f"""usage: textebm COMMAND [OPTIONS]

Text generation with a learned latent prior, and images by the same program. textebm {__version__}

commands:
  train        train a model on a corpus, or on images
  generate     write sentences, or make images, with a trained model
  reconstruct  infer z for each line of a file, or for images, and make them again
  interpolate  sentences between two sentences, or images between two
  score        energy and reconstruction of each line of a file, or of images; marginal NLL of sentences
  map          draw where sentences or images lie in the latent space, and the energy over it
  neighbours   the sentences of a corpus nearest to a sentence in the latent space
  arithmetic   add and subtract the latents of sentences: "A" - "B" + "C"
  fppl         forward perplexity: generated text under a language model of real text
  rppl         reverse perplexity: real text under a language model of generated text
  evaluate     both, and what perplexity does not see, of one text or several, in one table
  likelihood   log p(x) of held-out sentences: a bound that can be believed, or no figure
  fid          Fréchet distance of generated images from real ones; KID, precision and recall beside it
  transition   watch prior chains: samples on the way, energy, quality over steps, diagnostics
  anomaly      tell images of a class, or sentences, that a model has not learned from
  calibrate    what real text scores under each judge, beside known figures
  signature    explain a score's signature, or say whether two scores compare
  compare      put scores into tables, those that compare side by side
  experiment   train and measure every cell of a table; goes on where it stopped
  data         list corpora, show one, download it, check what is on this machine
  plot         draw a run's learning curves
  report       everything about a run on one page of HTML
  share        a folder with a trained model and its card; or push it to the Hugging Face Hub
  app          a page in the browser: generate, interpolate, watch a chain
  env          say what textebm finds on this machine

examples:
  textebm train --data ptb                      # the paper's model on Penn Treebank
  textebm generate -n 1000                      # from the newest run
  textebm fppl                                  # forward and
  textebm rppl                                  # reverse perplexity of the newest run
  textebm evaluate --samples a.txt b.txt --data ptb
  textebm train --data my.txt --max-minutes 30  # a corpus of your own

textebm COMMAND --help tells more; --debug shows the traceback of an error; --version prints the version.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or input, 3 diverged, 130 interrupted, 141 nobody reads on.
    """
    # Spinning OpenMP threads slow recurrent networks down many times over as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Pages of 2 MB: to touch the fresh memory of a large tensor costs as much as many a product with it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"textebm {__version__}")
        return 0
    try:
        with processes.joined() as world:
            code = _run(words, debug, world)
            if code == 0:
                world.leave()
            return code
    except (UsageError, ProcessError) as error:  # there is no job to take part in
        if debug:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":
            from textebm.commands.terminal import say

            say(f"textebm: {error}")
        return error.exit_code


def _run(words: list[str], debug: bool, world: processes.World) -> int:
    """Run a command; returns the exit code, and tells of errors."""
    from textebm.commands.terminal import complain, say  # bring the reader of options, which help does without

    try:
        run = command(words[0])
        with nullcontext() if world.count == 1 else _as_one_of(world, words[0]):
            code = run(words[1:])
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read our output (head, less) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (TextebmError, OSError) as error:  # OSError: a full disk, a file that may not be read
        if debug:
            raise
        complain(error, f"textebm: {error}")
        return processes.exit_code_of(error)
    except KeyboardInterrupt:
        say("interrupted")
        return processes.INTERRUPTED


@contextmanager
def _as_one_of(world: processes.World, name: str) -> Iterator[None]:
    """Run a command as one process of several: only the first one prints results, and warnings say whose they are.

    Raises:
        UsageError: the command is for one process.
    """
    if name not in SHARED:
        raise UsageError(
            f"textebm {name} works in one process, and {world.count} were started; several share the work of "
            f"{', '.join(SHARED)}"
        )
    if world.first:
        yield
        return
    tell = warnings.formatwarning
    warnings.formatwarning = lambda *words: f"process {world.rank}: {tell(*words)}"
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        warnings.formatwarning = tell


def command(name: str) -> Callable[[Sequence[str]], int]:
    """What runs a command: it takes the words behind the command's name and returns the exit code.

    Raises:
        UsageError: there is no such command (the message names the nearest).
    """
    if name not in COMMANDS:
        import difflib

        near = [c for c in COMMANDS if c.startswith(name)] or difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "textebm --help lists them"
        raise UsageError(f"there is no command {name!r}; {hint}")
    run: Callable[[Sequence[str]], int] = getattr(import_module(f"textebm.commands.{COMMANDS[name]}"), name)
    return run
