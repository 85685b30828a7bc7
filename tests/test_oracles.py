"""Every case of the oracle file, through makerlab's public functions.

The file is the one that the environment variable ORACLES names, by default tests/oracles/oracles.json. A case is dispatched by its
area and by what it gives and asks (the shape of its inputs and expectations), never by its numbers. Areas that makerlab does not
have yet are listed by name as skipped; cases that are context only are listed, with nothing asserted."""
import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

from makerlab.calibration.hawkes import HawkesModel, compensator, hawkes_intensity, hawkes_loglik
from makerlab.calibration.intensity import IntensityModel
from makerlab.core import ParameterError, PriceVol, ReturnVol, UnitError
from makerlab.execution.fills import relative_intensity
from makerlab.features.microprice import embedded_chain, imbalance, microprice_adjustment, microprice_matrices, mid, weighted_mid
from makerlab.features.ofi import average_depth, integrated_ofi, integrated_ofi_weights, multilevel_ofi, ofi_buckets, ofi_events, scaled_ofi
from makerlab.features.volatility import rolling_vol
from makerlab.models import avellaneda_stoikov as model
from makerlab.models.cartea_jaimungal import solve_cj
from makerlab.models.glft import glft_closed_form, glft_coefficients, solve_glft, stationary_glft
from makerlab.models.impact import almgren_chriss
from makerlab.models.options import black_scholes, greeks, implied_vol
from makerlab.models.quoting import post_only, round_to_ticks
from makerlab.scoring.attribution import adverse_selection, attribute, censored, markouts
from makerlab.scoring.tail_risk import gaussian_var_cvar, historical_var_cvar, price_var_cvar

FILE = Path(os.environ.get("ORACLES") or Path(__file__).parent / "oracles" / "oracles.json")
CASES = json.loads(FILE.read_text(encoding="utf8"))["cases"]
NUMBER = re.compile(r"\b(rel|abs)\s+([\d.]+(?:e[+-]?\d+)?)")
GROUPS = (("llf", r"logL|likelihood|AIC|BIC"), ("se", r"s\.e\.|\bse\b|standard err"), ("params", r"\bA\b|\bk\b|delta0|param"))


def num(value) -> float:
    "A decimal of any length, an exact rational, an infinity or None (NaN)."
    if value is None:
        return math.nan
    text = str(value).strip().lower()
    return float(text) if "inf" in text or "nan" in text else float(Fraction(text)) if "/" in text else float(text)


def nums(values) -> np.ndarray:
    return np.array([num(v) for v in values])


class Tolerance:
    "What a case allows: '(rel|abs) x for these', clause by clause; 'exact' and 'status' mean to rounding."

    def __init__(self, text):
        self.by_group: dict[str, tuple[float, float]] = {}
        words = text if isinstance(text, str) else " ; ".join(v for v in text.values() if isinstance(v, str))
        for clause in words.split(";"):
            found = NUMBER.search(clause)
            if found is None:
                continue
            allowed = (float(found[2]), 0.0) if found[1] == "rel" else (0.0, float(found[2]))
            named = [g for g, pattern in GROUPS if re.search(pattern, clause)] or ["all"]
            for group in named:
                self.by_group.setdefault(group, allowed)
        first = next(iter(self.by_group.values()), (1e-8 if "status" in words else 1e-12, 1e-9 if "exact" in words or "status" in words else 0.0))
        self.by_group.setdefault("all", first)

    def check(self, got, want, what: str, group: str = "all", floor: float = 1e-11) -> None:
        "`floor` is the absolute rounding allowed where the answer is zero."
        rel, absolute = self.by_group.get(group, self.by_group["all"])
        got, want = float(got), num(want)
        if math.isnan(want) or math.isinf(want):
            assert (math.isnan(got) and math.isnan(want)) or got == want, f"{what}: {got} is not {want}"
        else:
            assert abs(got - want) <= absolute + rel * abs(want) + floor, f"{what}: got {got!r}, the oracle says {want!r} (rel {rel}, abs {absolute})"


def differs(got, wrong, right, what: str) -> None:
    "The known mistake gives another number, and we do not give it."
    if not math.isclose(num(wrong), num(right), rel_tol=1e-9):
        assert not math.isclose(float(got), num(wrong), rel_tol=1e-9), f"{what}: this is the known mistake's answer"


# ---- as2008

def world(inputs: dict) -> dict:
    "sigma, k, A, the horizon and dt of a table case: given one by one, or in the words of its discretisation."
    words = dict(re.findall(r"\b(T|sigma|dt|k|A)=([\d.]+)", inputs.get("discretisation", "")))
    got = {name: num(inputs.get(name, words.get(name))) for name in ("T", "sigma", "dt", "k", "A")}
    return {"gamma": num(inputs["gamma"]), "sigma": got["sigma"], "k": got["k"], "A": got["A"], "horizon": got["T"], "n_steps": round(got["T"] / got["dt"])}


def policy_of(case: dict) -> str:
    words = f"{case['id']} {case['inputs'].get('policy', '')}"
    return "symmetric" if "symmetric" in words else "inventory"


def fill_of(inputs: dict) -> str:
    return "poisson" if re.search(r"exp|poisson", str(inputs["fill"])) else "linear"


