"""The whole model: one contract over priors and cells; its seed; how it is saved, loaded and refused."""

import json
import math

import pytest
import torch

from textebm.config import Config, GeneratorConfig, InferenceConfig, PriorConfig
from textebm.errors import CheckpointError, TextebmError
from textebm.model.decoding import Decoding
from textebm.model.energy import PRIORS, EBMPrior, GaussianPrior, RatioPrior
from textebm.model.latent_model import CONFIG, WEIGHTS, LatentModel, ModelConfig
from textebm.model.learner import Learner
from textebm.model.random import stream
from textebm.model.recurrent import EOS, FIRST_OUTPUT, UNK

SENTENCES = [[4, 5, 6], [7], [], [8, 7, 6, 5]]
CELLS = ["lstm", "gru"]


def model_config(kind="ebm", cell="lstm", **prior):
    return ModelConfig(
        vocab_size=9,
        prior=PriorConfig(**{"kind": kind, "latent_dim": 3, "width": 8, "steps": 5, "step_size": (0.5, 0.3), **prior}),
        generator=GeneratorConfig(cell=cell, embedding_dim=4, hidden_dim=6, dropout=0.2, init_range=0.5),
        inference=InferenceConfig("none" if kind == "none" else "short-run", steps=4, step_size=0.3),
        longest=12,
    )


@pytest.fixture
def model(kind, cell) -> LatentModel:
    return LatentModel(model_config(kind, cell), seed=3)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", sorted(set(PRIORS) - {"none"}))
