"""Runs of an experiment in one row a method: means, spreads, differences, published rows, warnings."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from textebm.comparison.runs import mean_and_spread
from textebm.comparison.text import Systems, read_run
from textebm.config import load_config, to_dict
from textebm.errors import DataError, UsageError
from textebm.lm_eval import Signature
from textebm.lm_eval.bootstrap import interval
from textebm.lm_eval.kept import grouped, keep_scores, kept_scores
from textebm.lm_eval.perplexity import SentenceScores
from textebm.lm_eval.published import published_rows, published_tables

PTB = "5145926136ee"
KENLM = "data:ptb|train:{train}|n:42068|decoding:sample-t1|judge:kenlm5|order:5|eos:yes|seed:0|version:0.1.0"
LSTM = (
    "data:ptb|train:{train}|n:42068|decoding:sample-t1|judge:lstm-sentence|recipe:lstm-sentence-ptb|"
    "vocabulary:train-9999|eos:yes|seed:0|version:0.1.0"
)
LEVELS = {"lebm": 4.9, "sri": 5.0, "vae": 5.1}
"""Log-perplexity of each method."""


class Results:
    """A folder of results and of the scores of sentences behind them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths: list[Path] = []

    def add(
        self,
        method: str,
        seed: int,
        *,
        preset: str = "ptb-small",
        facts: str = KENLM.format(train=PTB),
        judges: int = 1,
        keep: bool = True,
        **content: object,
    ) -> Path:
        """A run whose judges differ by 1 % and whose seeds differ by 2 %."""
        name = f"{preset}-{method}-seed{seed}"
        source, test = np.random.default_rng([seed, *method.encode()]), np.random.default_rng(9)
        result: dict = {"name": name, "preset": preset, "method": method, "seed": seed}
        result |= {"sentence_scores": f"scores/{name}", "config": {"seed": seed, "data": "ptb"}}
        result |= {
            "test": {"reconstruction_nll": 100 + seed, "prior_nll": 110.0},
            "valid": {"active_units": 30 + seed},
            **content,
        }
        for metric, draw in (("fppl", source), ("rppl", test)):
            tokens = draw.integers(1, 30, size=400)
            hard = draw.normal(size=400) * 0.3
            level = LEVELS[method] + 0.02 * np.random.default_rng([seed, 5, *method.encode()]).normal()
            runs = [SentenceScores(-(level + 0.01 * judge + hard) * tokens, tokens) for judge in range(judges)]
            text = f"metric:{metric}|{facts}" + ("|test:c2f8c16a6115" if metric == "rppl" else "")
            result[metric] = {
                "metric": metric,
                "score": float(np.mean([run.perplexity for run in runs])),
                "interval": [1.0, 999.0],
                "signature": text,
                "details": {"headline": True, "real_row": {"perplexity": 141.19}},
            }
            if keep:
                place = self.folder / result["sentence_scores"]
                place.mkdir(parents=True, exist_ok=True)
                judge = Signature.parse(text)["judge"]
                keep_scores(place / f"{judge}-{metric}.npz", Signature.parse(text), runs)
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(result), encoding="utf-8")
        self.paths.append(path)
        return path

    def compared(self, **options: object) -> Systems:
        runs = [read_run(path) for path in self.paths]
        return Systems(runs, resamples=200, **options)  # type: ignore[arg-type]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two methods with three seeds."""
    made = Results(tmp_path)
    for method in ("lebm", "sri"):
        for seed in range(3):
            made.add(method, seed)
    return made