def check_quotes(case, inputs, expected, tol):
    S, q, t, T, gamma, sigma, k = (num(inputs[n]) for n in ("S", "q", "t", "T", "gamma", "sigma", "k"))
    quotes = model.optimal_quotes(S, inventory=q, gamma=gamma, sigma=PriceVol(sigma), k=k, tau_s=T - t)
    got = {"reservation": quotes.reservation, "half_spread": quotes.half_spread, "total_spread": 2 * quotes.half_spread, "bid": quotes.bid,
           "ask": quotes.ask, "bid_depth_from_mid": S - quotes.bid, "ask_depth_from_mid": quotes.ask - S}
    assert set(got) & set(expected)
    for name in set(got) & set(expected):
        tol.check(got[name], expected[name], name, floor=1e-12 * abs(S))
    for side in ("bid", "ask"):
        if f"WRONG_seed1_{side}" in expected:
            differs(got[side], expected[f"WRONG_seed1_{side}"], expected[side], side)
        for name in expected:
            rate = re.fullmatch(rf"fill_A([\d.]+)_{side}", name)
            if rate:  # a rate's relative rounding is k times the rounding of the depth
                value = model.fill_rate(got[f"{side}_depth_from_mid"], A=float(rate[1]), k=k)
                tol.check(value, expected[name], name, floor=1e-12 * abs(S) * k * abs(num(expected[name])))


def check_table(case, inputs, expected, tol):
    how = world(inputs) | {"fill": fill_of(inputs), "policy": policy_of(case)}
    exact = model.exact_moments(**how)
    want = expected["exact_moments"]
    assert set(want) <= set(exact), f"exact_moments lacks {set(want) - set(exact)}"
    for name, value in want.items():
        tol.check(exact[name], value, name, floor=1e-9)
    sim = case["tolerance"]["vs_exact_100k"]
    run = model.simulate(n_paths=sim["n_paths"], rng=np.random.default_rng(crc32(case["id"].encode())), **how)
    assert abs(run.profit.mean() - want["profit_mean"]) <= sim["mean_abs"]
    assert abs(run.profit.std() / want["profit_std"] - 1) <= sim["std_rel"]
    assert abs(run.inventory.mean() - want["final_q_mean"]) <= sim["q_mean_abs"]
    assert abs(run.inventory.std() / want["final_q_std"] - 1) <= sim["q_std_rel"]
    published, loose = expected.get("published_1000_paths"), case["tolerance"]["vs_exact_1000"]
    if published:  # one run of 1,000 paths, printed with one or two decimals
        assert abs(exact["profit_mean"] - published["profit"]) <= loose["mean_abs"] + 0.05
        assert abs(published["std_profit"] / exact["profit_std"] - 1) <= loose["std_rel"] + 0.05 / exact["profit_std"]
        assert abs(exact["final_q_mean"] - published["final_q"]) <= loose["q_mean_abs"] + 0.005
        assert abs(published["std_final_q"] / exact["final_q_std"] - 1) <= loose["q_std_rel"] + 0.05 / exact["final_q_std"]
        assert abs(exact["avg_spread"] / published["avg_spread"] - 1) <= 0.005


def check_convergence(case, inputs, expected, tol):
    how = world({**inputs, "dt": inputs.get("dt", num(inputs["T"]) / inputs["N"][0])}) | {"policy": policy_of(case)}
    for n, by_fill in expected.items():
        if not n.isdigit():
            continue
        for fill, want in by_fill.items():
            got = model.exact_moments(**{**how, "n_steps": int(n), "fill": fill})
            for name, value in want.items():
                tol.check(got[name], value, f"N={n} {fill} {name}", floor=1e-9)


def check_power_depth(case, inputs, expected, tol):
    gamma, k, delta0 = num(inputs["gamma"]), num(inputs["k_exponent"]), num(inputs["delta0"])
    rest = {"k": k, "delta0": delta0, "reservation_distance": num(inputs.get("reservation_distance", 0))}
    got = model.optimal_depth_power(gamma=gamma, **rest)
    tol.check(got, expected["optimal_depth"], "optimal_depth")
    if "WRONG_exponential_formula_with_power_k" in expected:
        differs(got, expected["WRONG_exponential_formula_with_power_k"], expected["optimal_depth"], "optimal_depth")
    if "risk_neutral_limit" in expected:
        limit = num(expected["risk_neutral_limit"])
        assert math.isclose(model.optimal_depth_power(gamma=1e-9, **rest), limit, rel_tol=1e-6)


# ---- ofi

COLUMNS = {"bid_price": "bid", "ask_price": "ask"}


def quotes_of(inputs: dict) -> pd.DataFrame:
    names = [COLUMNS.get(c, c) for c in inputs.get("columns", ["bid", "bid_size", "ask", "ask_size"])]
    frame = pd.DataFrame(inputs["quotes"], columns=names, dtype=float)
    seconds = nums(inputs.get("t", range(len(frame))))
    frame.insert(0, "time", pd.Timestamp("2026-03-02", tz="UTC") + pd.to_timedelta(np.rint(seconds * 1e9).astype("int64"), unit="ns"))
    return frame


