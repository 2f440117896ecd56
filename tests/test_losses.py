"Every loss term against an independent reference, to 1e-6."
import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from cdser.config import HIDDEN
from cdser.losses import augmentation_loss, emotion_loss, entropy, information_maximisation, nt_xent


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('temperature', [.07, .1, .5])
@pytest.mark.parametrize('batch', [1, 2, 9])
def test_two_views_equal_the_ntxent_of_pytorch_metric_learning(batch, temperature):
    z = draw(2, batch, 16)
    theirs = NTXentLoss(temperature)(z.flatten(0, 1), torch.arange(batch).repeat(2))
    assert torch.isclose(nt_xent(z, temperature), theirs, atol=1e-6)


@pytest.mark.parametrize('views', [2, 3, 4])
def test_more_views_equal_supervised_contrast_with_utterances_as_classes(views):
    z = draw(views, 6, 16)
    theirs = SupConLoss(temperature=.1)(z.flatten(0, 1), torch.arange(6).repeat(views)) # Khosla et al. 2020, L_out
    assert torch.isclose(nt_xent(z, .1), theirs, atol=1e-6)


def test_nt_xent_does_not_see_the_order_of_views_or_utterances_or_the_scale():
    z = draw(3, 5, 8)
    for other in (z.flip(0), z.flip(1), 7 * z): assert torch.isclose(nt_xent(z), nt_xent(other), atol=1e-9)


def test_nt_xent_is_finite_and_in_float32_under_half_precision():
    z = (draw(3, 8, 16) * 100).bfloat16().requires_grad_()
    loss = nt_xent(z, .05)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z.grad.isfinite().all()


def test_information_maximisation_equals_a_literal_loop():
    logits, prior = draw(7, 4), torch.tensor([.1, .2, .3, .4], dtype=torch.float64)
    p = [[math.exp(x) / sum(math.exp(y) for y in row) for x in row] for row in logits.tolist()]
    mean = [sum(row[k] for row in p) / 7 for k in range(4)]
    sure = sum(-x * math.log(x) for row in p for x in row) / 7
    spread = -sum(x * math.log(x) for x in mean)
    kl = sum(x * math.log(x / q) for x, q in zip(mean, prior.tolist()))
    assert math.isclose(information_maximisation(logits).item(), sure - spread, abs_tol=1e-9)
    assert math.isclose(information_maximisation(logits, prior).item(), sure + kl - math.log(4), abs_tol=1e-9)
    even = torch.full((4,), .25, dtype=torch.float64)
    assert torch.isclose(information_maximisation(logits, even), information_maximisation(logits))


@pytest.mark.parametrize('seed', range(5))
def test_information_maximisation_stays_in_its_range(seed):
    assert -math.log(4) - 1e-9 <= information_maximisation(10 * draw(6, 4, seed=seed)).item() <= 1e-9


def test_entropy_has_its_gradient_and_its_limits():
    assert entropy(torch.tensor([1., 0., 0.])) == 0
    assert torch.autograd.gradcheck(information_maximisation, draw(5, 4).requires_grad_())


def test_emotion_loss_ignores_hidden_labels_and_nothing_else():
    logits, labels = draw(6, 4), torch.tensor([0, 1, HIDDEN, 3, HIDDEN, 2])
    seen = labels != HIDDEN
    assert torch.isclose(emotion_loss(logits, labels), torch.nn.functional.cross_entropy(logits[seen], labels[seen]))
    hidden = logits.clone().requires_grad_()
    emotion_loss(hidden, torch.full((6,), HIDDEN)).backward()
    assert hidden.grad.abs().sum() == 0


def test_augmentation_loss_of_a_right_and_of_a_wrong_answer():
    kinds = torch.arange(7)
    assert augmentation_loss(50 * torch.eye(7), kinds) < 1e-6
    assert augmentation_loss(50 * torch.eye(7), kinds.roll(1)) > 49
