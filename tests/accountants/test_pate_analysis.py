"""The analysis of a run, and the command: published figures, sums, limiting cases."""

import json
import math

import numpy as np
import pytest

from accountants import InvalidEventError, pate
from accountants.__main__ import main
from accountants.profile import gaussian_delta

RUN = {"threshold": 200.0, "sigma_threshold": 150.0, "sigma_votes": 40.0, "delta": 1e-5}
SMALL = pate.Votes([[200, 50, 0], [130, 120, 0], [84, 83, 83], [250, 0, 0]] * 5)


def test_published_figures(mnist_votes):
    """Papernot et al. 2018 on MNIST: 1.999 = 0.199 + 0.914 + 0.886 at order 14, 282.7 answered; 3.157 at their order 9."""
    result = pate.analyse(mnist_votes.first(640), **RUN, conversion="classic")
    cost = result.data_dependent
    assert (cost.epsilon, cost.threshold, cost.argmax, cost.conversion) == pytest.approx((1.999, 0.199, 0.914, 0.886), abs=5e-4)
    assert cost.order == 14
    assert result.answered == pytest.approx(282.7, abs=0.05)
    assert result.data_independent.epsilon == pytest.approx(3.156, abs=5e-4)  # at order 8.8
    at_nine = pate.analyse(mnist_votes.first(640), **RUN, conversion="classic", orders=[9.0])
    assert at_nine.data_independent.epsilon == pytest.approx(3.157, abs=5e-4)
    assert result.expected
    # the reverse direction costs little on real votes
    both = pate.analyse(mnist_votes.first(640), **RUN, both_directions=True, conversion="classic")
    assert cost.epsilon < both.data_dependent.epsilon < 2.04


@pytest.mark.parametrize("conversion", ["tight", "classic"])
@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("answered", [None, np.array([True, False, False, True] * 5)])
def test_everything_adds_up(conversion, noise, both, answered):
    result = pate.analyse(SMALL, **RUN, answered=answered, noise=noise, conversion=conversion, both_directions=both)
    for split in (result.data_dependent, result.data_independent):
        assert split.threshold + split.argmax + split.conversion == pytest.approx(split.epsilon, rel=1e-14)
    cost = result.data_dependent
    assert result.threshold_costs.sum() == pytest.approx(cost.threshold)
    assert result.argmax_costs.sum() == pytest.approx(cost.argmax)
    assert result.cumulative_epsilon.shape == (20,)
    assert result.cumulative_epsilon[-1] == pytest.approx(cost.epsilon, rel=1e-6)
    assert result.cumulative_epsilon_independent[-1] == pytest.approx(result.data_independent.epsilon, rel=1e-6)
    assert (np.diff(result.cumulative_epsilon) >= -1e-9).all()
    assert cost.epsilon <= result.data_independent.epsilon
    assert (result.rdp_threshold + result.rdp_argmax <= result.rdp_independent * (1 + 1e-12)).all()
    assert result.expected == (answered is None)
    if answered is not None:
        assert result.answered == 10
        assert (result.argmax_costs[~answered] == 0).all()


def test_what_was_spent_in_the_end_is_the_last_of_the_cumulative_figures():
    """Also where next to nothing was: two refusals that were as good as certain."""
    votes = pate.Votes([[6, 4, 3], [6, 4, 3]])
    result = pate.analyse(
        votes, threshold=13.0, sigma_threshold=0.5, sigma_votes=4.0, delta=1e-5, answered=np.array([False, False])
    )
    assert result.cumulative_epsilon[-1] == pytest.approx(result.data_dependent.epsilon, rel=1e-6)
    assert result.cumulative_epsilon[0] <= result.cumulative_epsilon[1] < 1e-9


def test_exact_data_independent_epsilon_is_one_gaussian():
    answered = np.array([True, False, False, True] * 5)
    result = pate.analyse(SMALL, **RUN, answered=answered)
    mu = math.sqrt(20 / 150**2 + 2 * 10 / 40**2)
    assert gaussian_delta(mu, result.epsilon_exact_data_independent) == pytest.approx(1e-5, rel=1e-6)
    assert result.epsilon_exact_data_independent < result.data_independent.epsilon
    assert pate.analyse(SMALL, **RUN, noise="laplace").epsilon_exact_data_independent is None