def check_events(case, inputs, expected, tol):
    quotes = quotes_of(inputs)
    got = ofi_events(quotes).to_numpy()
    assert math.isnan(got[0]), "the first row has no previous quote"
    assert got[1:].tolist() == nums(expected["e_n"]).tolist()
    if "cum_ofi" in expected:
        assert np.nansum(got) == num(expected["cum_ofi"])
    if "VARIANT_ccz2023_current_size" in expected:
        assert ofi_events(quotes, convention="ccz").to_numpy()[1:].tolist() == nums(expected["VARIANT_ccz2023_current_size"]).tolist()
    for name in expected:
        if name.startswith("WRONG_"):
            assert got[1:].tolist() != nums(expected[name]).tolist(), name
    if "grid_s" in inputs:
        midnight = pd.Timestamp("2026-03-02", tz="UTC")
        buckets = ofi_buckets(quotes, every_s=num(inputs["grid_s"]))
        seconds = (buckets["time"] - midnight).dt.total_seconds()
        sums = dict(zip(seconds, buckets["ofi"], strict=True))
        for name, value in expected["ofi_by_bucket_right_closed"].items():
            end = num(re.search(r",\s*([\d.]+)\]", name)[1])
            assert sums[end] == num(value), f"bucket {name}: {sums[end]} is not {value}"


def check_multilevel(case, inputs, expected, tol):
    levels = inputs["levels"]
    got = multilevel_ofi(inputs["books"], levels=levels).to_numpy()
    assert np.isnan(got[0]).all() and got[1:].tolist() == [nums(row).tolist() for row in expected["e_nm"]]
    assert np.nansum(got, axis=0).tolist() == nums(expected["MLOFI"]).tolist()
    tol.check(average_depth(inputs["books"], levels=levels), expected["avg_depth_Q"], "avg_depth_Q")
    for m, (a, b) in enumerate(zip(scaled_ofi(inputs["books"], levels=levels), expected["scaled_ofi"], strict=True)):
        tol.check(a, b, f"scaled_ofi[{m}]")
    if expected.get("level1_equals_OFI"):
        best = [[*book["b"][0], *book["a"][0]] for book in inputs["books"]]
        assert ofi_events(quotes_of({"quotes": best})).to_numpy()[1:].tolist() == got[1:, 0].tolist()


def check_integrated(case, inputs, expected, tol):
    X = np.array([nums(row) for row in inputs["X"]])
    found = integrated_ofi_weights(X)
    pairs = {"weights_l1": found.weights, "w1_unit": found.component, "eigenvalues": found.eigenvalues, "explained_ratio_pc1": [found.explained],
             "integrated": integrated_ofi(X, weights=found), "mean": X.mean(axis=0)}
    for name in set(pairs) & set(expected):
        want = expected[name] if isinstance(expected[name], list) else [expected[name]]
        for i, (a, b) in enumerate(zip(pairs[name], want, strict=True)):
            tol.check(a, b, f"{name}[{i}]")


# ---- intensity_mle

def bins_of(inputs: dict) -> pd.DataFrame:
    return pd.DataFrame({name: nums(inputs[name]) for name in ("delta", "count", "exposure")})


def fit_numbers(fit) -> dict[str, tuple]:
    "name -> (value, tolerance group), under the oracle's names."
    A, k = float(fit.params["A"]), float(fit.params["k"])
    se = fit.bse
    return {"A": (A, "params"), "k": (k, "params"), "delta0": (fit.delta0, "params"), "log_likelihood": (fit.llf, "llf"), "AIC": (fit.aic, "llf"),
            "AIC_p3": (fit.aic, "llf"), "BIC_n_bins": (fit.bic, "llf"), "BIC_n_events": (fit.bic_events, "llf"), "se_A": (se["A"], "se"),
            "se_k": (se["k"], "se"), "se_logA": (fit.se_log_A, "se"), "corr_logA_k": (fit.corr_log_A_k, "se"),
            "deviance": (fit.deviance, "all"), "pearson_chi2": (fit.pearson_chi2, "all")}


def check_fit(fit, expected: dict, tol: Tolerance) -> None:
    got = fit_numbers(fit)
    assert set(got) & set(expected), f"nothing to compare in {sorted(expected)}"
    for name in set(got) & set(expected):
        tol.check(got[name][0], expected[name], name, got[name][1], floor=1e-9 if name in ("deviance", "pearson_chi2") else 1e-12)
    for i, want in enumerate(expected.get("expected_counts", [])):
        tol.check(fit.bins["expected"].iloc[i], want, f"expected_counts[{i}]", "params")


def no_errors(fit) -> None:
    assert not fit.converged and fit.message and fit.bse[["A", "k"]].isna().all(), "an estimate that is not there has no standard error"


