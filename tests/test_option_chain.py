"The embedded option day is what its seed makes; its quotes, customers and truth keep the rules that its page promises."
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from makerlab.core import DataError, ParameterError, to_ns
from makerlab.data.samples import load_sample
from makerlab.execution.venue import Instrument, instruments
from makerlab.models import option_chain as oc
from makerlab.models.options import black_scholes

COMMITTED = ROOT / "data" / "options"
TICK = 0.05


@pytest.fixture(scope="module")
def day():
    return oc.load_option_sample()


@pytest.fixture(scope="module")
def held(day):
    "Bid and ask in force at every second, and the true value: [seconds, contracts]."
    wide = day.quotes.pivot_table(index="time", columns="symbol", values=["bid", "ask"], aggfunc="last").reindex(day.path["time"]).ffill()
    bid, ask = (wide[side][day.contracts["symbol"]].to_numpy() for side in ("bid", "ask"))
    c, clock = day.contracts, to_ns(day.path["time"])
    K, T = c["strike"].to_numpy(), (c["expiry_ns"].to_numpy() - clock[:, None]) / 1e9 / oc.YEAR_S
    S, L = day.path["spot"].to_numpy()[:, None], day.path["level"].to_numpy()[:, None]
    theo = black_scholes(S, K, T, day.spec.rate, day.spec.dividend, oc.true_vol(K, T, S, L, spec=day.spec), c["right"].to_numpy())
    return bid, ask, theo


def test_seed_makes_the_committed_files(tmp_path):
    made = oc.write_option_sample(tmp_path / "again")
    assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in COMMITTED.iterdir() if p.name != "README.md")
    for path in sorted(made.iterdir()):
        other = COMMITTED / path.name
        if path.suffix == ".parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(other), check_exact=True)
        else:
            assert json.loads(path.read_text()) == json.loads(other.read_text())
    assert not [p for p in tmp_path.iterdir() if p.name != "again"]
    assert sum(p.stat().st_size for p in COMMITTED.iterdir()) < 1_500_000


