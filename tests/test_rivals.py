"Every rival's term against a literal reading of its equations and, if there is one, an independent implementation."

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cdser.config import UNLABELLED, call, declared_terms
from cdser.losses import estimate_prior
from cdser.rivals import (conditional_features, coral, minimum_class_confusion, mmd, reverse_gradient,
                          self_training)

DOMAINS = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 0]) # five rows of the source, four of the target


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(term, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(term(x), x)[0]


def stand_in(function): # for the head of a term: what is given to it, or its first column if it makes one number
    if not getattr(function, 'make_head', None):
        return None
    module = call(function.make_head, dict(width=4, projection=4))
    first = next(layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    single = module(torch.zeros(1, first.in_features)).ndim == 1
    return lambda x: x[:, 0] if single else x


def all_terms(domains: torch.Tensor) -> dict: # name -> function of (9, 4) values: three views of three utterances
    labels = torch.where(domains == 1, UNLABELLED, torch.arange(9, device=domains.device) % 2)
    known = dict(labels=labels, domains=domains, augmentation_labels=domains, done=.5, views=3, temperature=.1,
                 confidence=.3, prior=torch.full((4,), .25, device=domains.device))
    def of(function):
        fixed = {**known, 'head': stand_in(function)}
        return lambda x: call(function, {**fixed, 'logits': x, 'embedding': x})
    return {name: of(function) for name, function in declared_terms().items()} | {
        'prior': lambda x: estimate_prior(x.softmax(1), torch.full_like(x[0], .25), iterations=3)[0]}


TERMS = [*all_terms(DOMAINS)]
RIVALS = [name for name, function in declared_terms().items() if function.__module__ == 'cdser.rivals']
NOTHING = [(name, present) for name in RIVALS for present in (0, 1) # a term and the only domain in the batch
           if (name, present) not in [('mcc', 1), ('self_training', 1)]]


# ---- the discriminators

@pytest.mark.parametrize('strength', [0., .3, 1.])
def test_before_the_reversal_the_gradient_changes_and_behind_it_does_not(strength):
    x, weights = draw(5, 3), draw(3, 2)
    slope = gradient(lambda x: (x @ weights).square().sum(), x)
    reversed_slope = gradient(lambda x: (reverse_gradient(x, strength) @ weights).square().sum(), x)
    assert torch.equal(reversed_slope, -strength * slope)
    plain = gradient(lambda w: (x @ w).square().sum(), weights)
    assert torch.equal(gradient(lambda w: (reverse_gradient(x, strength) @ w).square().sum(), weights), plain)


def test_conditional_features_equal_a_literal_loop_and_hold_the_probabilities_constant():
    x, logits = draw(6, 5), draw(6, 4, seed=1).requires_grad_()
    p, features = logits.softmax(1), conditional_features(x, logits)
    expected = torch.stack([x[:, j] * p[:, k] for j in range(5) for k in range(4)], 1)
    assert torch.allclose(features, expected) and not features.requires_grad
    weights = draw(20, seed=2)
    slope = gradient(lambda x: (conditional_features(x, logits) @ weights).sum(), x)
    assert torch.allclose(slope, torch.einsum('rc,wc->rw', p, weights.view(5, 4)))


# ---- statistics of the two domains

def test_coral_equals_that_of_skada():
    deep = pytest.importorskip('skada.deep', exc_type=ImportError)
    x = draw(9, 5)
    theirs = deep.DeepCoralLoss()(x[DOMAINS == 0], x[DOMAINS == 1]) # same scale: unbiased covariances, 1 / (4 width^2)
    assert torch.isclose(coral(x, DOMAINS), theirs, rtol=1e-12)


def mmd_by_hand(x, domains):
    fixed = x.detach()
    bandwidth = sum((a - b).square().sum() for a in fixed for b in fixed) / (len(x) * (len(x) - 1))
    total = 0
    for a, i in zip(x, domains):
        for b, j in zip(x, domains):
            kernel = sum(torch.exp(-(a - b).square().sum() / (s * bandwidth)) for s in (.25, .5, 1, 2, 4)) / 5
            total = total + kernel * (1 if i == j else -1) / (domains == i).sum() / (domains == j).sum()
    return total


@pytest.mark.parametrize('shift', [0, 100])
def test_mmd_and_its_gradient_equal_a_literal_double_loop(shift):
    x = draw(9, 3) + shift
    assert torch.isclose(mmd(x, DOMAINS), mmd_by_hand(x, DOMAINS), rtol=1e-9)
    slope = gradient(lambda x: mmd(x, DOMAINS), x)
    assert torch.allclose(slope, gradient(lambda x: mmd_by_hand(x, DOMAINS), x), atol=1e-10)


@pytest.mark.parametrize('seed', range(3))
def test_mmd_is_never_negative_and_depends_on_neither_place_nor_scale(seed):
    x = draw(9, 3, seed=seed)
    distance = mmd(x, DOMAINS)
    assert 0 < distance < 2 and torch.isclose(mmd(x, 1 - DOMAINS), distance, rtol=1e-12)
    assert torch.isclose(mmd(50 * x + 1, DOMAINS), distance, rtol=1e-9)
    assert torch.isclose(mmd(x.float() + 1000, DOMAINS).double(), distance, rtol=1e-2)
    assert mmd(torch.cat([x, x]), torch.arange(2).repeat_interleave(9)).abs() < 1e-12


# ---- predictions on the target

def confusion_by_hand(logits, temperature):
    n, classes = logits.shape
    y = (logits / temperature).softmax(1)
    w = [1 + torch.exp(sum(p * p.log() for p in row)) for row in y.detach()]
    c = [[sum(w[i] * y[i, j] * y[i, k] for i in range(n)) for k in range(classes)] for j in range(classes)]
    return sum(c[j][k] / sum(c[j]) for j in range(classes) for k in range(classes) if k != j) / classes


@pytest.mark.parametrize('temperature, classes', [(1., 2), (2.5, 4)])
def test_class_confusion_and_its_gradient_equal_a_literal_loop(classes, temperature):
    logits, target = 4 * draw(9, classes), DOMAINS == 1
    value = minimum_class_confusion(logits, -DOMAINS, temperature) # -1 is UNLABELLED
    assert torch.isclose(value, confusion_by_hand(logits[target], temperature), rtol=1e-9)
    slope = gradient(lambda x: minimum_class_confusion(x, -DOMAINS, temperature), logits)
    assert torch.allclose(slope, gradient(lambda x: confusion_by_hand(x[target], temperature), logits), atol=1e-12)


def test_class_confusion_equals_that_of_skada():
    deep = pytest.importorskip('skada.deep', exc_type=ImportError)
    logits = 4 * draw(9, 4)
    theirs = deep.MCCLoss(T=2.5, eps=0)(logits[DOMAINS == 1]) # the same value, but with a gradient for the weights
    assert torch.isclose(minimum_class_confusion(logits, -DOMAINS), theirs, rtol=1e-9)


@pytest.mark.parametrize('views', [1, 2, 4])
def test_self_training_equals_a_literal_loop(views):
    logits, wanted = 3 * draw(views * 12, 4), torch.arange(12) % 3 > 0
    values = []
    for b in range(12):
        p = logits[b].softmax(0)
        if wanted[b] and p.max() > .8:
            trained = range(1, views) if views > 1 else [0]
            values += [-logits[v * 12 + b].log_softmax(0)[p.argmax()] for v in trained]
    labels = torch.where(wanted, UNLABELLED, 0).repeat(views)
    assert torch.isclose(self_training(logits, labels, views, confidence=.8), torch.stack(values).mean(), rtol=1e-12)


# ---- what holds for all of them, and for the paper's own terms

@pytest.mark.parametrize('name', TERMS)
def test_each_has_a_gradient_and_finite_differences_agree(name):
    term, x = all_terms(DOMAINS)[name], draw(9, 4)
    assert gradient(term, x).abs().max() > 1e-4
    if name not in ('dann', 'cdan', 'mmd', 'mcc'): # these hold something constant or reverse the gradient
        assert torch.autograd.gradcheck(term, x.requires_grad_())


@pytest.mark.parametrize('name, present', NOTHING)
def test_without_rows_each_is_exactly_zero_and_has_no_gradient(name, present):
    term = all_terms(torch.full((9,), present))[name]
    for x in (draw(9, 4), 1e4 * draw(9, 4), torch.zeros(9, 4, dtype=torch.float64)):
        assert term(x) == 0 and (gradient(term, x) == 0).all()


def test_coral_needs_two_rows_and_mmd_one():
    x, single = draw(5, 3), torch.tensor([0, 0, 0, 0, 1])
    assert coral(x, single) == 0 and (gradient(lambda x: coral(x, single), x) == 0).all() and mmd(x, single) > 0


@pytest.mark.parametrize('name', TERMS)
@pytest.mark.parametrize('scale', [0, 1e-6, 1e4])
def test_gradients_stay_finite_in_float32_at_the_extremes(name, scale):
    x, term = scale * draw(9, 4).float(), all_terms(DOMAINS)[name]
    assert term(x).isfinite() and gradient(term, x).isfinite().all()


@pytest.mark.parametrize('name', [*RIVALS, 'contrastive', 'supervised_contrastive', 'information'])
def test_half_precision_goes_in_and_float32_comes_out(name):
    x, term = draw(9, 4).bfloat16(), all_terms(DOMAINS)[name]
    assert term(x).dtype == torch.float32 and torch.equal(term(x), term(x.float()))
    assert gradient(term, x).dtype == torch.bfloat16


@pytest.mark.parametrize('name', TERMS)
def test_none_waits_for_the_device(name):
    "Tensors on `meta` have no values, so any request for one fails."
    x = torch.empty(9, 4, device='meta', requires_grad=True)
    loss = all_terms(DOMAINS.to('meta'))[name](x)
    loss.backward()
    assert loss.is_meta and loss.shape == () and x.grad.shape == (9, 4)


class Products(TorchDispatchMode):
    "Records the type of every matrix product."
    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._schema.name in ('aten::mm', 'aten::bmm', 'aten::mv', 'aten::dot'):
            self.types.append(out.dtype)
        return out


@pytest.mark.parametrize('name', ['coral', 'mmd', 'contrastive', 'supervised_contrastive'])
def test_mixed_precision_leaves_the_matrix_products_in_float32(name):
    "With the settings of `torch.autocast('cuda', torch.bfloat16)`, which refuses to be entered without a GPU."
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', True)
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    try:
        with FakeTensorMode():
            x, domains = torch.empty(9, 4, device='cuda'), torch.empty(9, dtype=torch.int64, device='cuda')
            with Products() as unguarded:
                x @ x.T
            with Products() as seen:
                all_terms(domains)[name](x)
    finally:
        torch.set_autocast_enabled('cuda', before[0])
        torch.set_autocast_dtype('cuda', before[1])
    assert unguarded.types == [torch.bfloat16] and seen.types and set(seen.types) == {torch.float32}