def check_intensity(case, inputs, expected, tol):
    bins, power = bins_of(inputs), "power" in inputs["model"]
    delta0 = None if not power else "estimate" if "estimated" in inputs["model"] else num(inputs["delta0"])
    fit = IntensityModel(bins, law="power" if power else "exponential", delta0=delta0).fit()
    k = str(expected.get("k", ""))
    if expected.get("interior_mle") is False:
        assert fit.status in ("delta0_at_infinity", "delta0_at_zero", "delta0_not_identified")
        assert fit.status == "delta0_at_infinity" or "infinity" not in str(expected.get("limit", ""))
        assert not fit.converged and fit.message
        tol.check(fit.llf, expected["sup_log_likelihood"], "sup_log_likelihood", "llf", floor=1e-8)
    elif "unconstrained" in expected:
        check_fit(fit, expected["unconstrained"], tol)
        assert fit.status == "k_not_positive" and fit.message
        bound = IntensityModel(bins, law=fit.law_name, delta0=delta0, k_nonnegative=True).fit()
        check_fit(bound, expected["constrained_k_ge_0"], tol)
        assert bound.status == "k_at_zero" and bound.bse[["A", "k"]].isna().all()
    elif k in ("+inf", "-inf", "inf"):
        assert fit.status == ("k_at_minus_infinity" if k == "-inf" else "k_at_plus_infinity")
        tol.check(fit.llf, expected["sup_log_likelihood"], "sup_log_likelihood", "llf")
        no_errors(fit)
    elif k == "any" and num(expected.get("A", 1)) == 0:
        assert fit.status == "no_counts" and float(fit.params["A"]) == 0.0
        tol.check(fit.llf, expected["log_likelihood"], "log_likelihood", "llf")
        no_errors(fit)
    elif k == "any":
        assert fit.status == "k_not_identified"
        tol.check(fit.llf, expected["log_likelihood"], "log_likelihood", "llf")
        ridge = next((num(v) for n, v in expected.items() if n.startswith("A_times")), None)
        if ridge is not None and not power:
            rate = fit.bins["expected"].sum() / fit.bins["exposure"].sum()
            if bins["delta"].iloc[0] == 1:  # A exp(-k) is the rate at delta = 1
                tol.check(rate, ridge, "the rate on the ridge")
        no_errors(fit)
    else:
        nested = next((v for v in expected.values() if isinstance(v, dict)), expected)
        check_fit(fit, nested, tol)
        assert fit.converged and fit.status == ("ok" if num(nested["k"]) > 0 else "k_not_positive")
        if "zero_exposure" in case["id"] or (bins["exposure"] == 0).any():
            assert len(fit.dropped) == (bins["exposure"] == 0).sum() and "exposure" in fit.message
    if "delta_AIC_power_minus_exp" in expected:
        other = IntensityModel(bins, law="exponential").fit()
        tol.check(fit.aic - other.aic, expected["delta_AIC_power_minus_exp"], "delta_AIC", "llf", floor=2e-8)


# ---- pnl_attribution

def check_attribution(case, inputs, expected, tol):
    fee = num(inputs["fee_per_unit"])
    rows = [(int(t), 1 if side == "buy" else -1, num(price), num(qty), fee * num(qty)) for t, fills in inputs["fills"].items() for side, price, qty in fills]
    fills = pd.DataFrame(sorted(rows, key=lambda r: r[0]), columns=["step", "side", "price", "qty", "fee"])
    mids = nums(inputs["mids"])
    got = attribute(fills, mids, q0=num(inputs["q0"]), cash0=num(inputs["cash0"]))
    pairs = {"final_cash": got.final_cash, "final_q": got.final_q, "total_pnl": got.total, "spread_capture": got.spread_capture,
             "inventory_pnl": got.inventory_pnl, "fees": got.fees, "identity_residual": got.residual}
    for name in set(pairs) & set(expected):
        tol.check(pairs[name], expected[name], name, floor=1e-9)
    columns = {"t": "t", "mid": "mid", "q": "q", "cash": "cash", "spread_capture_t": "spread_capture", "inventory_pnl_t_to_t1": "inventory_pnl"}
    for i, step in enumerate(expected.get("steps", [])):
        for name in set(columns) & set(step):
            tol.check(got.steps[columns[name]].iloc[i], step[name], f"step {i} {name}", floor=1e-9)
        if "mtm" in step:  # the wealth marked to the mid
            row = got.steps.iloc[i]
            tol.check(row["cash"] + row["q"] * row["mid"], step["mtm"], f"step {i} mtm", floor=1e-9)
    horizons = [int(h) for h in expected.get("markouts", {})]
    if horizons:
        table = markouts(fills, mids, horizons=horizons)
        for h in horizons:
            part = table[table["horizon"] == h].reset_index(drop=True)
            assert len(part) == len(expected["markouts"][str(h)])
            for i, want in enumerate(expected["markouts"][str(h)]):
                assert part["step"].iloc[i] == want["t"] and part["side"].iloc[i] == (1 if want["side"] == "buy" else -1)
                tol.check(part["markout_pnl"].iloc[i], want["markout_pnl"], f"h={h} fill {i} markout", floor=1e-9)
                tol.check(part["realized_spread"].iloc[i], want["realized_spread"], f"h={h} fill {i} realized spread", floor=1e-9)
        costs, cut = adverse_selection(table), censored(table)
        for h, value in expected.get("adverse_selection_cost", {}).items():
            tol.check(costs.loc[int(h), "cost"], value, f"adverse selection at {h}", floor=1e-9)
        for h, value in expected.get("censored_fills", {}).items():
            assert cut.loc[int(h)] == value


# ---- seed_checks

