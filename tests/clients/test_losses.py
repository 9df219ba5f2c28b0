import pytest
import torch
import torch.nn.functional as F

from wardround.clients.losses import segmentation_loss


def test_against_the_formula_written_out() -> None:
    """0.2 CE + 0.8 mean over classes of 1 - (2 sum(pg) + e) / (sum p^2 + sum g^2 + e), e = 1e-5, sums over batches."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 5, 6), generator=generator).to(torch.uint8)
    p, g = logits.softmax(1), F.one_hot(labels.long(), 4).permute(0, 3, 1, 2).double()
    axes = (0, 2, 3)
    dice = 1 - (2 * (p * g).sum(axes) + 1e-5) / ((p**2).sum(axes) + (g**2).sum(axes) + 1e-5)
    cross_entropy = -(g * p.log()).sum(1).mean()
    expected = 0.2 * cross_entropy + 0.8 * dice.mean()
    torch.testing.assert_close(segmentation_loss(logits, labels), expected, rtol=1e-12, atol=1e-12)


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_a_lot() -> None:
    labels = torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8)
    right = F.one_hot(labels.long(), 2).permute(0, 3, 1, 2).float() * 50
    assert segmentation_loss(right, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert segmentation_loss(-right, labels).item() > 5


def test_labels_are_resized_to_smaller_logits() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :4] = 1
    small = torch.zeros(1, 2, 4, 4)
    small[:, 1, :2], small[:, 0, 2:] = 50.0, 50.0
    assert segmentation_loss(small, labels).item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    logits, labels = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), torch.zeros(1, 4, 4, dtype=torch.uint8)
    assert segmentation_loss(logits, labels).dtype == torch.float32