def test_without_a_threshold_every_query_is_answered():
    result = pate.analyse(SMALL, sigma_votes=40.0, delta=1e-5)
    assert (result.answered, result.data_dependent.threshold, result.expected) == (20, 0, False)
    assert (result.answer_weights == 1).all()


def test_permuting_classes_or_queries_changes_nothing():
    rng = np.random.default_rng(0)
    shuffled = pate.Votes(rng.permuted(SMALL.counts, axis=1)[rng.permutation(20)])
    one, other = pate.analyse(SMALL, **RUN), pate.analyse(shuffled, **RUN)
    assert one.data_dependent.epsilon == pytest.approx(other.data_dependent.epsilon, rel=1e-12)


def test_interactive_threshold():
    """A student who knows nothing shifts all counts by K/m; one who agrees with the teachers is refused."""
    uniform, agrees = np.full((20, 3), 1 / 3), SMALL.counts / 250
    shifted = pate.analyse(SMALL, **{**RUN, "threshold": 200 - 250 / 3}, student=uniform)
    assert shifted.answered == pytest.approx(pate.analyse(SMALL, **RUN).answered)
    assert shifted.data_dependent.epsilon == pytest.approx(pate.analyse(SMALL, **RUN).data_dependent.epsilon)
    sharp = pate.analyse(SMALL, **{**RUN, "sigma_threshold": 20.0}, student=agrees)
    assert sharp.answered == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 251.0}, "exceeds the number of teachers, 250"),
        ({"threshold": None}, "go together"),
        ({"sigma_threshold": None}, "go together"),
        ({"sigma_threshold": 0.0}, "sigma_threshold"),
        ({"sigma_votes": -1.0}, "sigma_votes"),
        ({"sigma_votes": math.nan}, "sigma_votes"),
        ({"delta": 0.0}, "delta"),
        ({"answered": [True]}, "answered must be 20"),
        ({"answered": [1] * 20}, "answered must be 20"),
        ({"student": np.ones((20, 3))}, "sum to 1"),
        ({"student": np.full((20, 3), np.nan)}, "sum to 1"),
        ({"student": np.ones((2, 3))}, "shape"),
        ({"noise": "cauchy"}, "noise"),
        ({"conversion": "loose"}, "conversion"),
        ({"orders": [1.0]}, "orders"),
    ],
)
def test_refused_by_name(change, message):
    with pytest.raises((pate.VotesError, InvalidEventError), match=message):
        pate.analyse(SMALL, **{**RUN, **change})


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "votes.npy", SMALL.counts)
    np.save(tmp_path / "answered.npy", np.array([True, False, False, True] * 5))
    return str(tmp_path / "votes.npy")


FLAGS = ["--threshold", "200", "--sigma_threshold", "150", "--sigma_votes", "40", "--delta", "1e-5"]


def test_command(capsys, file):
    assert main(["votes", file, *FLAGS, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    parts = [result[name] for name in ("threshold", "argmax", "conversion")]
    assert sum(parts) == pytest.approx(result["epsilon_data_dependent"])
    expected = pate.analyse(SMALL, **RUN)
    assert result["epsilon_data_dependent"] == expected.data_dependent.epsilon
    assert result["epsilon_data_independent"] == expected.data_independent.epsilon
    assert result["answered_expected"] == expected.answered
    assert result["order"] == expected.data_dependent.order
    answered = file.replace("votes", "answered")
    assert main(["votes", file, *FLAGS, "--answered", answered, "--queries", "8", "--conversion", "classic", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["answered_expected"], result["queries"], result["expected"]) == (4, 8, False)
    assert main(["votes", file, *FLAGS]) == 0
    text = capsys.readouterr().out
    assert "PRIVATE" in text
    assert "Do not publish" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npy", *FLAGS], "none.npy"),
        (["VOTES", *FLAGS, "--queries", "21"], "queries"),
        (["VOTES", *FLAGS, "--answered", "none.npy"], "none.npy"),
        (["VOTES", *FLAGS[:2], *FLAGS[4:]], "go together"),
        (["VOTES", "--threshold", "300", *FLAGS[2:]], "exceeds"),
    ],
)
def test_command_refuses_in_one_line(capsys, file, arguments, message):
    assert main(["votes", *(file if a == "VOTES" else a for a in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