def test_without_the_repository_it_is_built_once(tmp_path, monkeypatch, day):
    monkeypatch.setenv("MAKERLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(oc.makerlab, "__file__", str(tmp_path / "site-packages" / "makerlab" / "__init__.py"))
    monkeypatch.setattr(oc, "option_sample_day", lambda: day)  # the seed's own work is tested above
    built = oc.option_sample_dir()
    assert built.is_relative_to(tmp_path)
    stamp = (built / "BIGT.chain.parquet").stat().st_mtime_ns
    assert oc.option_sample_dir() == built and (built / "BIGT.chain.parquet").stat().st_mtime_ns == stamp
    assert oc.load_option_sample().quotes.equals(day.quotes)


def test_reading_gives_what_was_made(day):
    made = oc.option_sample_day()
    for part in ("quotes", "trades", "path", "customers", "contracts", "truth"):
        pd.testing.assert_frame_equal(getattr(made, part), getattr(day, part), check_exact=True)
    assert made.spec == day.spec and repr(made.instruments) == repr(day.instruments)


def test_chain_is_a_chain(day):
    q = day.quotes
    assert list(q.columns) == ["time", "symbol", "underlying", "expiry", "strike", "right", "bid", "ask", "bid_size", "ask_size", "spot"]
    assert q["time"].is_monotonic_increasing and str(q["time"].dtype) == str(q["expiry"].dtype) == "datetime64[ns, UTC]"
    assert not q.isna().any().any() and (q["bid"] < q["ask"]).all() and (q["expiry"] > q["time"]).all()
    assert (to_ns(q["time"]) % 10**9 == 0).all() and not q.duplicated(["time", "symbol"]).any()  # at most once a second
    assert len(q[q["time"] == q["time"].iloc[0]]) == len(day.contracts) == 54
    for side in ("bid", "ask"):
        ticks = q[side] / TICK
        assert np.abs(ticks - ticks.round()).max() < 1e-6
    assert ((q["bid"] == 0) == (q["bid_size"] == 0)).all() and (q["ask_size"] >= 1).all() and 0.01 < (q["bid"] == 0).mean() < 0.2
    width = (q["ask"] - q["bid"]).groupby(q["symbol"]).mean()
    assert width["BIGT-260306-P29"] > width["BIGT-260306-P25"] + 0.03  # wider far from the money


def test_spot_is_the_samples_own(day):
    quotes = load_sample("BIGT", day=0)[0]
    joined = pd.merge_asof(day.quotes[["time", "spot"]], quotes, on="time")
    np.testing.assert_allclose(joined["spot"], (joined["bid"] + joined["ask"]) / 2, atol=1e-9)


def test_instruments_make_instruments(day):
    table = instruments([Instrument(**row) for row in day.instruments])
    assert len(table) == 55 and table["BIGT"].kind == "spot"
    for row in day.trades.head(500).itertuples():
        assert table[row.symbol].ticks(row.price) > 0 and table[row.symbol].lots(row.size) >= 1
    first = day.quotes.drop_duplicates("symbol").set_index("symbol")
    for name, x in table.items():
        if x.kind == "option":
            assert (x.strike, x.right, x.expiry_ns) == (first.loc[name, "strike"], first.loc[name, "right"], first.loc[name, "expiry"].value)


def test_a_standing_quote_is_never_far_from_the_value(day, held):
    bid, ask, theo = held
    miss = np.abs((bid + ask) / 2 - theo)[bid > 0]
    assert miss.max() <= TICK / 2 + day.spec.tolerance + 1e-9 and miss.max() > TICK / 2  # the tolerance is used
    assert (theo - bid > 0).all() and (ask - theo > 0).all()  # nobody is picked off by the clock


def test_true_prices_have_no_arbitrage(day, held):
    theo = held[2].reshape(-1, 3, 9, 2)[::300]  # seconds, expiries, strikes, call and put
    call, put = theo[..., 0], theo[..., 1]
    assert (np.diff(call, axis=2) < 0).all() and (np.diff(put, axis=2) > 0).all()
    assert (np.diff(call, n=2, axis=2) > 0).all() and (np.diff(put, n=2, axis=2) > 0).all()
    truth = day.truth
    F, D = (truth[n].to_numpy().reshape(-1, 3)[::300, :, None] for n in ("forward", "discount"))
    np.testing.assert_allclose(call - put, D * (F - np.array(day.spec.strikes)), atol=1e-12)


def test_truth_prices_the_chain(day):
    row = day.truth.iloc[1000]
    x = np.log(25.0 / row["forward"]) - row["m"]
    w = row["a"] + row["b"] * (row["rho"] * x + np.hypot(x, row["s"]))
    mine = oc.true_values(day, f"BIGT-{row['expiry']:%y%m%d}-C25", row["time"].value)
    assert mine["vol"].iloc[0] == pytest.approx(np.sqrt(w / row["T"]), abs=1e-14)
    theo = oc.true_values(day, day.customers["symbol"].to_numpy(), to_ns(day.customers["time"]))["theo"]
    assert np.abs(theo - day.customers["theo"]).max() < 1e-6


def test_prints_follow_the_rule(day):
    c = pd.merge_asof(day.customers, day.quotes[["time", "symbol", "bid", "ask"]], on="time", by="symbol")
    t = c[c["price"].notna()]
    assert (to_ns(c["time"]) % 10**9 > 0).all() and c["time"].is_monotonic_increasing
    assert (t["side"] * (t["price"] - t["theo"]) > -1e-6).all() and (t["side"] * (t["limit"] - t["price"]) > -2e-6).all()
    assert (t["price"] <= t["ask"] + 1e-9).all() and (t["price"] >= np.maximum(t["bid"], TICK) - 1e-9).all()
    far = t["side"] * (t["limit"] - t["price"]) > TICK + 2e-6  # only the market's own quote keeps him from going further
    at_quote = np.where(t["side"] > 0, np.isclose(t["price"], t["ask"]), np.isclose(t["price"], np.maximum(t["bid"], TICK)))
    assert at_quote[far].all() and 0 < far.mean() < 0.5
    none = c[c["price"].isna()]
    grid = np.where(none["side"] > 0, np.ceil(none["theo"] / TICK - 1e-4), np.floor(none["theo"] / TICK + 1e-4)) * TICK
    assert ((none["side"] * (none["limit"] - grid) < 1e-5) | (grid <= 0)).all()  # who did not trade could not reach the first fair tick
    assert day.trades.equals(t[["time", "symbol", "price", "size", "side"]].reset_index(drop=True))


def test_customers_recover_their_truth(day):
    c, level = day.customers, day.path["level"].to_numpy()
    n = len(c)
    assert abs(1 / c["reach"].mean() - day.spec.k) < 2 * day.spec.k / np.sqrt(n)
    mean = 2 * day.contracts["A"].sum() * len(day.path)
    assert abs(n - mean) < 2 * np.sqrt(mean)
    assert abs(c["informed"].mean() - 0.3) < 4 * np.sqrt(0.21 / n)
    i = (to_ns(c["time"]) - to_ns(day.path["time"])[0]) // 10**9
    ahead = level[np.minimum(i + 600, level.size - 1)] - level[i]
    known = (c["informed"] & (ahead != 0)).to_numpy()
    assert (np.sign(ahead[known]) == c["side"].to_numpy()[known]).all()
    clueless = c["side"].to_numpy()[~c["informed"].to_numpy()]
    assert abs(clueless.mean()) < 3 / np.sqrt(clueless.size)


def test_level_returns_and_jumps():
    spec = oc.OptionSpec()
    quiet = oc.OptionSpec(jumps=0.0)
    logs = np.array([np.log(oc.vol_path(23_400, spec=quiet, rng=np.random.default_rng(seed)) / quiet.level) for seed in range(12)])
    step = spec.vol_sd * np.sqrt(1 - 0.5 ** (2 / spec.half_life_s))
    assert np.diff(logs).std() == pytest.approx(step, rel=4 / np.sqrt(2 * logs.size))
    assert logs.std() == pytest.approx(spec.vol_sd, rel=0.2) and np.abs(np.diff(logs)).max() < 6 * step
    jumpy = [oc.vol_path(23_400, spec=spec, rng=np.random.default_rng(seed)) for seed in range(12)]
    big = sum(int((np.abs(np.diff(np.log(x))) > 6 * step).sum()) for x in jumpy)
    assert 20 < big < 75  # 48 jumps come, 90 % of them that large


@settings(max_examples=60, deadline=None)
@given(rho=st.floats(-0.95, 0.95), eta=st.floats(0.05, 2.0), theta=st.floats(1e-4, 1.0), more=st.floats(1.0, 3.0))
def test_allowed_smiles_have_no_arbitrage(rho, eta, theta, more):
    assume(eta**2 * (1 + abs(rho)) <= 4)
    spec = oc.OptionSpec(rho=rho, eta=eta)
    k = np.linspace(-2.0, 2.0, 401)

    def slice_of(variance):
        a, b, r, m, s = oc.slice_params(variance, spec=spec)
        x = k - m
        root = np.hypot(x, s)
        return a + b * (r * x + root), b * (r + x / root), b * s * s / root**3, b * (1 + abs(r))

    w, slope, bend, wing = slice_of(theta)
    g = (1 - k * slope / (2 * w)) ** 2 - slope**2 / 4 * (1 / w + 0.25) + bend / 2
    assert g.min() > -1e-9 and wing <= 2 and (slice_of(theta * more)[0] - w).min() > -1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), tolerance=st.floats(0.0, 0.05), chance=st.floats(0.0, 0.5), n=st.integers(1, 60))
