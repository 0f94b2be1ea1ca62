"""Golden values: the scores of a small committed text under every protocol, through the real command line.

Those of n-gram judges hold to 1e-6, whichever program estimates and reads the model. Those of neural judges are of the
recipe `tiny`, trained in a moment; they hold to 2 %, since products are rounded otherwise where the CPU has no bf16
(measured: 0.1 %).
"""

import json
from pathlib import Path

import pytest

GOLDEN: dict[str, dict[str, tuple[float, float]]] = {
    "kenlm5": {"fppl": (7.0933715, 10.332036), "rppl": (15.385785, 10.332036)},
    "arae-ngram": {"fppl": (24.608216, 43.574693), "rppl": (25.104629, 13.728030)},
    "fang2019": {"fppl": (8.3001459, 11.839426), "rppl": (24.150320, 2.6849518)},
    "lstm-sentence": {"fppl": (16.336517, 18.548224), "rppl": (32.073422, 18.548224)},
    "arae-rnn": {"fppl": (16.336517, 18.548224), "rppl": (27.353237, 18.548224)},
    "dgmvae": {"fppl": (16.336517, 18.548224), "rppl": (33.074182, 18.548224)},
}
"""protocol -> metric -> (score, real row)"""

NEURAL = ("lstm-sentence", "arae-rnn", "dgmvae")


def measured(command, golden: Path, metric: str, protocol: str, *more: object) -> dict:
    texts = ("--train", golden / "train.txt", "--reference", golden / "test.txt", "--valid", golden / "test.txt")
    done = command(metric, "--samples", golden / "samples.txt", *texts, "--protocol", protocol, *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No judges that this machine has kept."""
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("metric", ["fppl", "rppl"])
@pytest.mark.parametrize("protocol", [name for name in GOLDEN if name not in NEURAL])
def test_ngrams(protocol: str, metric: str, estimator: Path | None, golden: Path, command) -> None:
    lmplz = "built-in" if estimator is None else estimator
    found = measured(command, golden, metric, protocol, "--lmplz", lmplz)
    assert (found["score"], found["details"]["real_row"]["perplexity"]) == pytest.approx(
        GOLDEN[protocol][metric], rel=1e-6
    )


@pytest.mark.usefixtures("own_home")
@pytest.mark.parametrize("protocol", NEURAL)
def test_neural(protocol: str, golden: Path, command) -> None:
    for metric in ("fppl", "rppl"):
        found = measured(command, golden, metric, protocol, "--recipe", "tiny")
        assert (found["score"], found["details"]["real_row"]["perplexity"]) == pytest.approx(
            GOLDEN[protocol][metric], rel=0.02
        )
        assert found["details"]["headline"] is False


@pytest.mark.usefixtures("own_home")
def test_a_judge_is_trained_once_and_kept(golden: Path, command, tmp_path: Path) -> None:
    first, second = (measured(command, golden, "fppl", "lstm-sentence", "--recipe", "tiny") for _ in range(2))
    assert first == second
    assert len(list((tmp_path / "home" / "judges").iterdir())) >= 1
    cut = measured(command, golden, "fppl", "lstm-sentence", "--recipe", "tiny", "--judge-epochs", 1)
    assert "|epochs:1-cut|" in cut["signature"] or "|epochs:3-all-epochs|" in cut["signature"]


def test_quirks_and_reasons_are_printed(golden: Path, command) -> None:
    texts = ("--samples", golden / "samples.txt", "--train", golden / "train.txt", "--lmplz", "built-in")
    done = command("fppl", *texts, "--protocol", "fang2019")
    assert "quirk of fang2019: RPPL is the perplexity of the training file" in done.err
    assert "not for the main table: fang2019 is not the headline protocol" in " ".join(done.err.split())
    assert json.loads(done.out)["details"]["protocol"]["quirks"]
