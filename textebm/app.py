"""`textebm app`: a page in the browser that makes sentences as one turns the knobs.

What stands behind its buttons is a `Studio`, plain functions that need no browser. The page is served to this machine
alone unless another address is asked for; it is shared with nobody, and neither it nor its server asks anything of
another machine.
"""

import dataclasses
import os
import socket
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from textebm import analysis, generation
from textebm.charts import Chart, Line
from textebm.errors import TextebmError, UsageError
from textebm.generation import Sample
from textebm.model.decoding import Decoding
from textebm.model.latent_model import LatentModel
from textebm.report_page import chart_svg

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_SENTENCES, MOST_POINTS, MOST_STEPS = 50, 15, 1000
"""What may be asked for at once: one page is served, and whoever else asks waits."""
WATCHED = 16
"""Chains whose energy is watched; the sentences are the first one's."""
STYLE = """
.textebm table { border-collapse: collapse; width: 100%; }
.textebm th, .textebm td { text-align: left; vertical-align: top; padding: .3rem .6rem; overflow-wrap: anywhere; }
.textebm th, .textebm td { border: 1px solid var(--chart-rule); }
.textebm th { overflow-wrap: normal; }
.textebm .chart { max-width: 28rem; }
"""


def require_gradio() -> None:
    """Check that the page can be served.

    Raises:
        UsageError: Gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise UsageError("the app needs Gradio: pip install 'textebm[app]'")


@dataclasses.dataclass(frozen=True)
class Studio:
    """What the page does with a model of text.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: its tokeniser.
        name: what the page calls it.
    """

    model: LatentModel
    tokenizer: "Tokenizer"
    name: str

    @property
    def prior_steps(self) -> int:
        """Steps of the prior chain of training."""
        return analysis.short_run_steps(self.model)

    def generate(self, sentences: float, temperature: float, prior_steps: float, seed: float) -> list[Sample]:
        """Sentences from the prior.

        Args:
            sentences: how many.
            temperature: logits are divided by this before a word is drawn.
            prior_steps: Langevin steps of the prior chain.
            seed: the same seed gives the same sentences.

        Raises:
            UsageError: a number is out of its range.
        """
        count = _within("sentences", sentences, 1, MOST_SENTENCES)
        steps, longest = _within("prior steps", prior_steps, 0, MOST_STEPS), self.model.config.longest
        decoding = Decoding(temperature=temperature, max_length=longest)
        drawn = generation.generate(self.model, self.tokenizer, count, _seed(seed), decoding, steps)
        return list(drawn)

    def interpolate(self, first: str, last: str, points: float, seed: float) -> list[Sample]:
        """Sentences on the line between the latents of two sentences, words chosen greedily.

        Raises:
            UsageError: a sentence is empty, a number is out of its range, or the model has no z.
        """
        if not (first.strip() and last.strip()):
            raise UsageError("two sentences are wanted, and one is empty")
        count = _within("points", points, 2, MOST_POINTS)
        return generation.interpolate(self.model, self.tokenizer, first, last, count, _seed(seed))

    def watch(self, steps: float, seed: float) -> analysis.Transition:
        """Prior chains on their way from the reference Gaussian.

        Raises:
            UsageError: a number is out of its range, or the model has no z.
        """
        length = _within("steps", steps, 1, MOST_STEPS)
        return analysis.transition(
            self.model, self.tokenizer, chains=WATCHED, shown=1, steps=length, marks=_marks(length), seed=_seed(seed)
        )


def _marks(steps: int) -> list[int]:
    """Steps at which a chain's sentence is shown: close together at first, where the most happens."""
    return sorted({0, *(steps * share // 100 for share in (2, 5, 10, 20, 40, 60, 80)), steps})


def _within(name: str, value: float, least: int, most: int) -> int:
    if not least <= value <= most:
        raise UsageError(f"{name}: {value:g} is not between {least} and {most}")
    return int(value)


def _seed(value: float) -> int:
    return _within("seed", value, 0, 2**31)


# ---- what the page shows


def samples_html(samples: Sequence[Sample]) -> str:
    """Sentences with the energies of their latents."""
    return _table(("energy", "sentence"), [(f"{sample.energy:.1f}", sample.text) for sample in samples])


def watched_html(found: analysis.Transition) -> str:
    """The energy over steps, and one chain's sentences at the marks."""
    steps, mean, sd = [float(step) for step in range(found.steps + 1)], found.energy.mean, found.energy.sd
    low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
    title = f"Energy −f(z), nats: mean ± sd over {found.chains} chains"
    chart = Chart("energy", title, "Langevin step", [Line("energy", steps, mean, low, high)], marks=[*found.marks])
    assert found.texts is not None  # the model is one of text
    rows = [
        (str(mark), f"{energy:.1f}", text)
        for mark, energy, text in zip(found.marks, found.mark_energy[0], found.texts[0], strict=True)
    ]
    table = _table(("step", "energy", "sentence of the first chain"), rows)
    return Markup("<h3>{}</h3>{}{}<p>{}</p>").format(title, chart_svg(chart), table, found.verdict.words)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table; whatever stands in it is escaped."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in header)
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in rows
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


# ---- the page


def page(studio: Studio) -> Any:  # noqa: ANN401
    """The page, a `gradio.Blocks` that is not served yet."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which asks for it
    import gradio

    # One model: one thing at a time.
    knobs: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    with gradio.Blocks(title=f"textebm: {studio.name}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# textebm\n\nThe model `{studio.name}`: z from a learned prior, then words.")
        with gradio.Tab("Generate"):
            sentences = gradio.Slider(1, MOST_SENTENCES, 8, step=1, label="sentences")
            temperature = gradio.Slider(0.1, 2.0, 1.0, step=0.1, label="temperature of the words")
            steps = gradio.Slider(0, max(200, studio.prior_steps), studio.prior_steps, step=1, label="prior steps")
            seed = gradio.Number(0, precision=0, minimum=0, label="seed")
            button, shown = gradio.Button("Generate", variant="primary"), _output(gradio)
            act = _told(lambda *given: samples_html(studio.generate(*given)))
            button.click(act, [sentences, temperature, steps, seed], shown, **knobs)
        with gradio.Tab("Interpolate"):
            first, last = gradio.Textbox(label="from this sentence"), gradio.Textbox(label="to this one")
            points = gradio.Slider(2, MOST_POINTS, 7, step=1, label="points, both ends included")
            seed = gradio.Number(0, precision=0, minimum=0, label="seed")
            button, shown = gradio.Button("Interpolate", variant="primary"), _output(gradio)
            act = _told(lambda *given: samples_html(studio.interpolate(*given)))
            button.click(act, [first, last, points, seed], shown, **knobs)
        with gradio.Tab("Energy"):
            length = gradio.Slider(1, MOST_STEPS, 100, step=1, label="Langevin steps from the reference Gaussian")
            seed = gradio.Number(0, precision=0, minimum=0, label="seed")
            button, shown = gradio.Button("Watch", variant="primary"), _output(gradio)
            act = _told(lambda *given: watched_html(studio.watch(*given)))
            button.click(act, [length, seed], shown, **knobs)
    return blocks


def _output(gradio: Any) -> Any:  # noqa: ANN401
    return gradio.HTML(elem_classes="textebm")


def _told(act: Callable[..., str]) -> Callable[..., str]:
    """The same, with our errors told on the page."""

    @wraps(act)
    def told(*given: Any) -> str:  # noqa: ANN401
        from gradio import Error

        try:
            return act(*given)
        except TextebmError as error:
            raise Error(escape(str(error)), print_exception=False) from None  # it is shown as HTML

    return told


def require_address(host: str, port: int | None) -> None:
    """Check that a page can be served there, which Gradio would try port by port.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port or 0), family=family):
        pass


def serve(studio: Studio, host: str = "127.0.0.1", port: int | None = None, open_browser: bool = False) -> Any:  # noqa: ANN401
    """Serve the page from a thread of its own.

    Args:
        studio: what it does.
        host: address to serve; the default is this machine's own.
        port: None: the first free one from 7860 on.
        open_browser: open it in the browser.

    Returns:
        The `gradio.Blocks`: `local_url` says where, `block_thread()` waits for an interrupt, `close()` ends it.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """
    require_address(host, port)
    blocks = page(studio)
    style = (resources.files("textebm") / "templates" / "chart.css").read_text(encoding="utf-8")
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        footer_links=[],
        css=style + STYLE,
    )
    return blocks