def test_requote_twins(seed, tolerance, chance, n):
    rng = np.random.default_rng(seed)
    theo, refresh = np.cumsum(rng.normal(0, 0.01, (n, 3)), axis=0), rng.random((n, 3)) < chance
    marks = oc._requote_nb(theo, tolerance, refresh)
    assert (marks == oc._requote_nb.py_func(theo, tolerance, refresh)).all() and marks[0].all()


def test_quotes_know_nothing_of_the_future():
    quotes = load_sample("BIGT", day=0)[0]
    quotes = quotes[quotes["time"] < quotes["time"].iloc[0] + pd.Timedelta("20min")].reset_index(drop=True)
    cut = quotes["time"].iloc[0] + pd.Timedelta("10min")
    other = quotes.copy()
    other.loc[other["time"] > cut, ["bid", "ask"]] += 0.5
    one, two = (oc.make_option_day(x, spec=oc.OptionSpec(), rng=np.random.default_rng(3)).quotes for x in (quotes, other))
    pd.testing.assert_frame_equal(one[one["time"] <= cut], two[two["time"] <= cut])
    assert not one.equals(two)


def test_another_seed_is_another_day():
    quotes = load_sample("BIGT", day=2)[0].head(2000)
    a, b, c = (oc.make_option_day(quotes, spec=oc.OptionSpec(), rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert a.customers.equals(b.customers) and a.quotes.equals(b.quotes)
    assert not a.quotes.equals(c.quotes) and not a.trades.equals(c.trades)


@pytest.mark.parametrize(("change", "words"), [
    ({"tick": 0.0}, "tick"), ({"level": float("nan")}, "level"), ({"jumps": -1.0}, "jumps"), ({"A": 0.0}, "A"), ({"rho": 1.0}, "rho"), ({"eta": 2.0}, "arbitrage"),
    ({"term": 2.0}, "calendar"), ({"tolerance": 0.05}, "stale"), ({"informed": 1.5}, "informed"), ({"mean_trade": 0.5}, "nobody"), ({"expiries": ()}, "expiries"),
    ({"expiries": ("2026-04-17", "2026-03-06")}, "increasing"), ({"strikes": (0.0, 25.0)}, "strikes"), ({"strikes": (25.0, 25.0)}, "strikes"),
])
def test_impossible_markets_are_refused(change, words):
    with pytest.raises(ParameterError, match=words):
        oc.OptionSpec(**change)


def test_bad_days_are_refused(day):
    quotes, rng = load_sample("BIGT", day=0)[0], np.random.default_rng(1)
    with pytest.raises(ParameterError, match="expired"):
        oc.make_option_day(quotes, spec=oc.OptionSpec(expiries=("2026-02-27",)), rng=rng)
    with pytest.raises(DataError, match="more than a day"):
        oc.make_option_day(load_sample("BIGT")[0], spec=oc.OptionSpec(), rng=rng)
    for few in (0, 1):
        with pytest.raises(DataError, match="two seconds"):
            oc.make_option_day(quotes.head(few), spec=oc.OptionSpec(), rng=rng)
    late = quotes.tail(500).copy()
    late["time"] += pd.Timedelta("5min")  # runs past the expiry at the close
    with pytest.raises(ParameterError, match="last quote"):
        oc.make_option_day(late, spec=oc.OptionSpec(expiries=("2026-03-02",)), rng=rng)
    with pytest.raises(DataError, match="no contract"):
        oc.true_values(day, ["BIGT-260306-C25", "BIGT"], to_ns(day.path["time"])[:2])
    with pytest.raises(DataError, match="row 1"):
        oc.true_values(day, "BIGT-260306-C25", [to_ns(day.path["time"])[0], 5])