def check_relative_rate(case, inputs, expected, tol):
    side = "bid" if "our_bid" in inputs else "ask"
    got = relative_intensity(num(inputs[f"our_{side}"]), market_price=num(inputs[f"market_{side}"]), mid=num(inputs["mid"]), side=1 if side == "bid" else -1,
                             lambda0=num(inputs["lambda0"]), alpha=num(inputs["alpha"]))
    tol.check(got, expected["correct_sign"], "correct_sign")
    if "WRONG_seed0" in expected:
        differs(got, expected["WRONG_seed0"], expected["correct_sign"], "relative_intensity")


def check_cap(case, inputs, expected, tol):
    base = 2 * model.base_depth(gamma=num(inputs["gamma"]), k=num(inputs["fill_intensity"]))
    tol.check(base, expected["base_spread_dollars"], "base_spread")
    tol.check(base / (num(inputs["max_spread_bps"]) * 1e-4), expected["cap_binds_for_price_below"], "cap_binds_for_price_below")


def check_sigma_units(case, inputs, expected, tol):
    sigma = num(inputs["sigma_logreturn_per_sqrt_s"])
    how = {"gamma": num(inputs["gamma"]), "tau_s": num(inputs["tau_s"])}
    q = num(inputs["q"])
    shift = model.inventory_skew(q, sigma=ReturnVol(sigma).to_price(num(inputs["S"])), **how)
    written = model.inventory_skew(q, sigma=sigma, **how)
    tol.check(shift, expected["shift_with_price_vol"], "shift_with_price_vol")
    tol.check(written, expected["shift_as_written"], "shift_as_written")
    tol.check(shift / written, expected["ratio"], "ratio")
    with pytest.raises(UnitError):
        model.inventory_skew(q, sigma=ReturnVol(sigma), **how)


def check_rolling_vol(case, inputs, expected, tol):
    mid, n = pd.Series(nums(inputs["mid"])), int(inputs["window_returns"])
    got = rolling_vol(mid, window_returns=n, kind="return")
    for i, want in enumerate(expected["sigma"]):
        tol.check(got[i], want, f"sigma[{i}]", floor=1e-14)
    for i, want in enumerate(expected.get("price_sigma", [])):  # the return volatility, converted at the mid of its own time
        price = math.nan if math.isnan(got[i]) else ReturnVol(got[i]).to_price(mid[i]).value
        tol.check(price, want, f"price_sigma[{i}]", floor=1e-14)
    if "first_defined_index" in expected:
        assert got.first_valid_index() == expected["first_defined_index"]
    scrambled = rolling_vol(pd.Series([*mid[: n + 2], *(mid[n + 2:] * 1.5)]), window_returns=n, kind="return")
    pd.testing.assert_series_equal(got[: n + 2], scrambled[: n + 2])


def check_half_spread(case, inputs, expected, tol):
    gamma, sigma, k, tau = (num(inputs[n]) for n in ("gamma", "sigma", "k", "tau"))
    half = model.half_spread(gamma=gamma, sigma=sigma, k=k, tau_s=tau)
    tol.check(2 * half, expected["total"], "total")
    tol.check(half, expected["half_seed4"], "half")
    if "fill_rate_ratio_seed1_vs_right" in expected:
        ratio = model.fill_rate(2 * half, A=1.0, k=k) / model.fill_rate(half, A=1.0, k=k)
        tol.check(ratio, expected["fill_rate_ratio_seed1_vs_right"], "fill_rate_ratio")


def check_post_only(case, inputs, expected, tol):
    best_bid, best_ask, tick, bid, ask = (num(inputs[n]) for n in ("market_bid", "market_ask", "tick", "desired_bid", "desired_ask"))
    got_bid, got_ask = post_only(bid, ask, best_bid=best_bid, best_ask=best_ask, tick=tick)
    bid_ticks, ask_ticks = round_to_ticks(got_bid, got_ask, tick=tick)
    most = num(re.match(r"\s*([\d.]+)", str(expected["correct_passive_bid_max"]))[1])
    highest, _ = post_only(best_ask + 10 * tick, best_ask + 20 * tick, best_bid=best_bid, best_ask=best_ask, tick=tick)
    assert math.isclose(highest, most, abs_tol=1e-9), "the highest passive bid is one tick below the market's ask"
    assert bid_ticks * tick <= most + 1e-9 and ask_ticks * tick >= best_bid + tick - 1e-9, "post-only compares with the opposite side"
    if bid < most:
        assert math.isclose(bid_ticks * tick, math.floor(bid / tick + 1e-9) * tick, abs_tol=1e-9), "improving the market is allowed"


# ---- glft

def check_depths(depths, expected: dict, tol: Tolerance, names: dict[str, np.ndarray]) -> None:
    "Every depth that the oracle gives, by inventory; sides that may not quote have none."
    where = {int(q): i for i, q in enumerate(depths.q)}
    for name, got in names.items():
        for q, want in expected.get(name, {}).items():
            tol.check(got[where[int(q)]], want, f"{name}[{q}]")
    if "no_bid_at" in expected:
        assert math.isnan(depths.bid[where[expected["no_bid_at"]]]) and math.isnan(depths.ask[where[expected["no_ask_at"]]])


