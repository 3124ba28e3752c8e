"""What every accountant promises, whichever it is."""

import math

import pytest

import accountants as acc

RUN = acc.dpsgd_event(1.0, 0.01, 100)
EVENTS = [
    acc.GaussianDpEvent(2.0),
    acc.LaplaceDpEvent(3.0),
    RUN,
    acc.PoissonSampledDpEvent(0.1, acc.LaplaceDpEvent(1.0)),
    acc.DiscreteGaussianDpEvent(3.0, 2),
    acc.DiscreteLaplaceDpEvent(0.3, 2),
    acc.ExponentialMechanismDpEvent(0.5),
    acc.ReportNoisyMaxDpEvent(4.0, "laplace", True),
    acc.AboveThresholdDpEvent(4.0, 8.0, 2),
    acc.EpsilonDeltaDpEvent(0.3),
    acc.MixtureOfGaussiansDpEvent(2.0, (0.0, 1.0, 2.0), (0.8, 0.1, 0.1)),
    acc.FixedOrderDpEvent(acc.GaussianDpEvent(4.0), 3),
    acc.SingleEpochTreeAggregationDpEvent(5.0, (10, 100)),
    acc.ParallelDpEvent((acc.GaussianDpEvent(2.0), acc.LaplaceDpEvent(2.0))),
]
MAKERS = {name: (lambda name=name, **o: acc.make_accountant(name, **o)) for name in ("auto", "pld", "rdp")}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
class TestContract:
    def test_nothing_costs_nothing(self, make):
        accountant = make().compose(acc.NoOpDpEvent(), 5).compose(RUN, 0)
        assert accountant.get_epsilon(1e-5) == 0
        assert accountant.get_delta(0.0) <= 1e-290

    @pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
    def test_answers_are_bounds_that_behave(self, make, event):
        accountant = make().compose(event, 3)
        loose, tight = accountant.get_epsilon(1e-3), accountant.get_epsilon(1e-9)
        assert 0 < loose <= tight < math.inf
        assert accountant.get_delta(tight) <= 1e-9 * (1 + 1e-2)
        assert accountant.get_delta(0.0) >= accountant.get_delta(1.0)
        interval = accountant.epsilon_interval(1e-5)
        assert 0 <= interval.lower <= interval.upper == accountant.get_epsilon(1e-5)
        assert make().compose(acc.from_json(acc.to_json(event)), 3).get_epsilon(1e-5) == interval.upper

    def test_a_copy_is_independent(self, make):
        accountant = make().compose(RUN)
        before = accountant.get_epsilon(1e-5)
        other = accountant.copy().compose(acc.GaussianDpEvent(1.0))
        assert accountant.get_epsilon(1e-5) == before < other.get_epsilon(1e-5)

    def test_no_guarantee_is_infinite(self, make):
        accountant = make().compose(acc.NonPrivateDpEvent())
        assert accountant.get_epsilon(0.1) == math.inf
        assert accountant.get_delta(10.0) == 1

    def test_accepts_dp_accounting_trees(self, make):
        dp = pytest.importorskip("dp_accounting")
        theirs = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 100)
        assert make().compose(theirs).get_epsilon(1e-5) == make().compose(RUN).get_epsilon(1e-5)

    @pytest.mark.parametrize(
        ("act", "field"),
        [
            (lambda a: a.compose(RUN, -1), "count"),
            (lambda a: a.compose(RUN, 1.5), "count"),
            (lambda a: a.compose("event"), "str"),
            (lambda a: a.get_epsilon(0.0), "delta"),
            (lambda a: a.get_epsilon(1.0), "delta"),
            (lambda a: a.get_delta(-1.0), "epsilon"),
            (lambda a: a.get_delta(math.nan), "epsilon"),
        ],
    )
    def test_bad_input_is_named(self, make, act, field):
        with pytest.raises(acc.InvalidEventError, match=field):
            act(make())

    def test_neighbouring_relation_is_kept_and_checked(self, make):
        assert make(neighbouring_relation="zero_out").neighbouring_relation is acc.NeighbouringRelation.ZERO_OUT
        with pytest.raises(acc.InvalidEventError, match="neighbouring_relation"):
            make(neighbouring_relation="swap")


def test_auto_names_who_answers():
    accountant = acc.make_accountant().compose(RUN)
    assert accountant.name == "pld"
    accountant.compose(acc.ZCDpEvent(0.01))
    assert accountant.name == "rdp"
    alone = acc.RdpAccountant().compose(RUN).compose(acc.ZCDpEvent(0.01))
    assert accountant.get_epsilon(1e-5) == alone.get_epsilon(1e-5)
    relation = acc.make_accountant(neighbouring_relation="replace_one").compose(RUN)
    with pytest.raises(acc.UnsupportedEventError, match=r"pair for ZCDpEvent.*Rényi"):
        relation.compose(acc.ZCDpEvent(0.1, 0.1))
    assert relation.name == "pld"