class TestKeptScores:
    def test_come_back_as_they_were(self, tmp_path: Path) -> None:
        tokens = np.array([3, 1, 2])
        runs = [SentenceScores(np.array([-3.1, -1.7, -0.1]) * scale, tokens) for scale in (1, 2)]
        signature = Signature({"metric": "fppl", "data": "a|b"})
        keep_scores(tmp_path / "x.npz", signature, runs)
        kept = kept_scores(tmp_path / "x.npz")
        assert kept.signature == signature
        assert [list(run.log_probs) for run in kept.runs] == [list(run.log_probs) for run in runs]
        assert all(list(run.tokens) == [3, 1, 2] for run in kept.runs)
        assert kept.score == np.mean([run.perplexity for run in runs])
        assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]

    @pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x05\x06" + 18 * b"\x00"])
    def test_other_files_are_refused(self, content: bytes | None, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz: cannot be read as scores of sentences"):
            kept_scores(path)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, log_probs=np.array([{}], dtype=object), tokens=np.array([1]), signature=np.array("a:b"))
        with pytest.raises(DataError, match="cannot be read"):
            kept_scores(path)

    def test_arrays_that_do_not_belong_together(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        np.savez(path, log_probs=np.zeros((1, 3)), tokens=np.ones(2), signature=np.array("a:b"))
        with pytest.raises(DataError, match="do not belong together"):
            kept_scores(path)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be written"):
            keep_scores(
                tmp_path / "missing" / "x.npz", Signature({"a": 1}), [SentenceScores(np.zeros(1), np.ones(1, int))]
            )


class TestGroups:
    @pytest.mark.parametrize(("sentences", "groups"), [(1, 1), (7, 7), (1000, 1000), (1001, 1000), (3761, 1000)])
    def test_hold_every_sentence_once_in_order(self, sentences: int, groups: int) -> None:
        tokens = np.arange(1, sentences + 1)
        (found,) = grouped([SentenceScores(-1.0 * tokens**2, tokens)])
        assert len(found.tokens) == groups
        ends = found.tokens.cumsum()
        assert set(ends) <= set(tokens.cumsum())
        assert ends[-1] == tokens.sum()
        assert np.array_equal(found.log_probs.cumsum(), -1.0 * (tokens**2).cumsum()[np.isin(tokens.cumsum(), ends)])

    def test_are_the_same_sentences_for_every_judge(self) -> None:
        tokens = np.arange(1, 2_501)
        runs = grouped([SentenceScores(-1.0 * tokens * scale, tokens) for scale in (1, 2)])
        assert np.array_equal(2 * runs[0].log_probs, runs[1].log_probs)
        assert np.array_equal(runs[0].tokens, runs[1].tokens)

    def test_tell_as_much_of_the_spread_as_sentences(self) -> None:
        source = np.random.default_rng(0)
        tokens = source.integers(1, 40, size=20_000)
        run = SentenceScores(-tokens * (5 + source.normal(size=20_000)), tokens)
        widths = [high - low for low, high in (interval(run), interval(grouped([run])[0]))]
        assert widths[0] == pytest.approx(widths[1], rel=0.15)


class TestRows:
    def test_a_method_is_a_row_with_mean_and_spread_over_seeds(self, results: Results) -> None:
        found = results.compared().as_dict()
        (table,) = found["tables"]
        assert [(row["method"], list(row["scores"]["fppl"])) for row in table["rows"]] == [
            ("lebm", ["0", "1", "2"]),
            ("sri", ["0", "1", "2"]),
        ]
        scores = [read_run(path).content["rppl"]["score"] for path in results.paths[:3]]
        shown = results.compared().render("markdown")
        row = next(line for line in shown.splitlines() if line.startswith("| lebm |"))
        assert f"| {np.mean(scores):.2f} ± {np.std(scores, ddof=1):.2f} |" in row
        assert "| 101.00 ± 1.00 | 110.00 ± 0.00 | - | - | 31.00 ± 1.00 |" in row
        assert "| real text | - | 141.19 | 141.19 |" in shown
        assert found["warnings"] == []

    def test_the_marginal_nll_is_of_the_same_sentences_in_every_row(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        made.add("lebm", 0, likelihood={"score": 111.25, "perplexity": 160.5})
        made.add("vae", 0, test={"nll": 99.0, "perplexity": 90.0}, likelihood={"score": 112.75, "perplexity": 170.5})
        made.add("sri", 0, likelihood={"score": None, "perplexity": None})
        shown = made.compared().render("markdown")
        rows = {line.split("|")[1].strip(): line for line in shown.splitlines() if line.startswith("| ")}
        assert "| 111.25 |" in rows["lebm"]
        assert "| 112.75 |" in rows["vae"] and "99.00" not in rows["vae"]
        assert "110.00 | - |" in rows["sri"]

    def test_mean_and_spread(self) -> None:
        assert mean_and_spread([]) == mean_and_spread([None]) == "-"
        assert mean_and_spread([2.0, None]) == "2.00 (1 of 2)"
        assert mean_and_spread([1, 3]) == "2.00 ± 1.41"
        assert mean_and_spread([1, None, 3]) == "2.00 ± 1.41 (2 of 3)"

    def test_presets_are_rows_of_their_own(self, results: Results) -> None:
        results.add("lebm", 0, preset="ptb")
        rows = [row.label for row in results.compared().rows(results.compared().tables[0])]
        assert rows == ["lebm (ptb-small)", "sri (ptb-small)", "lebm (ptb)"]

    def test_scores_that_do_not_compare_share_no_table(self, results: Results) -> None:
        results.add("vae", 0, facts=KENLM.format(train="000000000000"))
        found = results.compared()
        assert [[row.method for row in found.rows(table)] for table in found.tables] == [["lebm", "sri"], ["vae"]]
        assert any("do not compare and share no table" in warning for warning in found.warnings)

    def test_a_score_that_stands_elsewhere_is_missed(self, results: Results) -> None:
        """Another test split: RPPL does not compare, and FPPL, which knows no test split, stands in both tables."""
        path = results.add("sri", 3)
        content = json.loads(path.read_text())
        content["rppl"]["signature"] = content["rppl"]["signature"].replace("c2f8", "0000")
        path.write_text(json.dumps(content))
        warnings = results.compared().warnings
        assert any(warning.endswith("sri has no RPPL here of the seeds 3") for warning in warnings)

    def test_runs_of_different_settings_are_no_row(self, results: Results) -> None:
        results.add("sri", 3, config={"seed": 3, "data": "ptb", "epochs": 9})
        said = "sri on ptb-small: its runs were trained with different settings (epochs)"
        results.add("sri", 4, config={"seed": 4, "data": "ptb", "epochs": 3})
        assert said in results.compared().warnings

    def test_a_setting_that_came_later_makes_no_other_row(self, results: Results) -> None:
        results.add("sri", 3, config={"seed": 3, "data": "ptb", "prior": {"of_tomorrow": 1}})
        assert not any("different settings" in warning for warning in results.compared().warnings)

    def test_rows_that_differ_in_more_than_their_methods(self, results: Results) -> None:
        shipped = {method: to_dict(load_config("ptb-small", method)) for method in ("lebm", "vae")}
        results.add("vae", 0, config=shipped["vae"] | {"seed": 0})
        assert not any("more than its method" in warning for warning in results.compared().warnings)
        results.paths.clear()
        results.add("lebm", 0, config=shipped["lebm"] | {"epochs": 7})
        results.add("vae", 0, config=shipped["vae"])
        said = "lebm on ptb-small: it differs from other rows in more than its method: epochs 7"
        assert said in results.compared().warnings
        results.paths.clear()
        for method, settings in shipped.items():
            results.add(method, 0, config=settings | {"epochs": 7, "data_dir": method})
        assert not any("more than its method" in warning for warning in results.compared().warnings)

    def test_runs_differ_in_what_is_done_about_exploding_chains(self, results: Results) -> None:
        results.add("sri", 3, config={"seed": 3, "data": "ptb", "on_divergence": "reject"})
        assert not any("different settings" in warning for warning in results.compared().warnings)

    def test_the_exact_likelihood_of_a_language_model_is_a_marginal_one(self, results: Results) -> None:
        results.add("vae", 0, test={"nll": 102.5, "perplexity": 101.25})
        shown = results.compared(published=True).render("markdown")
        row = next(line for line in shown.splitlines() if line.startswith("| vae |"))
        assert "| - | - | 102.50 | - | 30.00 |" in row
        assert "| vae | 101.25 | - | 30.00 | - |" in shown

    def test_it_is_said_of_which_sentences_figures_are_and_which_are_doubtful(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        signature = "metric:marginal-nll|data:ptb|scored:valid|sentences:200"
        for seed, warnings in enumerate(([], ["the bound may be far off"])):
            details = {"sentences": 200, "warnings": warnings, "reconstruction": {"nll": 104.0, "kl": 8.5}}
            likelihood = {"score": 110.0, "perplexity": 182.0, "signature": signature, "details": details}
            made.add("sri", seed, test={"reconstruction_nll": 114.0, "sentences": 2000}, likelihood=likelihood)
        shown = made.compared(published=True).render("markdown")
        assert "| sri | 0, 1 |" in shown
        assert "| 110.00 ± 0.00 † | 8.50 ± 0.00 † |" in shown
        assert "reconstruction NLL and NLL, z from the prior: 2,000 sentences of test; " in shown
        assert "marginal NLL and KL: 200 sentences of valid" in shown
        assert "warning: †: marginal NLL and KL of sri on ptb-small, seeds 1: the bound may be far off" in shown

    def test_the_kl_is_told_with_the_normaliser_or_not_at_all(self, tmp_path: Path) -> None:
        """What validation logs of an EBM prior lacks log Z, and may lie below 0."""
        made = Results(tmp_path)
        made.add("lebm", 0, test={"reconstruction_nll": 114.0, "kl": -5.4})
        assert "-5.4" not in made.compared(published=True).render("markdown")

    def test_a_name_comes_once(self, results: Results) -> None:
        results.paths.append(results.paths[0])
        with pytest.raises(DataError, match="ptb-small-lebm-seed0"):
            results.compared()

    def test_other_results_are_no_runs(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        score = {"metric": "fppl", "score": 1.5, "signature": "metric:fppl|judge:kenlm5"}
        path.write_text(json.dumps({"name": "x", "fppl": score}))
        with pytest.raises(DataError, match="no run of an experiment: it must say name, preset, method and seed"):
            read_run(path)


class TestDifferences:
    def test_from_one_method_in_both_metrics(self, results: Results) -> None:
        (differences,) = results.compared(against=["sri"]).differences
        assert [(each.first, each.second, each.metric) for each in differences] == [
            ("lebm", "sri", "fppl"),
            ("lebm", "sri", "rppl"),
        ]
        forward, reverse = differences
        assert forward.method == "hierarchical-bootstrap, independent-sentences"
        assert reverse.method == "hierarchical-bootstrap, paired-sentences"
        for each in differences:
            assert (each.seeds, each.judges) == (3, 1)
            assert each.ratio is not None and each.ratio_interval is not None
            assert each.ratio_interval[0] < each.ratio < each.ratio_interval[1]
            assert each.difference_interval[0] < each.difference < each.difference_interval[1]
        assert reverse.ratio == pytest.approx(np.exp(LEVELS["lebm"] - LEVELS["sri"]), rel=0.05)

    def test_are_shown_with_how_they_were_made(self, results: Results) -> None:
        found = results.compared(against=["sri"])
        shown = found.render("markdown")
        each = found.differences[0][1]
        assert f"| lebm − sri | RPPL | 3 | 1 | {each.ratio:.4f} |" in shown
        assert "hierarchical bootstrap over pairs of runs" in shown
        assert "kenlm5 is deterministic: there is one judge, and no judge seed" in shown
        assert json.loads(found.render("json"))["tables"][0]["differences"][1]["metric"] == "rppl"

    def test_several_judges_are_drawn_too(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        for method in ("lebm", "sri"):
            for seed in range(2):
                made.add(method, seed, facts=LSTM.format(train=PTB), judges=2)
        found = made.compared(against=["sri"])
        assert [(each.seeds, each.judges) for each in found.differences[0]] == [(2, 2), (2, 2)]
        assert "is deterministic" not in found.render("text")

    def test_seeds_that_only_one_has_are_left_out_and_said(self, results: Results) -> None:
        results.add("lebm", 3)
        found = results.compared(against=["sri"])
        assert {each.seeds for each in found.differences[0]} == {3}
        assert any("only one of them has the seeds 3: left out" in warning for warning in found.warnings)

    def test_one_seed_leaves_the_sentences_and_is_said(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        for method in ("lebm", "sri"):
            made.add(method, 0)
        found = made.compared(against=["sri"])
        assert [each.method for each in found.differences[0]] == [
            "one-seed, independent-bootstrap",
            "one-seed, paired-bootstrap",
        ]
        assert all(each.ratio is None for each in found.differences[0])
        (said,) = [warning for warning in found.warnings if "says nothing about the next seed" in warning]
        assert "lebm − sri (FPPL, RPPL): one seed" in said

    def test_of_one_seed_are_of_all_judges(self, tmp_path: Path) -> None:
        """Of the same means that the table shows."""
        made = Results(tmp_path)
        for method in ("lebm", "sri"):
            made.add(method, 0, facts=LSTM.format(train=PTB), judges=2)
        found = made.compared(against=["sri"])
        scores = {run.method: {item.metric: item.score for item in run.items} for run in found.runs}
        for each in found.differences[0]:
            assert each.judges == 2
            assert each.difference == pytest.approx(scores["lebm"][each.metric] - scores["sri"][each.metric])
            assert each.difference_interval[0] < each.difference < each.difference_interval[1]

    def test_of_several_the_row_that_shares_most_settings_is_taken(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        settings = {
            "sri": {"prior": {"kind": "gaussian"}, "inference": {"temperature": 1.0}},
            "vae": {"prior": {"kind": "gaussian"}, "inference": {"temperature": 0.5}},
            "lebm": {"prior": {"kind": "ebm"}, "inference": {"temperature": 0.5}},
        }
        for method, config in settings.items():
            for seed in range(2):
                made.add(method, seed, config=config)
        for against in (["sri", "vae"], ["vae", "sri"]):
            (differences,) = made.compared(against=against).differences
            assert {(each.first, each.second) for each in differences} == {("lebm", "vae")}
        (differences,) = made.compared(against=["sri"]).differences
        assert {(each.first, each.second) for each in differences} == {("lebm", "sri"), ("vae", "sri")}

    def test_without_scores_of_sentences_there_is_none(self, results: Results) -> None:
        (results.folder / "scores" / "ptb-small-lebm-seed1" / "kenlm5-rppl.npz").unlink()
        found = results.compared(against=["sri"])
        assert [each.metric for each in found.differences[0]] == ["fppl"]
        assert any("lebm − sri (RPPL): no interval: " in warning for warning in found.warnings)

    def test_scores_of_sentences_of_another_score_are_refused(self, results: Results) -> None:
        scores = [results.folder / "scores" / f"ptb-small-lebm-seed{seed}" / "kenlm5-rppl.npz" for seed in (0, 1)]
        scores[0].write_bytes(scores[1].read_bytes())
        found = results.compared(against=["sri"])
        assert any("is not of the score in the result of ptb-small-lebm-seed0" in warning for warning in found.warnings)

    def test_from_a_method_that_is_not_there(self, results: Results) -> None:
        with pytest.raises(UsageError, match="no run of it; methods: lebm, sri"):
            results.compared(against=["vae"])
        results.add("vae", 0, preset="ptb")
        assert any("vae (ptb): no run of sri beside it" in w for w in results.compared(against=["sri"]).warnings)


class TestPublishedRows:
    def test_stand_beside_their_like(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        made.add("lebm", 0, facts=LSTM.format(train=PTB))
        found = made.compared(published=True)
        assert "| LEBM (published) | - | 107.45 | 181.54 | 91.35 | - | - | - |" in found.render("markdown")
        assert not any("published" in warning for warning in found.warnings)

    def test_stand_apart_from_others_and_it_is_said_why(self, results: Results) -> None:
        found = results.compared(published=True)
        shown = found.render("markdown")
        assert "(published) | - | 107.45" not in shown
        assert "| LEBM | - | 107.45 | 181.54 | 91.35 | - | - | - |" in shown.split("**published, ptb:")[1]
        assert any("published rows do not compare: their judge was an LSTM" in warning for warning in found.warnings)

    def test_text_vaes_stand_beside_our_fit(self, results: Results) -> None:
        shown = results.compared(published=True).render("markdown")
        assert "| lebm | - | 101.00 ± 1.00 | 31.00 ± 1.00 | - |" in shown
        assert "| FB-VAE (published) | 96.35 | 94.52 | 32 | 8.15 |" in shown

    def test_other_data_are_said(self, tmp_path: Path) -> None:
        made = Results(tmp_path)
        made.add("lebm", 0, facts=KENLM.format(train="000000000000"))
        assert any("published figures of fit do not compare" in w for w in made.compared(published=True).warnings)

    def test_every_published_table_is_whole(self) -> None:
        for table in published_tables():
            assert len(table.rows) >= 6
            assert all(len(row) == 1 + len(table.columns) for row in table.rows)
        assert {table.name for table in published_tables()} == {"text-vae", "images", "anomaly"}
        assert published_tables("images", "svhn")[0].rows[5] == ("LEBM", "0.008", "29.44")
        ours = next(row for row in published_tables("anomaly")[0].rows if row[0] == "LEBM")
        assert ours[1] == "0.336 ± 0.008"
        nll = {row["system"]: row.get("nll") for row in published_rows()["data"]["yahoo"]["rows"]}
        assert nll == {"Real data": None, "SA-VAE": 326.7, "FB-VAE": 319.96, "ARAE": 320.09, "LEBM": 321.18}


class TestTheCommand:
    def test_writes_the_table(self, results: Results, command) -> None:
        words = ["compare", *results.paths, "--against", "sri", "--resamples", "200"]
        done = command(*words, "--published", "--format", "markdown", "--output", results.folder / "table2.md")
        assert done.code == 0, done.err
        assert "warning: " in done.err
        written = (results.folder / "table2.md").read_text(encoding="utf-8")
        assert written == results.compared(against=["sri"], published=True).render("markdown") + "\n"
        rows = command("compare", *results.paths, "--by-method", "--format", "csv").lines
        assert rows[0].startswith("table,what,,seeds,FPPL")
        assert [row.count("lebm") for row in rows[1:]] == [1, 0, 0] and "real text" in rows[-1]

    def test_without_files_it_shows_what_was_published(self, command) -> None:
        done = command("compare", "--published", "--format", "markdown")
        assert done.code == 0
        assert "| LEBM | 107.45 | 181.54 | 91.35 |" in done.out
        assert "| DAMC 2023 | - | 18.76 |" in done.out
        found = json.loads(command("compare", "--published", "--format", "json").out)["published"]
        assert len(found) == 3 + len(published_tables())
        rows = [*csv.reader(command("compare", "--published", "--format", "csv").lines)]
        assert len(rows) == 1 + sum(len(table["rows"]) for table in found)
        assert {len(row) for row in rows} == {7}

    def test_wrong_usage(self, results: Results, command) -> None:
        for words, said in (
            (("--against", "vae"), "no run of it"),
            (("--against", "sri", "--resamples", "0"), "--resamples is 0"),
        ):
            done = command("compare", *results.paths, *words)
            assert done.code == 2
            assert said in done.err
        assert "no file is given" in command("compare").err