def check_glft(case, inputs, expected, tol):
    how = {"sigma": num(inputs["sigma"]), "A": num(inputs["A"]), "k": num(inputs["k"]), "gamma": num(inputs["gamma"]),
           "drift": num(inputs.get("mu", 0)), "impact": num(inputs.get("xi", 0))}
    horizon, q_max = num(inputs["T"]), int(inputs["Q"])
    for method in ("expm", "ode"):
        depths = solve_glft(**how, horizon_s=horizon, q_max=q_max, method=method)
        check_depths(depths, expected, tol, {"bid_depth_t0": depths.bid, "ask_depth_t0": depths.ask})
    far = stationary_glft(**how, q_max=q_max)
    check_depths(far, expected, tol, {"bid_depth_asymptotic_eigen": far.bid, "ask_depth_asymptotic_eigen": far.ask})
    if "smallest_eigenvalue" in expected:
        tol.check(far.info["smallest_eigenvalue"], expected["smallest_eigenvalue"], "smallest_eigenvalue")
        found = glft_coefficients(**{n: how[n] for n in ("sigma", "A", "k", "gamma")})
        for name, got in (("alpha", found.alpha), ("eta", found.eta), ("base_depth", found.base)):
            Tolerance("rel 1e-12").check(got, expected[name], name, floor=0.0)
    for i, side in enumerate(("bid", "ask")):
        for q, want in expected.get(f"{side}_depth_closed_form", {}).items():
            Tolerance("rel 1e-12").check(glft_closed_form(float(q), **how)[i], want, f"closed form {side} at {q}", floor=0.0)
    if "spread_closed_form" in expected:
        Tolerance("rel 1e-12").check(sum(glft_closed_form(0.0, **how)), expected["spread_closed_form"], "spread_closed_form", floor=0.0)
    if "risk_neutral_unbounded_depth" in expected:
        tol.check(model.base_depth(gamma=how["gamma"], k=how["k"]), expected["risk_neutral_unbounded_depth"], "risk_neutral_unbounded_depth")


def check_base_depth(case, inputs, expected, tol):
    gamma, k = num(inputs["gamma"]), num(inputs["k"])
    got = model.base_depth(gamma=gamma, k=k)
    tol.check(got, expected["half_spread_base"], "half_spread_base", floor=0.0)
    differs(got, expected["wrong_variant_ln1pkg_over_k"], expected["half_spread_base"], "base depth")
    tol.check(glft_coefficients(sigma=1.0, A=1.0, k=k, gamma=gamma).eta, expected["eta_over_A"], "eta_over_A", floor=0.0)


# ---- cartea_jaimungal

def check_cj(case, inputs, expected, tol):
    kappa = {"kappa_ask": num(inputs.get("kappa_p", inputs.get("kappa"))), "kappa_bid": num(inputs.get("kappa_m", inputs.get("kappa")))}
    eps = {"eps_buy": num(inputs.get("eps_p", 0)), "eps_sell": num(inputs.get("eps_m", 0))}
    how = {"rate_buy": num(inputs["lp"]), "rate_sell": num(inputs["lm"]), "phi": num(inputs["phi"]), "alpha": num(inputs["alpha"]),
           "horizon_s": num(inputs["T"]), "q_max": int(inputs["Q"]), **kappa, **eps}
    methods = ("expm", "ode") if kappa["kappa_ask"] == kappa["kappa_bid"] else ("ode",)
    for method in methods:
        depths = solve_cj(**how, method=method)
        check_depths(depths, expected, tol, {"h_t0": depths.value, "ask_depth_t0": depths.ask, "bid_depth_t0": depths.bid})
        assert math.isnan(depths.bid[-1]) and math.isnan(depths.ask[0]), "a full inventory quotes one side"


def check_limit(case, inputs, expected, tol):
    A, k, T, Q, gamma, sigma = (num(inputs[n]) for n in ("A", "k", "T", "Q", "gamma", "sigma"))
    phi = 0.5 * gamma * sigma**2
    cj = solve_cj(rate_buy=A, rate_sell=A, kappa_ask=k, kappa_bid=k, phi=phi, alpha=0.0, horizon_s=T, q_max=int(Q))
    glft = solve_glft(sigma=sigma, A=A, k=k, gamma=gamma, horizon_s=T, q_max=int(Q))
    got = {"cj_bid_depth_q0": cj.at(0)[0], "glft_bid_depth_q0": glft.at(0)[0]}
    for name, value in got.items():
        Tolerance("rel 1e-9").check(value, expected[name], name)
    assert abs(got["cj_bid_depth_q0"] - got["glft_bid_depth_q0"]) < 1e-6


# ---- microprice

def check_chain(case, inputs, expected, tol):
    Q, R1, T = (np.array([nums(row) for row in inputs[name]]) for name in ("Q", "R1", "T"))
    law = (Q, R1, nums(inputs["K"]), T)
    found, short, chain = microprice_adjustment(*law), microprice_adjustment(*law, terms=6), embedded_chain(Q, T)
    pairs = {"G1": found.G1, "G1_exact": found.G1, "G_star": found.G_star, "G_after_6_terms": short.G_star}
    for name in set(pairs) & set(expected):
        for i, (got, want) in enumerate(zip(pairs[name], expected[name], strict=True)):
            tol.check(got, want, f"{name}[{i}]", floor=1e-14)
    np.testing.assert_allclose(chain.B.sum(axis=1), expected["B_row_sums"], rtol=1e-12)
    assert chain.closed == 1 and abs(chain.limit[0] @ found.G1 - expected["pi_dot_G1"]) < 1e-14
    assert abs(chain.limit[0] @ found.G_star) < 1e-14, "of all solutions, the one whose mean is zero"


