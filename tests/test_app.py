"""The app: what stands behind its buttons, and the page in a real browser."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from textebm import app, generation
from textebm.errors import UsageError
from textebm.model.decoding import Decoding

FORBIDDEN = re.compile(r"^(?!https?://127\.0\.0\.1:|data:|blob:|about:)")


@pytest.fixture(scope="module")
def studio(trained_model: Path) -> app.Studio:
    return app.Studio(*generation.load(trained_model), name="tiny")


class TestGenerate:
    def test_is_what_the_command_writes(self, studio: app.Studio, trained_model: Path, command) -> None:
        drawn = studio.generate(4, 0.5, 7, 3)
        options = ("--temperature", 0.5, "--prior-steps", 7, "--seed", 3)
        done = command("generate", "-n", 4, "--model", trained_model, *options)
        assert [sample.text for sample in drawn] == done.lines

    def test_numbers_may_come_as_floats(self, studio: app.Studio) -> None:
        assert studio.generate(2.0, 1.0, float(studio.prior_steps), 0.0) == studio.generate(2, 1.0, 5, 0)

    @pytest.mark.parametrize("given", [(0, 1.0, 5, 0), (51, 1.0, 5, 0), (1, 1.0, -1, 0), (1, 1.0, 5, -1)])
    def test_numbers_out_of_range(self, studio: app.Studio, given: tuple[float, ...]) -> None:
        with pytest.raises(UsageError, match="is not between"):
            studio.generate(*given)


class TestInterpolate:
    def test_is_the_line_between_the_latents(self, studio: app.Studio) -> None:
        first, last = "the dog sees a king", "every ship follows the river at night"
        greedy = Decoding("greedy", max_length=studio.model.config.longest)
        known = generation.interpolate(studio.model, studio.tokenizer, first, last, 5, 2, greedy)
        assert studio.interpolate(first, last, 5, 2) == known

    def test_an_empty_sentence(self, studio: app.Studio) -> None:
        with pytest.raises(UsageError, match="one is empty"):
            studio.interpolate("the dog", "  ", 5, 0)


class TestWatch:
    def test_has_the_energy_of_every_step(self, studio: app.Studio) -> None:
        found = studio.watch(20, 1)
        assert len(found.energy.mean) == 21
        assert found.marks == (0, 1, 2, 4, 8, 12, 16, 20)
        assert found.texts is not None
        assert [len(chain) for chain in found.texts] == [8]

    def test_is_drawn_with_its_sentences(self, studio: app.Studio) -> None:
        found = studio.watch(5, 0)
        shown = app.watched_html(found)
        assert shown.count("<polyline") == 1
        assert shown.count("<tr>") == 1 + len(found.marks)
        assert found.verdict.words.split(".")[0] in shown


def test_what_a_model_writes_is_text() -> None:
    shown = app.samples_html([generation.Sample("<unk> <script>alert(1)</script> & so", -1.0)])
    assert "<td>&lt;unk&gt; &lt;script&gt;alert(1)&lt;/script&gt; &amp; so</td>" in shown


def test_without_gradio_says_what_to_install(monkeypatch: pytest.MonkeyPatch, command) -> None:
    monkeypatch.setattr(app, "find_spec", lambda package: None)
    done = command("app")
    assert done.code == 2
    assert "pip install 'textebm[app]'" in done.err


def test_a_model_of_images(trained_image_run: Path, command) -> None:
    pytest.importorskip("gradio", reason="the app needs Gradio")
    done = command("app", "--model", trained_image_run)
    assert done.code == 2
    assert "is a model of images" in done.err


class TestAddresses:
    def test_a_port_that_is_taken(self, trained_model: Path, command) -> None:
        pytest.importorskip("gradio", reason="the app needs Gradio")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = command("app", "--model", trained_model, "--port", port)
        assert done.code == 2
        assert f"no page can be served at 127.0.0.1:{port}: Address already in use" in done.err

    def test_an_address_of_another_machine(self, trained_model: Path, command) -> None:
        pytest.importorskip("gradio", reason="the app needs Gradio")
        done = command("app", "--model", trained_model, "--host", "192.0.2.1")  # of RFC 5737: nobody's
        assert done.code == 2
        assert "no page can be served at 192.0.2.1: Cannot assign requested address" in done.err

    @pytest.mark.parametrize("port", [0, 65536])
    def test_no_port(self, port: int, command) -> None:
        done = command("app", "--port", port)
        assert done.code == 2
        assert f"port is {port}: it must be from 1 to 65535" in done.err


class TestInABrowser:
    @pytest.fixture
    def address(self, trained_model: Path, start_process: Callable[..., Popen[str]]) -> Iterator[str]:
        """Where the program serves the page."""
        pytest.importorskip("gradio", reason="the app needs Gradio")
        served = start_process("app", "--model", trained_model)
        assert served.stdout is not None
        line = served.stdout.readline()
        if not line:
            _, said = served.communicate(timeout=60)
            pytest.fail(f"the app did not start:\n{said}")
        yield line.strip()
        served.terminate()
        served.communicate(timeout=60)

    def test_the_three_tabs_work_and_nothing_leaves_this_machine(self, address: str, browser) -> None:
        assert address.startswith("http://127.0.0.1:")
        with browser.visit(address) as visit:
            page = visit.page
            page.set_default_timeout(120_000)
            page.get_by_role("button", name="Generate", exact=True).click()
            page.locator(".textebm:visible tbody tr").nth(7).wait_for()
            page.get_by_role("tab", name="Interpolate").click()
            page.get_by_label("from this sentence").fill("the dog sees a king")
            page.get_by_label("to this one").fill("a small wolf fears the river")
            page.get_by_role("button", name="Interpolate", exact=True).click()
            page.locator(".textebm:visible tbody tr").nth(6).wait_for()
            page.get_by_role("tab", name="Energy").click()
            page.get_by_role("button", name="Watch", exact=True).click()
            page.locator(".textebm:visible svg polyline").wait_for()
            assert page.locator(".textebm:visible svg").bounding_box()["width"] > 200
        assert [asked for asked in visit.requests if FORBIDDEN.match(asked)] == []
        assert visit.complaints == []