def test_the_answer_says_all():
    bound = acc.epsilon(RUN, 1e-5)
    assert (bound.accountant, bound.delta) == ("pld", 1e-5)
    assert bound.lower < bound.epsilon <= 1.001 * bound.lower
    assert acc.epsilon(RUN, 1e-5, accountant="rdp").lower == 0
    with pytest.raises(acc.InvalidEventError, match="auto, pld, rdp"):
        acc.epsilon(RUN, 1e-5, accountant="best")


def test_the_renyi_accountant_is_never_below_the_exact_value():
    for event in EVENTS:
        for count in (1, 20):
            rdp = acc.RdpAccountant().compose(event, count).get_epsilon(1e-5)
            assert acc.PldAccountant().compose(event, count).epsilon_interval(1e-5).lower <= rdp


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, math.inf])
def test_selection_agrees_with_dp_accounting_or_is_tighter(shape):
    dp = pytest.importorskip("dp_accounting")
    rdp = pytest.importorskip("dp_accounting.rdp")
    from dp_accounting.dp_event import RepeatAndSelectDpEvent

    run = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)), 100)
    theirs = rdp.RdpAccountant(list(range(2, 65))).compose(RepeatAndSelectDpEvent(run, 10.0, shape)).get_epsilon(1e-5)
    ours = acc.RdpAccountant().compose(acc.RepeatAndSelectDpEvent(RUN, 10.0, shape)).get_epsilon(1e-5)
    assert acc.RdpAccountant().compose(RUN).get_epsilon(1e-5) < ours <= theirs * (1 + 1e-9)


def test_selecting_the_only_run_costs_what_it_costs():
    once = acc.RepeatAndSelectDpEvent(RUN, 1.0, 1.0)
    assert acc.RdpAccountant().compose(once).get_epsilon(1e-5) == pytest.approx(
        acc.RdpAccountant().compose(RUN).get_epsilon(1e-5)
    )


def test_255_integer_orders_equal_dp_accounting():
    dp = pytest.importorskip("dp_accounting")
    rdp = pytest.importorskip("dp_accounting.rdp")
    orders = list(range(2, 257))
    theirs = rdp.RdpAccountant(orders).compose(dp.PoissonSampledDpEvent(0.01, dp.GaussianDpEvent(1.0)))._rdp
    assert acc.RdpAccountant(orders).compose(acc.dpsgd_event(1.0, 0.01, 1)).rdp == pytest.approx(theirs, rel=1e-10)


def test_opacus_history():
    history = [(1.1, 0.01, 500), (0.9, 0.02, 100)]
    ours = acc.epsilon(acc.from_opacus_history(history), 1e-5).epsilon
    direct = acc.PldAccountant().compose(acc.dpsgd_event(1.1, 0.01, 500)).compose(acc.dpsgd_event(0.9, 0.02, 100))
    assert ours == direct.get_epsilon(1e-5)
    for bad in ([(1.1, 0.01)], [(1.1, 2.0, 5)], [(1.1, 0.01, 1.5)]):
        with pytest.raises(acc.InvalidEventError):
            acc.from_opacus_history(bad)


def test_a_stored_event_of_another_schema_is_refused():
    text = acc.to_json(RUN)
    for bad in (text.replace('"schema": 1', '"schema": 2'), "[]", "{", '{"schema": 1}'):
        with pytest.raises(acc.InvalidEventError):
            acc.from_json(bad)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: acc.DiscreteGaussianDpEvent(0.0), "sigma"),
        (lambda: acc.DiscreteLaplaceDpEvent(1.0, 0), "sensitivity"),
        (lambda: acc.RandomizedResponseDpEvent(0.5, 1), "num_buckets"),
        (lambda: acc.ExponentialMechanismDpEvent(math.nan), "epsilon"),
        (lambda: acc.ReportNoisyMaxDpEvent(1.0, "cauchy"), "gumbel, laplace, exponential"),
        (lambda: acc.AboveThresholdDpEvent(1.0, 1.0, 0), "answers"),
        (lambda: acc.EpsilonDeltaDpEvent(1.0, 1.5), "delta"),
        (lambda: acc.ZCDpEvent(-1.0), "rho"),
        (lambda: acc.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (0.5, 0.4)), "sum to 1"),
        (lambda: acc.MixtureOfGaussiansDpEvent(1.0, (0.0,), (0.5, 0.5)), "one length"),
        (lambda: acc.SampledWithoutReplacementDpEvent(10, 11, RUN), "sample_size"),
        (lambda: acc.TruncatedSubsampledGaussianDpEvent(10, 0.5, 0, 1.0), "truncated_batch_size"),
        (lambda: acc.RepeatAndSelectDpEvent(RUN, 0.5, 1.0), "mean"),
        (lambda: acc.RepeatAndSelectDpEvent(RUN, 2.0, -1.0), "shape"),
        (lambda: acc.RepeatAndSelectDpEvent(RUN, 2.0, "one"), "shape"),
        (lambda: acc.ParallelDpEvent("abc"), "list of events"),
    ],
)
def test_events_refuse_what_makes_no_sense(make, field):
    with pytest.raises(acc.InvalidEventError, match=field):
        make()