def check_tape(case, inputs, expected, tol):
    rows = np.array(inputs["tape"])
    law = microprice_matrices(rows[:, 0], np.diff(rows[:, 1]), n_imb=int(inputs["n_imb"]))
    for name in ("Q", "R1", "T"):
        for got, want in zip(getattr(law, name), expected[name], strict=True):
            np.testing.assert_allclose(got, nums(want), rtol=1e-12, atol=1e-15)
    found, short = microprice_adjustment(*law), microprice_adjustment(*law, terms=6)
    for name, got in (("G1_halfticks", found.G1), ("G_star_halfticks", found.G_star), ("G_after_6_terms", short.G_star)):
        for i, want in enumerate(expected[name]):
            tol.check(got[i], want, f"{name}[{i}]", floor=1e-12 if "after" not in name else 5e-7)


def check_weighted(case, inputs, expected, tol):
    quote = pd.DataFrame([[num(inputs[n]) for n in ("bid", "ask", "bid_size", "ask_size")]], columns=["bid", "ask", "bid_size", "ask_size"])
    quote.insert(0, "time", pd.Timestamp("2026-03-02", tz="UTC"))
    for name, got in (("imbalance", imbalance(quote)), ("mid", mid(quote)), ("weighted_mid", weighted_mid(quote))):
        tol.check(got.iloc[0], expected[name], name)
    empty = quote.assign(bid_size=0.0, ask_size=0.0)
    assert math.isnan(weighted_mid(empty).iloc[0]), "no sizes, no weighted mid"


# ---- hawkes

def check_hawkes(case, inputs, expected, tol):
    times, T = nums(inputs["events"]), num(inputs["T"])
    how = {n: num(inputs[n]) for n in ("mu", "alpha", "beta")}
    tol.check(hawkes_loglik(times, T=T, **how), expected["log_likelihood"], "log_likelihood", floor=0.0)
    for got, want in zip(hawkes_intensity(times, **how), expected["intensity_at_events_left_limit"], strict=True):
        tol.check(got, want, "intensity", floor=0.0)
    tol.check(compensator(times, T=T, **how), expected["compensator_T"], "compensator_T", floor=0.0)


def check_recovery(case, inputs, expected, tol):
    times = np.loadtxt(FILE.parent / inputs["file"], skiprows=1)
    assert len(times) == expected["n_events"]
    fit = HawkesModel(times, T=inputs["T"]).fit()
    for name, want in expected["mle"].items():
        assert math.isclose(fit.params[name], want, rel_tol=1e-3), name
        assert abs(fit.params[name] - expected["true"][name]) < 3 * fit.bse[name], f"{name}: the truth is further than 3 standard errors"
    assert abs(fit.llf - expected["max_log_likelihood"]) < 1e-4
    np.testing.assert_allclose(fit.bse / fit.params, expected["se_log_params"], rtol=0.02)
    at_truth = hawkes_loglik(times, T=inputs["T"], **expected["true"])
    assert math.isclose(at_truth, expected["log_likelihood_at_truth"], abs_tol=1e-8)
    assert fit.stationary and math.isclose(fit.residuals().ks_pvalue, expected["residual_KS_p"], abs_tol=0.02)


# ---- risk

def check_gaussian(case, inputs, expected, tol):
    q, S, sigma, T, level = (num(inputs[n]) for n in ("q", "S", "sigma_return", "T", "alpha"))
    mean = num(inputs.get("mean_return_per_T_unit", 0))
    got = gaussian_var_cvar(q, price=S, sigma_return=ReturnVol(sigma), horizon=T, level=level, mean_return=mean)
    priced = price_var_cvar(q, sigma=PriceVol(S * sigma), horizon=T, level=level, drift=S * mean)
    for name, value in (("VaR", got.var), ("CVaR", got.cvar)):
        tol.check(value, expected[name], name)
    tol.check(priced.var, expected["VaR"], "VaR from a price volatility")
    with pytest.raises(UnitError):
        gaussian_var_cvar(q, price=S, sigma_return=PriceVol(S * sigma), horizon=T, level=level)
    if q < 0:
        differs(got.var, expected["seed1_formula_VaR"], expected["VaR"], "VaR of a short")


def check_historical(case, inputs, expected, tol):
    got = historical_var_cvar(nums(inputs["pnl"]), level=num(inputs["alpha"]))
    tol.check(got.var, expected["VaR_lower_quantile"], "VaR")
    tol.check(got.cvar, expected["CVaR_rockafellar_uryasev"], "CVaR")
    differs(got.cvar, expected["seed1_E_loss_given_loss_gt_VaR"], expected["CVaR_rockafellar_uryasev"], "CVaR with an atom")