class TestLatent:
    """What every prior of a z promises, beside every generator."""

    def test_potential_is_the_log_density_turned_round(self, model, slope, generator):
        prior = model.double().prior
        z = prior.sample_reference(6, generator)
        value, gradient = prior.potential(z)
        difference = value + prior.tilt(z).detach() + prior.log_reference(z)
        torch.testing.assert_close(difference, difference[:1].expand(6))
        torch.testing.assert_close(gradient, slope(lambda p: prior.potential(p)[0], z), rtol=1e-6, atol=1e-7)

    def test_sampling_the_prior(self, model):
        one, same, other = (model.sample_prior(7, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert one.shape == (7, 3)
        assert not one.requires_grad
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_chain_of_no_steps_is_the_reference(self, model):
        start, reference = (torch.Generator().manual_seed(4) for _ in range(2))
        z = model.sample_prior(7, start, steps=0)
        assert torch.equal(z, model.prior.sample_reference(7, reference))

    def test_inference(self, model, make_batch):
        x = make_batch(SENTENCES)
        one, same = (model.infer(x, torch.Generator().manual_seed(1)) for _ in range(2))
        assert one.shape == (4, 3)
        assert one.isfinite().all()
        assert torch.equal(one, same)

    def test_energy(self, model, kind, generator):
        z = torch.randn(5, 3, generator=generator)
        energy = model.energy(z)
        torch.testing.assert_close(energy, -model.prior.tilt(z).detach())
        assert (energy == 0).all() == (kind != "ebm")  # ratios begin as 1


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", sorted(PRIORS))
class TestContract:
    """What every combination of prior and generator promises."""

    def test_log_prob(self, model, make_batch, generator):
        x, z = make_batch(SENTENCES), model.sample_prior(4, generator)
        log_prob = model.log_prob(x, z)
        assert log_prob.shape == (4,)
        assert not log_prob.requires_grad
        assert (log_prob < 0).all()
        torch.testing.assert_close(log_prob, model.condition(x).log_prob(z).detach())

    def test_generation(self, model, kind):
        def sentences(latents=1, words=2, **options):
            sources = [torch.Generator().manual_seed(seed) for seed in (latents, words)]
            return model.generate(30, *sources, **options)

        assert len(sentences()) == 30
        assert sentences() == sentences()
        assert (sentences() == sentences(latents=3)) == (kind == "none")
        assert sentences() != sentences(words=3)
        assert all(UNK <= word < 9 for s in sentences() for word in s)
        assert max(map(len, sentences())) <= 12  # the longest training sentence, by default
        assert max(map(len, sentences(decoding=Decoding(max_length=2)))) == 2

    def test_learning(self, model, make_batch):
        before = [p.detach().clone() for p in model.generator.parameters()]
        learner = Learner(
            model,
            Config(prior=model.config.prior, generator=model.config.generator, inference=model.config.inference),
            1,
        )
        report = learner.step(make_batch(SENTENCES), 0)
        assert all(math.isfinite(value) for value in report.__dict__.values())
        assert any(not torch.equal(p, b) for p, b in zip(model.generator.parameters(), before, strict=True))

    def test_saving_and_loading_is_exact(self, model, tmp_path):
        model.save_pretrained(tmp_path / "new" / "folder")
        loaded = LatentModel.from_pretrained(tmp_path / "new" / "folder")
        assert loaded.config == model.config
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.state_dict().items())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_saving_in_half_the_space(self, model, tmp_path, dtype):
        model.save_pretrained(tmp_path / "full")
        model.save_pretrained(tmp_path / "half", dtype)
        loaded = LatentModel.from_pretrained(tmp_path / "half")
        for name, weight in loaded.state_dict().items():
            assert weight.dtype == torch.float32
            assert torch.equal(weight, model.state_dict()[name].to(dtype).float())
        assert (tmp_path / "half" / WEIGHTS).stat().st_size < 0.8 * (tmp_path / "full" / WEIGHTS).stat().st_size
        assert all(p.dtype == torch.float32 for p in model.parameters())  # the model itself is not touched


def test_priors_by_name():
    assert {"ebm": EBMPrior, "gaussian": GaussianPrior, "ratio": RatioPrior, "none": GaussianPrior} == PRIORS
    assert set(PRIORS) == set(PriorConfig.__annotations__["kind"].__args__)


def test_gaussian_prior_is_sampled_exactly(generator):
    prior = GaussianPrior(PriorConfig(kind="gaussian", latent_dim=2, sigma=1.7, steps=60))
    z = prior.sample(20_000, generator)
    assert prior.chain().steps == 0
    assert prior.chain(30).steps == 0
    for column in z.T:  # five standard errors each
        assert abs(column.mean()) < 5 * 1.7 / 20_000**0.5
        assert abs(column.var() / 1.7**2 - 1) < 5 * (2 / 20_000) ** 0.5


def test_the_seed_decides_the_weights():
    one, same, other = (LatentModel(model_config(), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_come_from_a_stream_of_their_own(monkeypatch):
    """The caller's global generators, those of CUDA included, neither decide the weights nor notice."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("CUDA's generators were seeded"))
    one = LatentModel(model_config(), seed=1)
    torch.default_generator.manual_seed(123)
    before = torch.random.get_rng_state()
    same = LatentModel(model_config(), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))


def test_samples_do_not_depend_on_the_global_generator(make_batch):
    model, x, outcomes = LatentModel(model_config()), make_batch(SENTENCES), []
    for seed in (1, 2):
        torch.default_generator.manual_seed(seed)
        z = model.infer(x, stream(0, "posterior"))
        outcomes.append((z.tolist(), model.generate(5, stream(0, "prior"), stream(0, "decoding"))))
    assert outcomes[0] == outcomes[1]


class TestBrokenFolders:
    @pytest.fixture
    def folder(self, tmp_path):
        LatentModel(model_config()).save_pretrained(tmp_path)
        return tmp_path

    def refused(self, folder, message):
        with pytest.raises(CheckpointError, match=message) as caught:
            LatentModel.from_pretrained(folder)
        assert isinstance(caught.value, TextebmError)
        assert str(folder) in str(caught.value)

    def edit(self, folder, **changes):
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def test_no_folder(self, tmp_path):
        self.refused(tmp_path / "nothing", "is no model folder")

    def test_no_weights(self, folder):
        (folder / WEIGHTS).unlink()
        self.refused(folder, "cannot be read as safetensors")

    @pytest.mark.parametrize("left", [0, 4, 100, 0.5, 0.999])
    def test_truncated_weights(self, folder, left):
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(whole[: left if isinstance(left, int) else int(left * len(whole))])
        self.refused(folder, "cannot be read as safetensors")

    def test_weights_of_another_model(self, folder, tmp_path):
        LatentModel(model_config(cell="gru")).save_pretrained(tmp_path / "other")
        (tmp_path / "other" / WEIGHTS).replace(folder / WEIGHTS)
        self.refused(folder, "does not fit")

    @pytest.mark.parametrize("described", [{"model_type": "gpt2"}, {}, [], "textebm"])
    def test_config_of_another_kind(self, folder, described):
        (folder / CONFIG).write_text(json.dumps(described))
        self.refused(folder, "does not describe a textebm model")

    def test_config_that_is_no_json(self, folder):
        (folder / CONFIG).write_bytes(b"\xff{")
        self.refused(folder, "cannot be read")

    def test_another_format(self, folder):
        self.edit(folder, format=99)
        self.refused(folder, "format 99")

    def test_an_unknown_key(self, folder):
        self.edit(folder, vocabulary=3)
        self.refused(folder, "vocabulary")

    def test_a_value_out_of_range(self, folder):
        self.edit(folder, prior={"latent_dim": 0})
        self.refused(folder, "latent_dim")

    def test_a_missing_key(self, folder):
        (folder / CONFIG).write_text(json.dumps({"model_type": "textebm", "format": 1}))
        self.refused(folder, "vocab_size")


def test_a_folder_from_before_there_were_other_ways_to_infer_z(tmp_path, make_batch):
    """What it does not name is as it was: a short-run chain, no encoder, no word dropout."""
    model = LatentModel(model_config(), seed=2)
    model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / CONFIG).read_text())
    del described["encoder"], described["inference"]["kind"], described["generator"]["word_dropout"]
    (tmp_path / CONFIG).write_text(json.dumps(described))
    loaded, x = LatentModel.from_pretrained(tmp_path), make_batch(SENTENCES)
    assert loaded.config == model.config
    assert torch.equal(*(one.infer(x, torch.Generator().manual_seed(1)) for one in (model, loaded)))


def test_classes_of_the_output_leave_out_what_is_never_written():
    model = LatentModel(model_config())
    assert model.generator.output.out_features == 9 - FIRST_OUTPUT
    assert FIRST_OUTPUT == EOS
