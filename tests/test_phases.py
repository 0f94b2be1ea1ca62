"""The phases of a run, by themselves: when the generator starts anew, when the encoder is updated by itself."""

import pytest
import torch

from textebm.checkpoint import Progress
from textebm.config import BoundConfig
from textebm.phases import Improvement, Phases


def test_the_generator_starts_anew_once_at_the_end_of_the_pre_training() -> None:
    phases = Phases(BoundConfig(autoencoder=0.3), steps=20)
    assert [step for step in range(20) if phases.generator_starts_anew(Progress(step=step))] == [6]


def test_without_a_pre_training_it_never_does() -> None:
    phases = Phases(BoundConfig(), steps=20)
    assert not any(phases.generator_starts_anew(Progress(step=step)) for step in range(20))


def test_what_was_best_under_another_weight_is_provisional() -> None:
    phases = Phases(BoundConfig(kl_schedule="linear", kl_annealing=0.5, autoencoder=0.2), steps=100)
    assert [step for step in (None, 1, 20, 59, 60, 100) if phases.is_provisional(step)] == [1, 20, 59]
    assert not Phases(BoundConfig(), steps=100).is_provisional(1)


class TestAggressive:
    PHASES = Phases(BoundConfig(aggressive_updates=7), steps=20)

    def test_until_the_mutual_information_falls_and_never_again(self) -> None:
        progress, updates = Progress(), []
        for information in (0.5, 0.9, 0.9, 0.8):
            updates.append(self.PHASES.encoder_updates(progress))
            progress = self.PHASES.after_epoch(progress, information)
            assert progress.mutual_information == information
        assert updates == [7, 7, 7, 7]
        assert self.PHASES.encoder_updates(progress) == 0

    def test_not_where_nobody_asks_for_it(self) -> None:
        assert Phases(BoundConfig(), steps=20).encoder_updates(Progress()) == 0


class TestImprovement:
    @pytest.mark.parametrize(
        ("windows", "ends"),
        [([3.0, 2.0, 1.0, 1.5, 1.0], 4), ([3.0, 3.0, 3.1], 3), ([3.0, 2.0, 1.0], None)],
    )
    def test_ends_with_the_first_window_that_is_worse_than_the_one_before(
        self, windows: list[float], ends: int | None
    ) -> None:
        improvement, answers = Improvement(), []
        for mean in windows:
            answers += [improvement.goes_on(torch.tensor(mean * 10), 10) for _ in range(Improvement.WINDOW)]
        stopped = [i + 1 for i, going in enumerate(answers) if not going]
        assert stopped[:1] == ([] if ends is None else [ends * Improvement.WINDOW])

    def test_losses_are_compared_by_the_token(self) -> None:
        improvement = Improvement()
        for _ in range(Improvement.WINDOW):
            assert improvement.goes_on(torch.tensor(20.0), 10)
        answers = [improvement.goes_on(torch.tensor(190.0), 100) for _ in range(Improvement.WINDOW)]
        assert all(answers)  # 1.9 a token after 2