def check_schedule(case, inputs, expected, tol):
    got = almgren_chriss(num(inputs["X"]), horizon=num(inputs["T"]), n_steps=int(inputs["N_"]), sigma=num(inputs["sig"]), fixed=num(inputs["eps"]),
                         permanent=num(inputs["gam"]), temporary=num(inputs["eta"]), risk_aversion=num(inputs["lam"]))
    pairs = {"eta_tilde": got.eta_tilde, "kappa_tilde": got.kappa_tilde, "kappa": got.kappa, "expected_shortfall": got.expected_cost,
             "variance": got.variance, "std": math.sqrt(got.variance), "utility": got.expected_cost + got.risk_aversion * got.variance}
    for name in set(pairs) & set(expected):
        tol.check(pairs[name], expected[name], name, floor=0.0)
    half = expected.get("half_life_1_over_kappa")
    assert math.isinf(got.half_life) if half is None else math.isclose(got.half_life, num(half), rel_tol=1e-10)
    for name, values in (("x", got.holdings), ("n", got.trades)):
        for i, want in enumerate(expected[name]):
            tol.check(values[i], want, f"{name}[{i}]", floor=1e-8)


# ---- dispatch: what a case gives says what it asks

# ---- black_scholes

def option_of(inputs: dict, *names: str) -> dict:
    "S, K, T, r, q and the side of an option, and the numbers named."
    return {n: num(inputs[n]) for n in ("S", "K", "T", "r", "q", *names)} | {"right": inputs["type"]}


def check_option_price(case, inputs, expected, tol):
    "Price and every greek told; relative, however small: d1 and d2 are steps on the way, not answers."
    option = option_of(inputs, "sigma")
    got = greeks(**option)._asdict()
    assert set(got) & set(expected) and set(expected) - set(got) <= {"d1", "d2"}
    for name in set(got) & set(expected):
        tol.check(got[name], expected[name], name, floor=0.0)
    tol.check(black_scholes(**option), expected["price"], "price alone", floor=0.0)
    other = black_scholes(**option | {"right": "put" if option["right"] == "call" else "call"})
    forward = option["S"] * math.exp(-option["q"] * option["T"]) - option["K"] * math.exp(-option["r"] * option["T"])
    sign = 1 if option["right"] == "call" else -1
    assert abs(sign * (got["price"] - other) - forward) <= 1e-12 * option["S"], "put-call parity"


def check_implied_vol(case, inputs, expected, tol):
    "The volatility, as far as one ulp of the price can tell it; or a refusal by name, and NaN on request."
    option = option_of(inputs, "price")
    if "status" in expected:
        with pytest.raises(ParameterError, match="price"):
            implied_vol(**option)
        assert math.isnan(implied_vol(**option, errors="nan"))
        return
    allowed = max(1e-8, 10 * num(expected["sigma_change_from_1ulp_of_price"]))
    for name in ("price", "price_double"):
        got = implied_vol(**option | {"price": num(inputs.get(name, inputs["price"]))})
        assert abs(got - num(expected["sigma"])) <= allowed, f"{name}: got {got!r}, the oracle says {expected['sigma']}"


DISPATCH = {
    "as2008": [({"S", "q", "t", "T"}, check_quotes), ({"discretisation", "fill"}, check_table), ({"N", "gamma"}, check_convergence), ({"k_exponent"}, check_power_depth)],
    "ofi": [({"books"}, check_multilevel), ({"X"}, check_integrated), ({"quotes"}, check_events)],
    "intensity_mle": [({"delta", "count", "exposure"}, check_intensity)],
    "glft": [({"sigma", "A", "T", "Q"}, check_glft), ({"gamma", "k"}, check_base_depth)],
    "cartea_jaimungal": [({"lp", "lm"}, check_cj), ({"A", "k", "gamma"}, check_limit)],
    "black_scholes": [({"S", "K", "sigma"}, check_option_price), ({"S", "K", "price"}, check_implied_vol)],
    "microprice": [({"Q", "R1", "T"}, check_chain), ({"tape"}, check_tape), ({"bid_size", "ask_size"}, check_weighted)],
    "hawkes": [({"events", "mu"}, check_hawkes), ({"file"}, check_recovery)],
    "risk": [({"sigma_return"}, check_gaussian), ({"pnl"}, check_historical), ({"X", "lam"}, check_schedule)],
    "pnl_attribution": [({"mids", "fills"}, check_attribution)],
    "seed_checks": [({"lambda0", "alpha"}, check_relative_rate), ({"fill_intensity"}, check_cap), ({"sigma_logreturn_per_sqrt_s"}, check_sigma_units),
                    ({"window_returns"}, check_rolling_vol), ({"desired_bid"}, check_post_only), ({"gamma", "sigma", "k", "tau"}, check_half_spread)],
}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["id"])
def test_case(case, record_property):
    if "context only" in str(case["tolerance"]):
        record_property("context only", case["id"])
        return
    check = next((f for needs, f in DISPATCH.get(case["area"], []) if needs <= set(case["inputs"])), None)
    assert check is not None, f"no reading of a case of {case['area']} with inputs {sorted(case['inputs'])}"
    check(case, case["inputs"], case["expected"], Tolerance(case["tolerance"]))


def test_the_file_has_cases_of_every_area():
    assert {c["area"] for c in CASES} == set(DISPATCH), f"areas of {FILE} and of this test differ"
