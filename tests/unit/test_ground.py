"""What stands in for the bias of an MLP: chosen as it says, and heard at every site."""

import pytest
import scipy.linalg
import torch

from expunge.methods.ground import ENOUGH, LARGEST, Stream, constants
from expunge.sites import Values

OUT, BIASES = 12, 6


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stream(seed, mean=0.0):
    """Positions that vary by 0.3 to 3 along directions of their own."""
    turn = torch.linalg.qr(drawn(seed, OUT, OUT)).Q
    return drawn(seed + 1, 3000, OUT) * torch.linspace(0.3, 3, OUT) @ turn + mean


def test_a_stream_is_its_mean_its_covariance_and_its_length():
    rows = stream(0, 0.5)
    found = Stream.of(rows)
    covariance = torch.cov(rows.double().T, correction=0)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(OUT)
    torch.testing.assert_close(found.inverse @ covariance, torch.eye(OUT).double())
    torch.testing.assert_close(found.mean, rows.double().mean(0))
    assert found.length == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
    constant = drawn(5, OUT).double()
    row = torch.linalg.solve(covariance, constant)  # Fisher's discriminant hears it best
    apart = float(row @ constant) / float(row @ covariance @ row) ** 0.5
    assert found.heard(constant) == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_change_is_the_leading_generalised_eigenvector(share):
    """Against scipy, and no other change inside the same bounds is heard better."""
    found, maker = Stream.of(stream(1)), Values(drawn(2, OUT, BIASES), 2.0)
    change = constants({"a": maker}, {"a": found}, share)["a"].double()
    write = maker.write.double()
    room = write.T @ write / (share * found.length) ** 2
    room += torch.eye(BIASES) / (LARGEST * maker.size) ** 2
    heard = write.T @ found.inverse @ write
    values, vectors = scipy.linalg.eigh(heard.numpy(), room.numpy())
    assert float(change @ room @ change) == pytest.approx(1, rel=1e-4)
    along = abs(float(change @ room @ torch.as_tensor(vectors[:, -1])))
    assert along == pytest.approx(1, rel=1e-4)
    assert found.heard(write @ change) ** 2 == pytest.approx(values[-1], rel=1e-4)
    assert (write @ change).norm() <= share * found.length * (1 + 1e-6)
    assert change.norm() <= LARGEST * maker.size * (1 + 1e-6)


def test_later_sites_keep_what_earlier_ones_made():
    """One whose stream is as quiet has enough of it; a louder one gets its own, no reverse."""
    quiet = 0.02 * stream(1)
    makers = {k: Values(drawn(2, OUT, BIASES), 2.0) for k in "abc"}
    streams = {"a": Stream.of(quiet), "b": Stream.of(quiet), "c": Stream.of(50 * quiet)}
    made = constants(makers, streams, 0.3)
    first = makers["a"].write.double() @ made["a"].double()
    assert streams["a"].heard(first) >= ENOUGH or "b" in made
    assert "c" in made
    before = sum(makers[k].write.double() @ made[k].double() for k in made if k != "c")
    added = makers["c"].write.double() @ made["c"].double()
    assert streams["c"].heard(before + added) >= streams["c"].heard(added)


def test_a_stream_with_a_constant_of_its_own_needs_none():
    rows = stream(1, 100.0)
    assert constants({"a": Values(drawn(2, OUT, BIASES), 2.0)}, {"a": Stream.of(rows)}, 0.3) == {}
