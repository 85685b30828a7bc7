"""Switch each guard off once and see a test fail: `make mutants`.

The table below names guards: where each stands, its exact text, a text that switches it off, and the tests that must then fail.
For each one a copy of the package gets this ONE substitution and the named tests run against the copy. A guard survives when they
all pass: nobody would notice its loss. The run fails for a survivor, for a text that is gone or stands more than once, for a copy
that cannot be imported, and for a test that fails without any substitution.

Add a guard: one `guard(...)` in the part of its module; a new module (the trader, the harness) first gets its line in FILES. Several
tests: one string, separated by spaces; a test of another file than the module's own is written with it, `orders_guards::test_x`.
Try it alone: `python tools/mutants.py 'words of its name'`.
tests/test_mutants.py checks in every run of the tests that all texts and tests still exist.
"""
import argparse
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120  # a mutant that runs longer is taken for killed: it hangs

FILES = {  # word -> module, its tests
    "risk": ("makerlab/execution/risk.py", "tests/test_risk.py"),
    "orders": ("makerlab/execution/orders.py", "tests/test_orders.py"),
    "throttle": ("makerlab/execution/throttle.py", "tests/test_throttle.py"),
    "quote_engine": ("makerlab/models/quote_engine.py", "tests/test_quote_engine.py"),
    "config": ("makerlab/execution/config.py", "tests/test_config.py"),
    "trader": ("makerlab/execution/trader.py", "tests/test_trader.py"),
    "valuation": ("makerlab/execution/valuation.py", "tests/test_trader.py"),
    "guardian": ("makerlab/live/guardian.py", "tests/test_guardian.py"),
    "engine": ("makerlab/live/engine.py", "tests/test_engine.py"),
}


@dataclass(frozen=True)
class Mutant:
    "One guard, switched off."

    module: str  # a word of FILES
    what: str  # the guard, in a few words
    old: str  # its text, exactly once in the module
    new: str  # what switches it off
    tests: tuple[str, ...]  # pytest ids, of which one at least must fail

    @property
    def path(self) -> Path:
        "The module's file, below the root."
        return Path(FILES[self.module][0])

    def text(self, source: str) -> str:
        "The module's source with the guard off. Raises ValueError unless its text stands there exactly once."
        if source.count(self.old) != 1:
            raise ValueError(f"its text stands {source.count(self.old)} times in {self.path}")
        return source.replace(self.old, self.new)


MUTANTS: list[Mutant] = []


def guard(module: str, what: str, tests: str, old: str, new: str) -> None:
    "Put a guard in the table: its module, its name, the tests that must fail, its text, and the text that switches it off."
    ids = [t if "::" in t else f"{Path(FILES[module][1]).stem.removeprefix('test_')}::{t}" for t in tests.split()]
    MUTANTS.append(Mutant(module, what, old, new, tuple(f"tests/test_{f}.py::{t}" for f, t in (i.split("::", 1) for i in ids))))


# risk
guard("risk", "limits: NaN, zero and negative are refused", "test_limits_that_mean_nothing_are_refused",
      '        check_positive(name, getattr(x, name), unit=unit, remedy="a limit is set before trading starts")\n'
      "    for name",
      "        pass\n    for name")
guard("risk", "limits: negative times and widths are refused", "test_limits_that_mean_nothing_are_refused",
      "        check_nonnegative(name, getattr(x, name), unit=unit)\n", "        pass\n")
guard("risk", "limits: whole lots", "test_limits_that_mean_nothing_are_refused",
      "if getattr(x, name) % 1:", "if False:")
guard("risk", "limits: the target lies inside", "test_limits_that_mean_nothing_are_refused",
      "    if not room > 0:", "    if False:")
guard("risk", "limits: a soft limit beyond the hard one", "test_limits_that_mean_nothing_are_refused",
      "if not 0 <= x.soft_position_lots <= room:", "if False:")
guard("risk", "limits: an order larger than the position", "test_limits_that_mean_nothing_are_refused",
      "if x.max_order_lots > x.max_position_lots:", "if False:")
guard("risk", "limits: a collar of everything", "test_limits_that_mean_nothing_are_refused",
      "if not x.collar < 1:", "if False:")
guard("risk", "greek limits: numbers", "test_limits_that_contradict_across_tables_are_refused",
      "                check_positive(name, value, unit=unit)\n", "                pass\n")
guard("risk", "greek limits: a band beyond the limit", "test_limits_that_contradict_across_tables_are_refused",
      "if self.hedge_band != math.inf and self.hedge_band > self.max_delta:", "if False:")
guard("risk", "greek limits: where the hedge aims", "test_limits_that_contradict_across_tables_are_refused",
      "if not 0 <= self.hedge_to <= 1:", "if False:")
guard("risk", "account limits: numbers", "test_account_limits_that_mean_nothing_are_refused",
      '            check_positive(name, getattr(self, name), unit=unit, remedy="a limit is set before trading starts")\n'
      "        check_nonneg",
      "            pass\n        check_nonneg")
guard("risk", "account limits: the pause", "test_account_limits_that_mean_nothing_are_refused",
      '        check_nonnegative("reconnect_ns", self.reconnect_ns, unit="ns")', "        pass")
guard("risk", "tables: limits of a symbol without instrument", "test_limits_that_contradict_across_tables_are_refused",
      "        if symbol not in instruments:\n            raise", "        if False:\n            raise")
guard("risk", "tables: an order worth more than the account", "test_the_accounts_limits_change_in_a_persons_name_too",
      "if x.max_order_value > account.max_gross:", "if False:")
guard("risk", "tables: greeks of nothing", "test_limits_on_greeks_of_nothing_are_refused",
      "if not any(underlying in (s, i.underlying) for s, i in instruments.items()):", "if False:")
guard("risk", "tables: a hedge without limits", "test_limits_that_contradict_across_tables_are_refused",
      "if g.hedge_band != math.inf and hedge not in limits:", "if False:")
guard("risk", "latch: the first reason stays", "test_a_limit_that_breaks_after_a_kill_does_not_trade",
      'if held is None or (reason.startswith("kill") and not held.startswith("kill")):', "if True:")
guard("risk", "latch: a kill comes on top", "test_a_kill_from_another_process_stops_a_flattening",
      'held is None or (reason.startswith("kill") and not held.startswith("kill"))', "held is None")
guard("risk", "latch: no re-arming without a name", "test_the_kill_survives_a_restart_and_an_operator_ends_it",
      "        if not operator.strip():\n"
      '            raise ParameterError("operator = \'\' must be a person\'s name: a machine',
      '        if False:\n            raise ParameterError("operator = \'\' must be a person\'s name: a machine')
guard("risk", "latch: re-arming is written down", "test_an_operator_may_re_arm_from_another_process",
      '        self.history.append(dict(what="rearm"', '        [].append(dict(what="rearm"')
guard("risk", "latch: a trip reaches the disk", "test_another_process_can_pull_the_switch",
      "        if self.tripped[scope] != before:\n            self._try_write()", "        if self.tripped[scope] != before:\n            pass")
guard("risk", "latch: others' trips are read before ours is written", "test_two_writers_lose_no_kill",
      "        self.refresh()  # somebody else may have written meanwhile\n", "")
guard("risk", "latch: others' trips are read before a re-arming", "test_two_writers_lose_no_kill",
      "    latch.refresh()\n    before, history", "    before, history")
guard("risk", "latch: what no file means", "test_what_no_file_means_can_be_chosen",
      'if missing not in ("armed", "killed"):', "if False:")
guard("risk", "latch: no folder is no first run", "test_what_no_file_means_can_be_chosen",
      'if missing == "armed" and not self.path.exists() and self.path.parent.is_dir():', 'if missing == "armed" and not self.path.exists():')
guard("risk", "latch: missing = killed", "test_what_no_file_means_can_be_chosen",
      'if missing == "armed" and not self.path.exists() and', "if not self.path.exists() and")
guard("risk", "latch: the file is read at the start", "test_a_stop_to_reduce_survives_a_restart",
      "            self._write()\n        self.refresh()\n", "            self._write()\n")
guard("risk", "latch: a file of another kind", "test_a_latch_file_that_cannot_be_read_counts_as_killed",
      'if data["version"] != 1 or not words:', "if False:")
guard("risk", "latch: a file that cannot be read is a kill", "test_a_latch_that_vanishes_while_we_run_kills",
      '        latch.tripped.setdefault("*", f"latch file', '        {}.setdefault("*", f"latch file')
guard("risk", "latch: a disk that fails keeps the kill", "test_a_disk_that_fails_keeps_the_kill_and_refuses_to_re_arm",
      "        except OSError as e:\n            self.error =", "        except ZeroDivisionError as e:\n            self.error =")
guard("risk", "latch: a re-arming that is not on disk has not happened",
      "test_a_disk_that_fails_keeps_the_kill_and_refuses_to_re_arm",
      "        latch.tripped, latch.history = before, history\n        raise", "        raise")
guard("risk", "latch: a disk that failed is tried again", "test_a_disk_that_failed_is_told_and_tried_again",
      "if latch.error and latch._looks % 256 == 0:", "if False:")
guard("risk", "latch: what vanishes without a name stays", "test_what_vanishes_without_a_name_is_written_back",
      "kept = {} if", "kept = {} if True or")
guard("risk", "latch: a name of spaces is no name", "test_what_vanishes_without_a_name_is_written_back",
      'h["what"] == "rearm" and h["operator"].strip() and', 'h["what"] == "rearm" and')
guard("risk", "latch: an old re-arming counts once", "test_what_vanishes_without_a_name_is_written_back",
      " and h not in latch.history} if", "} if")
guard("risk", "latch: what was kept is written back", "test_what_vanishes_without_a_name_is_written_back",
      "    if kept:\n        latch._try_write()", "    if False:\n        latch._try_write()")
guard("risk", "ledger: closing before opening", "test_the_ledger_adds_up_to_cash_and_liquidation_value",
      "closing = min(qty_lots, abs(self.position)) if self.position * side < 0 else 0", "closing = 0")
guard("risk", "ledger: fees", "test_the_report_says_where_we_stand",
      "        self.fees += fee\n", "")
guard("risk", "ledger: marked at the side that we would have to take", "test_drawdown_counts_from_the_best_moment",
      "float(bid_ticks if self.position > 0 else ask_ticks)", "float(ask_ticks if self.position > 0 else bid_ticks)")
guard("risk", "book: numbers", "test_books_with_no_numbers_open_the_breaker_and_never_mark",
      "    if not (0 <= bid < _FAR and 0 <= ask < _FAR and 0 <= top.bid_lots < _FAR and 0 <= top.ask_lots < _FAR):", "    if False:")
guard("risk", "book: times", "test_a_time_that_is_none_is_not_learned",
      "    if not (-_END < top.time_ns < _END and -_END < top.local_ns < _END):", "    if False:")
guard("risk", "book: a side is missing", "test_one_sided_option_books",
      'return "" if limits.one_sided and (bid or ask) else f"bid', 'return "" if True else f"bid')
guard("risk", "book: crossed", "test_breakers_cool_down",
      "    if bid > ask or (bid == ask and not limits.locked):", "    if bid == ask and not limits.locked:")
guard("risk", "book: locked", "test_stale_crossed_or_missing_market_data",
      "    if bid > ask or (bid == ask and not limits.locked):", "    if bid > ask:")
guard("risk", "breaker: the exchange's clock steps back", "test_an_exchange_clock_that_steps_back_opens_the_breaker",
      "if track.top is not None and top.time_ns < track.top.time_ns:", "if False:")
guard("risk", "breaker: the widest spread", "test_a_widest_spread_in_ticks",
      "if limits.max_spread_ticks and not spread <= limits.max_spread_ticks:", "if False:")
guard("risk", "breaker: many usual spreads", "test_a_usual_spread_of_nothing_is_one_tick",
      "if n >= 20 and not spread <= limits.spread_factor * max(1, track.ordered[n // 2]):", "if False:")
guard("risk", "breaker: a usual spread of nothing", "test_a_usual_spread_of_nothing_is_one_tick",
      "if n >= 20 and not spread <= limits.spread_factor * max(1, track.ordered[n // 2]):",
      "if n >= 20 and not spread <= limits.spread_factor * track.ordered[n // 2]:")
guard("risk", "breaker: a volatility that is none",
      "test_a_volatility_that_is_none_opens_the_breaker_and_one_that_is_not_told_does_not",
      "if top.sigma == top.sigma and not 0 <= top.sigma < math.inf:", "if False:")
guard("risk", "breaker: a jump", "test_a_volatility_that_is_none_opens_the_breaker_and_one_that_is_not_told_does_not",
      'return "" if move <= bound else f"{move:g}', 'return "" if True else f"{move:g}')
guard("risk", "breaker: a jump has a floor in ticks", "test_the_jump_bound_has_a_floor_and_a_scale",
      "bound = max(limits.jump_ticks, ", "bound = max(0, ")
guard("risk", "breaker: a diffusion is no jump", "test_the_jump_bound_has_a_floor_and_a_scale",
      " * math.sqrt(seconds) / track.instrument.tick_size)", " / track.instrument.tick_size)")
guard("risk", "breaker: one that cannot be computed is open", "test_a_time_that_is_none_is_not_learned",
      '        return f"cannot be computed ({type(e).__name__})"\n\n\ndef _open', '        return ""\n\n\ndef _open')
guard("risk", "breaker: cools down", "test_breakers_cool_down",
      "t.until_ns, t.breaker = now_ns + t.limits.cooldown_ns, why", "t.until_ns, t.breaker = now_ns, why")
guard("risk", "breaker: a bad book teaches nothing", "test_a_time_that_is_none_is_not_learned",
      "        if not _fault(top, t.limits):\n", "        if True:\n")
guard("risk", "check: limits for the symbol", "test_every_check_is_needed",
      'has no limits" if a.limits is _OPEN else ""', 'has no limits" if False else ""')
guard("risk", "check: the side", "test_an_order_without_a_side_does_not_pass",
      "if a.order.side != BUY and a.order.side != SELL:", "if False:")
guard("risk", "check: quantity is a number", "test_orders_with_no_numbers_never_pass",
      "if not (0 < qty < _FAR) or qty % 1 or not 0 < a.qty:", "if False:")
guard("risk", "check: price is a number", "test_a_price_between_two_ticks_and_a_part_of_a_lot_do_not_pass",
      'if a.order.kind != "market" and (not (0 < price < _FAR) or price % 1):', "if False:")
guard("risk", "check: expired", "test_every_check_is_needed",
      'ns" if 0 < i.expiry_ns <= a.now_ns else ""', 'ns" if False else ""')
guard("risk", "check: halted", "test_kill_pulls_orders_in_every_state",
      'return f"HALTED, {g.latch.tripped.get(\'*\')}" if "*" in g.latch.tripped and not g.flattening else ""', 'return ""')
guard("risk", "check: a symbol that was switched off", "test_repeated_executions_disable_the_symbol_until_an_operator",
      "return tripped[a.order.symbol] if a.order.symbol in tripped and not a.order.reduce_only else",
      "return tripped[a.order.symbol] if False else")
guard("risk", "check: links", "test_after_a_connection_is_back_there_is_a_pause",
      'sorted(a.guard.down))}" if a.guard.down else ""', 'sorted(a.guard.down))}" if False else ""')
guard("risk", "check: clock", "test_every_check_is_needed",
      'return "" if -bound <= off <= bound else f"offset {off}', 'return "" if True else f"offset {off}')
guard("risk", "check: clock, behind", "test_every_check_is_needed",
      'return "" if -bound <= off <= bound else f"offset {off}', 'return "" if off <= bound else f"offset {off}')
guard("risk", "check: breaker of the symbol", "test_breakers_cool_down",
      "a.order.reduce_only or (a.now_ns >= t.until_ns and a.now_ns >= g.until_ns)", "a.order.reduce_only or a.now_ns >= g.until_ns")
guard("risk", "check: the pause after a link is back", "test_after_a_connection_is_back_there_is_a_pause",
      "a.order.reduce_only or (a.now_ns >= t.until_ns and a.now_ns >= g.until_ns)", "a.order.reduce_only or a.now_ns >= t.until_ns")
guard("risk", "market data: there is some", "test_no_market_no_order",
      '        return "none yet"', '        return ""')
guard("risk", "market data: age", "test_the_age_limit_is_a_closed_interval",
      "    if not 0 <= age <= limits.max_age_ns:", "    if False:")
guard("risk", "market data: an age below zero", "test_stale_crossed_or_missing_market_data",
      "    if not 0 <= age <= limits.max_age_ns:", "    if age > limits.max_age_ns:")
guard("risk", "market data: lag", "test_a_book_that_lags_is_stale_for_orders_and_for_quotes",
      "if not -limits.max_lag_ns <= lag <= limits.max_lag_ns:", "if False:")
guard("risk", "market data: a stamp of the future", "test_a_book_that_lags_is_stale_for_orders_and_for_quotes",
      "if not -limits.max_lag_ns <= lag <= limits.max_lag_ns:", "if lag > limits.max_lag_ns:")
guard("risk", "market data: in sync", "test_stale_crossed_or_missing_market_data",
      'return "" if top.synced else "book not in sync"', 'return ""')
guard("risk", "check: book", "test_every_check_is_needed",
      'return "" if a.top is None else book_fault(a.top, a.limits)', 'return ""')
guard("risk", "check: collar", "test_no_order_outside_the_collar",
      'return "" if abs(a.price - ref) <= bound else f"{a.price:g} is', 'return "" if True else f"{a.price:g} is')
guard("risk", "check: collar, no reference no order", "test_no_reference_no_order",
      'return "" if abs(a.price - ref) <= bound else f"{a.price:g} is', 'return "" if not abs(a.price - ref) > bound else f"{a.price:g} is')
guard("risk", "check: a stale reference gives way", "test_a_reference_price_replaces_the_mid_while_it_is_fresh",
      "ref = t.reference if 0 <= a.now_ns - t.reference_ns <= limits.max_age_ns else t.mid",
      "ref = t.reference if t.reference == t.reference else t.mid")
guard("risk", "check: order quantity", "test_limits_change_in_a_persons_name_and_in_the_log",
      'return "" if a.order.qty_lots <= a.limits.max_order_lots else', 'return "" if True else')
guard("risk", "check: order value", "test_order_value_at_its_boundary",
      'return "" if value <= a.limits.max_order_value * (1 + 1e-12) else', 'return "" if True else')
guard("risk", "check: market orders are priced", "test_market_orders_are_priced_at_the_side_they_take",
      "self.price = _NAN if top is None else float((top.ask_ticks if order.side > 0 else top.bid_ticks) or _NAN)", "self.price = 1.0")
guard("risk", "check: reduce only, in REDUCING", "test_an_execution_that_cannot_be_booked_stops_what_adds",
      "if not (a.order.reduce_only or g.reducing or g.flattening):", "if not (a.order.reduce_only or g.flattening):")
guard("risk", "check: reduce only, when asked", "test_reducing_never_crosses_zero",
      "if not (a.order.reduce_only or g.reducing or g.flattening):", "if not (g.reducing or g.flattening):")
guard("risk", "check: reduce only, while flattening", "test_loss_flattens_in_slices_then_halts_until_an_operator",
      "if not (a.order.reduce_only or g.reducing or g.flattening):", "if not (a.order.reduce_only or g.reducing):")
guard("risk", "check: reduce only counts what is live", "test_reducing_never_crosses_zero",
      "over = a.long if a.order.side > 0 else -a.short  # the", "over = a.position + a.qty if a.order.side > 0 else a.qty - a.position  # the")
guard("risk", "check: position", "test_exactly_the_limit_passes_and_one_lot_more_does_not",
      'return "" if worst <= a.limits.max_position_lots else', 'return "" if True else')
guard("risk", "check: position counts live buys", "test_every_check_is_needed",
      "self.long = self.position + self.buys +", "self.long = self.position +")
guard("risk", "check: position counts live sells", "test_position_counts_every_live_order",
      "self.short = self.position - self.sells -", "self.short = self.position -")
guard("risk", "check: a change counts once", "test_a_change_counts_once_and_by_what_it_adds",
      "            if order.side > 0:\n                self.buys -= same.live_lots\n            else:\n"
      "                self.sells -= same.live_lots\n",
      "")
guard("risk", "check: a changed total includes what is filled", "test_a_change_counts_once_and_by_what_it_adds",
      "            self.qty -= same.filled_lots  # a changed order's quantity is its total\n", "")
guard("risk", "check: gross exposure", "test_every_check_is_needed",
      'return "" if total <= a.guard.account.max_gross * (1 + 1e-12) else', 'return "" if True else')
guard("risk", "check: gross exposure counts the other symbols", "test_every_check_is_needed",
      "total = a.guard.gross_without(a.order.symbol, a.orders) + worst", "total = worst")
guard("risk", "check: gross exposure lets out what adds nothing", "test_gross_exposure_over_symbols_at_its_boundary",
      "    if worst <= was:\n", "    if False:\n")
guard("risk", "check: greeks", "test_every_check_is_needed",
      'return a.guard.greek_denial(a) if a.track.group and not a.order.reduce_only else ""', 'return ""')
guard("risk", "greeks: beyond the limit", "test_every_check_is_needed",
      "if not now <= bound * (1 + 1e-12) and not now <= was:", "if False:")
guard("risk", "greeks: NaN is beyond", "test_greeks_add_over_the_underlying_in_the_worst_case",
      "if not now <= bound * (1 + 1e-12) and not now <= was:", "if now > bound * (1 + 1e-12) and now > was:")
guard("risk", "greeks: the other strikes count", "test_greeks_add_over_the_underlying_in_the_worst_case",
      "if t.worst and t is not a.track:", "if False:")
guard("risk", "greeks: what is not finite is not known", "test_greeks_that_are_none_are_not_known",
      "d, g, v = (x * unit if math.isfinite(x) else _NAN for x in (delta, gamma, vega))", "d, g, v = (x * unit for x in (delta, gamma, vega))")
guard("risk", "check: self trade", "test_every_check_is_needed",
      'if order.kind == "market" or (order.price_ticks - other) * order.side >= 0:', "if False:")
guard("risk", "check: self trade, a change under way", "test_an_order_does_not_meet_where_our_own_is_going",
      "            if pending and (pending - other) * o.side > 0:", "            if False:")
guard("risk", "check: duplicate", "test_every_check_is_needed",
      'return "" if last is None or a.now_ns - last >= a.limits.duplicate_ns else', 'return "" if True else')
guard("risk", "check: message rate", "test_every_check_is_needed",
      'return "" if window.peek(a.now_ns) else', 'return "" if True else')
guard("risk", "check: what passed is counted", "test_every_check_is_needed",
      "        self.sent.count(now_ns)\n", "")
guard("risk", "check: what cannot be checked is denied", "test_orders_with_no_numbers_never_pass",
      '            return self._deny(name, f"cannot be checked ({type(e).__name__})")', '            return ""')
guard("risk", "check: a symbol without instrument", "test_no_market_no_order",
      '                return self._deny("symbol", f"{order.symbol!r} has no instrument")', '                return ""')
guard("risk", "memory for duplicates is bounded", "test_the_memory_for_duplicates_is_bounded",
      "        if len(self.recent) > 4096:", "        if False:")
guard("risk", "close: less what is on its way", "test_an_excess_is_closed_though_a_quote_rests_on_that_side",
      "want = min(lots - way, abs(t.position) - (t.sells if side < 0 else t.buys))",
      "want = min(lots, abs(t.position) - (t.sells if side < 0 else t.buys))")
guard("risk", "close: never across zero", "test_what_rests_is_pulled_when_with_it_the_close_could_cross_zero",
      "want = min(lots - way, abs(t.position) - (t.sells if side < 0 else t.buys))", "want = lots - way")
guard("risk", "close: nothing blind", "test_stale_and_losing_asks_for_nothing_and_says_so",
      "    n = 0 if blind else _slice(t, side, want)", "    n = _slice(t, side, want)")
guard("risk", "close: says that it cannot", "test_nothing_is_flattened_blind",
      '        return g.once(f"close {t.symbol}", Alert("close",', '        return [] and g.once(f"close {t.symbol}", Alert("close",')
guard("risk", "close: no more than one order may have", "test_hedges_are_cut_to_one_order_and_wait_outside_active",
      "return max(0, min(lots, t.limits.max_order_lots, int(", "return max(0, min(lots, int(")
guard("risk", "close: no dearer than one order may be", "test_a_close_is_no_dearer_than_one_order_may_be",
      "int(t.limits.max_order_value / worth) if worth > 0 else lots))", "lots))")
guard("risk", "watch: loss", "test_every_watch_is_needed",
      'if g.known < g.base - g.account.max_loss and "*" not in g.latch.tripped:', "if False:")
guard("risk", "watch: drawdown", "test_every_watch_is_needed",
      'if g.known < g.peak - g.account.max_drawdown and "*" not in g.latch.tripped:', "if False:")
guard("risk", "watch: a missing mark does not end the loss limit", "test_one_missing_mark_does_not_switch_the_loss_limit_off",
      "    if g.pnl != g.pnl:\n        g.known =", "    if False:\n        g.known =")
guard("risk", "watch: halt pulls", "test_loss_flattens_in_slices_then_halts_until_an_operator",
      'out = g.once("halt", Alert("halt", why)) + _pull(g, orders, None, why)', 'out = g.once("halt", Alert("halt", why))')
guard("risk", "watch: flattening closes", "test_every_watch_is_needed",
      "            out += _close(g, orders, t, abs(t.position), why, now_ns) if t.position else []\n        g.flatt",
      "            pass\n        g.flatt")
guard("risk", "watch: flattening ends in a halt", "test_loss_flattens_in_slices_then_halts_until_an_operator",
      "        g.flattening = bool(held)\n", "")
guard("risk", "watch: what is left is told", "test_a_kill_from_another_process_stops_a_flattening",
      'out += g.once(f"left {t.symbol}", Alert(', 'out += [] and g.once(f"left {t.symbol}", Alert(')
guard("risk", "watch: halt is told", "test_every_watch_is_needed",
      '    return out + g.once("halted", Halt(why))', "    return out")
guard("risk", "watch: reducing pulls what could add, buys", "test_while_reducing_what_could_add_is_pulled",
      "if t.buys > max(0, -t.position) or t.sells > max(0, t.position):", "if t.sells > max(0, t.position):")
guard("risk", "watch: reducing pulls what could add, sells", "test_while_reducing_what_could_add_is_pulled",
      "if t.buys > max(0, -t.position) or t.sells > max(0, t.position):", "if t.buys > max(0, -t.position):")
guard("risk", "watch: disabled pulls", "test_repeated_executions_disable_the_symbol_until_an_operator",
      'Alert("disabled", why, symbol)) + _pull(g, orders, symbol, why)', 'Alert("disabled", why, symbol))')
guard("risk", "watch: a latch that did not reach the disk", "test_a_disk_that_failed_is_told_and_tried_again",
      '= g.once("latch", Alert("latch", error)) if error else', "= [] if error else")
guard("risk", "watch: connection pulls", "test_every_watch_is_needed",
      'Alert("connection", why)) + _pull(g, orders, None, why)', 'Alert("connection", why))')
guard("risk", "watch: clock pulls", "test_every_watch_is_needed",
      'Alert("clock", why)) + _pull(g, orders, None, why)', 'Alert("clock", why))')
guard("risk", "watch: breaker pulls", "test_every_watch_is_needed",
      'Alert("breaker", t.breaker, t.symbol)) + _pull(g, orders, t.symbol, t.breaker)', 'Alert("breaker", t.breaker, t.symbol))')
guard("risk", "watch: the pause after a link pulls", "test_in_the_pause_after_a_link_is_back_nothing_rests",
      "        out += _pull(g, orders, None, g.breaker)\n", "        pass\n")
guard("risk", "watch: a breaker closes", "test_a_breaker_is_told_once_however_many_bad_books_come",
      "            g.open.remove(t)\n", "")
guard("risk", "watch: stale data pulls", "test_a_book_that_lags_is_stale_for_orders_and_for_quotes",
      ' + _pull(g, orders, t.symbol, f"stale data: {why}")', "")
guard("risk", "watch: stale data is told", "test_a_position_in_a_market_that_we_do_not_see_is_told_and_again_the_next_time",
      'out += g.once(f"stale {t.symbol}", Alert("stale data", why, t.symbol)) +', "out +=")
guard("risk", "watch: inventory bands", "test_bands_are_told_when_left_and_again_the_next_time",
      "        if away > t.limits.soft_position_lots:\n", "        if False:\n")
guard("risk", "watch: inventory beyond the limit is closed", "test_an_excess_is_closed_though_a_quote_rests_on_that_side",
      "_close(g, orders, t, excess, why, now_ns)", "[]")
guard("risk", "watch: inventory pulls what adds", "test_an_excess_pulls_the_side_that_adds",
      "in_the_way = adds or closes + excess > abs(t.position)", "in_the_way = closes + excess > abs(t.position)")
guard("risk", "watch: inventory pulls what could cross zero", "test_what_rests_is_pulled_when_with_it_the_close_could_cross_zero",
      "in_the_way = adds or closes + excess > abs(t.position)", "in_the_way = adds")
guard("risk", "watch: a position without a mark", "test_one_missing_mark_does_not_switch_the_loss_limit_off",
      'return g.forget("unmarked") if g.pnl == g.pnl else', "return [] if True else")
guard("risk", "watch: ledger", "test_a_ledger_that_holds_what_nobody_else_holds_is_told",
      "        if t.ledger.position != t.position:\n", "        if False:\n")
guard("risk", "watch: ledger of what nobody else holds", "test_a_ledger_that_holds_what_nobody_else_holds_is_told",
      "for t in g.held_or_flat:", "for t in g.held():")
guard("risk", "watch: greeks", "test_every_watch_is_needed",
      "if not abs(x) <= bound and bound != math.inf:", "if False:")
guard("risk", "hedge: beyond the band", "test_hedges_are_cut_to_one_order_and_wait_outside_active",
      "            out.append(Hedge(", "            [].append(Hedge(")
guard("risk", "hedge: only while ACTIVE", "test_hedges_are_cut_to_one_order_and_wait_outside_active",
      " or limits.hedge_band == math.inf or g.state is not TradingState.ACTIVE:", " or limits.hedge_band == math.inf:")
guard("risk", "hedge: not in a market that we do not see", "test_no_hedge_in_a_market_that_we_do_not_see",
      "if blind or not (abs(each) > 0 and abs(net) < math.inf):", "if not (abs(each) > 0 and abs(net) < math.inf):")
guard("risk", "hedge: not without deltas", "test_greeks_that_are_none_are_not_known test_a_hedge_without_delta_is_told",
      "if blind or not (abs(each) > 0 and abs(net) < math.inf):", "if blind:")
guard("risk", "hedge: less what is on its way", "test_hedges_bring_the_delta_back_and_count_what_is_on_its_way",
      " + 1e-9) - way)", " + 1e-9))")
guard("risk", "watch: one that cannot look does not blind the others", "test_a_watch_that_cannot_look_does_not_blind_the_others",
      "            except _FAULTS as e:  # one", "            except ZeroDivisionError as e:  # one")
guard("risk", "watch: one that cannot look stops what adds", "test_a_watch_that_cannot_look_does_not_blind_the_others",
      '                self.reduce(f"the watch {name} cannot be computed", now_ns)\n', "")
guard("risk", "alerts are said once", "test_a_breaker_is_told_once_however_many_bad_books_come",
      "        if key in self.said:\n            return []\n", "")
guard("risk", "alerts are said again the next time",
      "test_a_position_in_a_market_that_we_do_not_see_is_told_and_again_the_next_time",
      "        self.said.difference_update(keys)\n", "")
guard("risk", "soft: the adding side shrinks", "test_soft_limits_stand_back_by_hand",
      "qty = min(int(instruction.qty_lots * (1.0 - part)), max(0, room))", "qty = min(instruction.qty_lots, max(0, room))")
guard("risk", "soft: no more than the room", "test_soft_limits_stand_back_by_hand",
      "qty = min(int(instruction.qty_lots * (1.0 - part)), max(0, room))", "qty = int(instruction.qty_lots * (1.0 - part))")
guard("risk", "soft: the adding side stands back", "test_soft_limits_stand_back_by_hand",
      "price_ticks=instruction.price_ticks - side * math.floor(limits.soft_skew_ticks * part + 0.5)", "price_ticks=instruction.price_ticks")
guard("risk", "soft: the side that reduces is left alone",
      "test_soft_limits_touch_only_the_side_that_adds test_soft_fraction_runs_from_the_soft_to_the_hard_limit",
      "away = side * (position_lots - limits.target_lots)", "away = abs(position_lots - limits.target_lots)")
guard("risk", "shape: nothing while halted", "test_shape_follows_the_trading_state",
      "if state is TradingState.HALTED or instruction.symbol in g.latch.tripped:", "if instruction.symbol in g.latch.tripped:")
guard("risk", "shape: nothing in a symbol that was switched off", "test_shape_shows_nothing_in_a_symbol_that_was_switched_off",
      "if state is TradingState.HALTED or instruction.symbol in g.latch.tripped:", "if state is TradingState.HALTED:")
guard("risk", "shape: only what reduces", "test_shape_follows_the_trading_state",
      "return replace(instruction, qty_lots=min(instruction.qty_lots, max(0, -side * held)))", "return instruction")
guard("risk", "repeated executions", "test_repeated_executions_disable_the_symbol_until_an_operator",
      "if len(times) > limits.max_fills and symbol not in self.latch.tripped:", "if False:")
guard("risk", "repeated executions: the window", "test_executions_outside_the_window_or_on_both_sides_do_not_count",
      "            while times[0] <= now_ns - limits.fills_window_ns:\n                times.popleft()\n", "")
guard("risk", "executions that cannot be booked", "test_an_execution_that_cannot_be_booked_stops_what_adds",
      "            if not _bookable(event):", "            if False:")
guard("risk", "fills change the exposure", "test_a_fill_is_seen_at_once_and_a_lost_event_soon",
      "        self.dirty.add(symbol)\n        if event.kind", "        if event.kind")
guard("risk", "exposures are read again though an event was lost", "test_a_fill_is_seen_at_once_and_a_lost_event_soon",
      "        g.dirty.update(g.tracks)\n", "")
guard("risk", "a link that is down is remembered", "test_after_a_connection_is_back_there_is_a_pause",
      "            self.down.add(link)\n", "            pass\n")
guard("risk", "links are told apart", "test_links_are_told_apart",
      "        elif link in self.down:\n            self.down.discard(link)", "        elif link in self.down:\n            self.down.clear()")
guard("risk", "the pause after a link is back begins", "test_after_a_connection_is_back_there_is_a_pause",
      "self.until_ns, self.breaker = now_ns + self.account.reconnect_ns,", "self.until_ns, self.breaker = 0,")
guard("risk", "kill reaches the latch", "test_the_kill_survives_a_restart_and_an_operator_ends_it",
      '        self.latch.trip("*", f"kill: {reason}", now_ns)\n', "")
guard("risk", "kill does not trade", "test_kill_stops_a_flattening",
      '        self.flattening = False\n        self.latch.trip("*", f"kill', '        self.latch.trip("*", f"kill')
guard("risk", "a limit that breaks reaches the latch", "test_loss_flattens_in_slices_then_halts_until_an_operator",
      '        self.latch.trip("*", reason, now_ns)\n', "")
guard("risk", "a limit that breaks after a kill does not trade", "test_a_limit_that_breaks_after_a_kill_does_not_trade",
      '        if "*" not in self.latch.tripped:\n            self.flattening', "        if True:\n            self.flattening")
guard("risk", "flatten can be chosen", "test_without_flatten_the_halt_is_at_once",
      "            self.flattening = self.account.flatten\n", "            self.flattening = True\n")
guard("risk", "a stop to reduce reaches the latch", "test_a_stop_to_reduce_survives_a_restart",
      "        self.latch.trip(REDUCE, reason, now_ns)\n", "")
guard("risk", "re-arming: a scope that exists", "test_a_scope_that_is_none_is_not_re_armed",
      'if scope not in ("*", REDUCE) and scope not in self.tracks:', "if False:")
guard("risk", "re-arming: losses count from here", "test_loss_flattens_in_slices_then_halts_until_an_operator",
      "        g.flattening, g._rebase = False, True\n", "        g.flattening = False\n")
guard("risk", "re-arming: ends a flattening", "test_a_re_arming_ends_a_flattening_at_once",
      "        g.flattening, g._rebase = False, True\n", "        g._rebase = True\n")
guard("risk", "re-arming: repetitions count from here", "test_a_re_arming_elsewhere_forgets_the_repetitions_too",
      "            t.fills[BUY].clear()\n", "")
guard("risk", "re-arming in another process", "test_an_operator_may_re_arm_from_another_process",
      "    for scope in held - set(g.latch.tripped):", "    for scope in ():")
guard("risk", "a kill in another process is seen", "test_another_process_can_pull_the_switch",
      "    g.latch.refresh()\n    if held", "    if held")
guard("risk", "a kill in another process ends a flattening", "test_a_kill_from_another_process_stops_a_flattening",
      '    if g.flattening and g.latch.tripped.get("*", "kill").startswith("kill"):  # or killed us\n'
      "        g.flattening = False\n",
      "")
guard("risk", "changes of limits: a name", "test_limits_change_in_a_persons_name_and_in_the_log",
      '        raise ParameterError("operator = \'\' must be a person\'s name: limits',
      '        str("operator = \'\' must be a person\'s name: limits')
guard("risk", "changes of limits: the right table", "test_the_accounts_limits_change_in_a_persons_name_too",
      'if isinstance(limits, AccountLimits) != (symbol == "*"):', "if False:")
guard("risk", "changes of limits: the same underlyings", "test_the_accounts_limits_change_in_a_persons_name_too",
      "if set(limits.greeks) != set(guard.account.greeks):", "if False:")
guard("risk", "changes of limits: contradictions of the account", "test_the_accounts_limits_change_in_a_persons_name_too",
      "        _check_guard(guard.limits, limits, guard.instruments)\n", "")
guard("risk", "changes of limits: contradictions of a symbol", "test_limits_change_in_a_persons_name_and_in_the_log",
      "        _check_guard(new, guard.account, guard.instruments)\n", "")
guard("risk", "changes of limits: messages sent before count", "test_the_accounts_limits_change_in_a_persons_name_too",
      "            guard.sent.count(sent_ns)\n", "            pass\n")
guard("risk", "changes of limits: in the log", "test_limits_change_in_a_persons_name_and_in_the_log",
      '    guard.log.append((now_ns, "limits", symbol,', '    [].append((now_ns, "limits", symbol,')
# orders
guard("orders", "no order to a lost venue", "orders_guards::test_no_order_to_a_lost_venue_nor_out_of_the_queue",
      "        if x.venue in self._unsynced:\n", "        if False:\n")
guard("orders", "no order of a symbol that is not known", "orders_guards::test_malformed_orders_are_denied",
      '        if x is None:\n            return f"unknown symbol', '        if False:\n            return f"unknown symbol')
guard("orders", "no order in an expired contract", "orders_guards::test_expired_contracts_are_denied_at_their_hour",
      "        if x.expiry_ns and now_ns >= x.expiry_ns:\n", "        if False:\n")
guard("orders", "no order on a side in doubt", "orders_guards::test_a_side_in_doubt_takes_no_new_order_and_no_larger_one",
      "                if u.symbol == order.symbol and u.side == order.side:\n", "                if False:\n")
guard("orders", "doubt blocks its own side only", "orders_guards::test_a_side_in_doubt_takes_no_new_order_and_no_larger_one",
      "                if u.symbol == order.symbol and u.side == order.side:\n", "                if u.symbol == order.symbol:\n")
guard("orders", "the risk hook is asked", "orders_guards::test_the_risk_hook_is_asked_and_what_it_cannot_say_is_no",
      "        if self.approve is None:\n", "        if True:\n")
guard("orders", "a risk hook that fails is a denial", "orders_guards::test_the_risk_hook_is_asked_and_what_it_cannot_say_is_no",
      '        except Exception as e:\n            return f"risk hook failed',
      '        except Exception as e:\n            return "" and f"risk hook failed')
guard("orders", "a risk hook that says nothing is a denial",
      "orders_guards::test_the_risk_hook_is_asked_and_what_it_cannot_say_is_no",
      'return verdict if isinstance(verdict, str) else f"risk hook said {verdict!r}"', 'return verdict if isinstance(verdict, str) else ""')
guard("orders", "malformed orders are denied", "orders_guards::test_malformed_orders_are_denied",
      "        except (ParameterError, TypeError) as e:\n            why", "        except ZeroDivisionError as e:\n            why")
guard("orders", "what waits is held back from a lost venue", "orders_guards::test_no_order_to_a_lost_venue_nor_out_of_the_queue",
      "return adds and (venue in self._unsynced or ", "return adds and (")
guard("orders", "what waits is held back from a side in doubt",
      "orders_guards::test_a_side_in_doubt_takes_no_new_order_and_no_larger_one",
      "return adds and (venue in self._unsynced or bool(self._unknown and self.unknown(o.symbol, o.side)))",
      "return adds and venue in self._unsynced")
guard("orders", "a larger size is held back too", "orders_guards::test_a_side_in_doubt_takes_no_new_order_and_no_larger_one",
      "adds = o.submit_ns < 0 or o.pending_qty_lots > o.qty_lots", "adds = o.submit_ns < 0")
guard("orders", "requote places nothing at a lost venue",
      "orders_guards::test_requote_places_nothing_at_a_lost_venue_and_nothing_on_a_side_in_doubt",
      "if self._unsynced and self.instruments[symbol].venue in self._unsynced or self._unknown", "if self._unknown")
guard("orders", "requote places nothing on a side in doubt",
      "orders_guards::test_requote_places_nothing_at_a_lost_venue_and_nothing_on_a_side_in_doubt",
      "if self._unsynced and self.instruments[symbol].venue in self._unsynced or self._unknown and self.unknown(symbol,"
      " w.side):",
      "if self._unsynced and self.instruments[symbol].venue in self._unsynced:")
guard("orders", "a change asks the risk hook",
      "orders_guards::test_a_change_asks_the_risk_hook_and_a_denied_one_becomes_cancel_and_new",
      "if keeps or not self._denial(asked, now_ns):", "if True:")
guard("orders", "only less of the same keeps its place",
      "orders_guards::test_without_leave_to_move_only_less_of_the_same_is_a_change",
      "and price_ticks == o.price_ticks and qty_lots < o.qty_lots", "")
guard("orders", "a change needs a venue that takes it",
      "orders_guards::test_without_leave_to_move_only_less_of_the_same_is_a_change",
      "if caps.native_modify and (keeps or policy.modify_moves):", "if keeps or policy.modify_moves or True:")
guard("orders", "only an order at rest is changed", "orders_guards::test_only_an_order_at_rest_is_changed",
      "if o is None or o.state not in (State.WORKING, State.PARTIAL):", "if o is None:")
guard("orders", "a total that is filled already is a cancel", "orders_guards::test_a_total_that_is_filled_already_is_a_cancel",
      "        if qty_lots <= o.filled_lots:\n", "        if False:\n")
guard("orders", "the successor is smaller by what was executed",
      "orders_guards::test_the_successor_is_smaller_by_what_was_executed_or_said_to_be",
      "left = total - max(o.filled_lots, o.told_lots)", "left = total")
guard("orders", "the successor is smaller by what was said to be executed",
      "orders_guards::test_the_successor_is_smaller_by_what_was_executed_or_said_to_be",
      "left = total - max(o.filled_lots, o.told_lots)", "left = total - o.filled_lots")
guard("orders", "the throttle is asked", "orders_guards::test_a_full_venue_does_not_hold_up_another",
      "return gate.allow(now_ns, cancel=cancel, in_flight=flying)", "return True")
guard("orders", "the reserve is the cancels'", "orders_guards::test_a_full_window_holds_orders_and_the_reserve_lets_cancels_go",
      "return gate.allow(now_ns, cancel=cancel, in_flight=flying)", "return gate.allow(now_ns, cancel=True, in_flight=flying)")
guard("orders", "cancels use the reserve", "orders_guards::test_a_total_that_is_filled_already_is_a_cancel",
      "self._send(self._cancels, out, now_ns, cancel=True)", "self._send(self._cancels, out, now_ns)")
guard("orders", "requests without an answer are counted", "orders_guards::test_requests_without_an_answer_are_capped",
      "return gate.allow(now_ns, cancel=cancel, in_flight=flying)", "return gate.allow(now_ns, cancel=cancel)")
guard("orders", "cancels leave first", "orders_guards::test_cancels_leave_before_orders",
      "        if self._cancels:\n            self._send(self._cancels, out, now_ns, cancel=True)\n"
      "        if self._unknown:\n            self._query(out, now_ns)\n        if self._changes:\n"
      "            self._send(self._changes, out, now_ns)\n        if self._news:\n"
      "            self._send(self._news, out, now_ns)\n",
      "        if self._news:\n            self._send(self._news, out, now_ns)\n        if self._unknown:\n"
      "            self._query(out, now_ns)\n        if self._changes:\n"
      "            self._send(self._changes, out, now_ns)\n        if self._cancels:\n"
      "            self._send(self._cancels, out, now_ns, cancel=True)\n")
guard("orders", "a full venue does not hold up another", "orders_guards::test_a_full_venue_does_not_hold_up_another",
      "                shut.add(venue)\n                continue\n", "                return\n")
guard("orders", "queries are throttled", "orders_guards::test_queries_are_throttled_too_and_come_less_often",
      "            elif not self._allowed(o, now_ns, False):\n                continue\n", "")
guard("orders", "queries come less often", "orders_guards::test_queries_are_throttled_too_and_come_less_often",
      "p.query_first_ns << min(o.queries, 30)", "p.query_first_ns")
guard("orders", "queries have a longest pause", "orders_guards::test_queries_are_throttled_too_and_come_less_often",
      "now_ns + min(p.query_max_ns, p.query_first_ns << min(o.queries, 30))", "now_ns + (p.query_first_ns << min(o.queries, 30))")
guard("orders", "where nothing can be asked a snapshot is wanted",
      "orders_guards::test_where_nothing_can_be_asked_a_snapshot_is_wanted",
      "                self.wants_snapshot = True\n            elif not self._allowed",
      "                pass\n            elif not self._allowed")
guard("orders", "where nothing can be asked the list counts", "orders_guards::test_where_nothing_can_be_asked_a_snapshot_is_wanted",
      "if not self.capabilities[at].query:  # the list is all there is", "if False:")
guard("orders", "UNKNOWN counts as live", "orders_guards::test_silence_is_doubt",
      "        if self.state is State.NEW:\n            return 0\n",
      "        if self.state in (State.NEW, State.UNKNOWN):\n            return 0\n")
guard("orders", "PENDING_CANCEL counts as live", "orders_guards::test_every_state_that_may_execute_counts",
      "        if self.state is State.NEW:\n            return 0\n",
      "        if self.state in (State.NEW, State.PENDING_CANCEL):\n            return 0\n")
guard("orders", "PENDING_NEW counts as live", "orders_guards::test_every_state_that_may_execute_counts",
      "        if self.state is State.NEW:\n            return 0\n",
      "        if self.state in (State.NEW, State.PENDING_NEW):\n            return 0\n")
guard("orders", "a change under way counts with the larger size",
      "orders_guards::test_a_change_under_way_counts_with_the_larger_size",
      "left = (self.qty_lots if self.qty_lots > self.pending_qty_lots else self.pending_qty_lots) - self.filled_lots",
      "left = (self.pending_qty_lots or self.qty_lots) - self.filled_lots")
guard("orders", "a change under way counts with its own size when larger",
      "orders_guards::test_a_change_under_way_counts_with_the_larger_size",
      "left = (self.qty_lots if self.qty_lots > self.pending_qty_lots else self.pending_qty_lots) - self.filled_lots",
      "left = self.qty_lots - self.filled_lots")
guard("orders", "executions said and not booked count", "orders_guards::test_what_was_said_never_falls",
      "            return untold if untold > 0 else 0\n", "            return 0\n")
guard("orders", "a closed order with missing executions stays in the index", "orders_guards::test_what_was_said_never_falls",
      "        if not o.done or o.told_lots > o.filled_lots:\n            table[k] = o", "        if not o.done:\n            table[k] = o")
guard("orders", "missing executions want a snapshot", "orders_guards::test_what_was_said_to_be_executed_counts_until_it_is_booked",
      "        if self._short_of and min(self._short_of.values()) <= now_ns - self.patience.timeout_ns:\n"
      "            self.wants_snapshot = True\n",
      "")
guard("orders", "what was said never falls", "orders_guards::test_what_was_said_never_falls",
      "        if r.cum_lots > o.told_lots:\n", "        if r.cum_lots >= 0:\n")
guard("orders", "a change that never left is forgotten", "orders_guards::test_a_change_that_never_left_is_forgotten",
      "        self._forget_change(o)\n\n    def _forget", "\n    def _forget")
guard("orders", "illegal moves are not made", "orders_guards::test_illegal_moves_are_told_and_not_made",
      "        if (before, to) not in LEGAL:\n", "        if False:\n")
guard("orders", "what never left is taken back",
      "orders_guards::test_what_has_not_left_is_taken_back_and_what_is_not_wanted_is_cancelled",
      "        if client_id in self._news:  # it never left\n", "        if False:\n")
guard("orders", "one cancel at a time into the fog", "orders_guards::test_one_cancel_at_a_time_into_the_fog",
      "        if o.state is State.UNKNOWN and o.client_id in self._inflight:\n            return  # one",
      "        if False:\n            return  # one")
guard("orders", "a cancel is owed until the order is gone", "orders_guards::test_a_cancel_is_owed_until_the_order_is_gone",
      '        if o.want_cancel:\n            self._owe_cancel(o, "the cancel is still owed")\n', "")
guard("orders", "an execution is booked once", "orders_guards::test_an_execution_is_booked_once_by_its_id_and_symbol",
      "        if (symbol, exec_id) in self._seen:\n", "        if False:\n")
guard("orders", "execution ids are by symbol", "orders_guards::test_an_execution_is_booked_once_by_its_id_and_symbol",
      "        self._seen.add((symbol, exec_id))\n", "        self._seen |= {(s, exec_id) for s in self.instruments}\n")
guard("orders", "an execution without an id is known by its count",
      "orders_guards::test_an_execution_without_an_id_is_known_by_its_count_or_not_booked",
      'exec_id = r.exec_id or (f"cum-{r.client_id}-{r.cum_lots}" if r.cum_lots > 0 else "")',
      'exec_id = r.exec_id or f"cum-{r.client_id}-{r.cum_lots}-{len(self.fills)}"')
guard("orders", "an execution without id and count is not booked",
      "orders_guards::test_an_execution_without_an_id_is_known_by_its_count_or_not_booked",
      'else "" if exec_id else "no id: it could be booked twice")', 'else "")')
guard("orders", "an execution without lots is not booked", "orders_guards::test_executions_that_cannot_be_are_told_and_not_booked",
      'else f"{r.qty_lots} lots" if r.qty_lots <= 0 else', "else")
guard("orders", "an execution without a side is not booked", "orders_guards::test_executions_that_cannot_be_are_told_and_not_booked",
      'else "no side" if side not in (1, -1)', 'else "" if side not in (1, -1)')
guard("orders", "an execution that cannot be booked wants a snapshot",
      "orders_guards::test_executions_that_cannot_be_are_told_and_not_booked",
      '            self.wants_snapshot = True\n            return self._anomaly(f"execution with {bad}", o, r)',
      '            return self._anomaly(f"execution with {bad}", o, r)')
guard("orders", "an execution of an order that nobody knows is booked",
      "orders_guards::test_an_execution_of_an_order_that_nobody_knows_is_booked_and_told",
      '        self._record(None, r, side, fee, exec_id, "external")\n', "")
guard("orders", "an execution of an order that nobody knows is told",
      "orders_guards::test_an_execution_of_an_order_that_nobody_knows_is_booked_and_told",
      '        self._anomaly("execution of an order that is not known", o, r)\n', "")
guard("orders", "a fee that is no number", "orders_guards::test_a_fee_that_is_no_number_is_told_and_the_position_is_booked",
      "        if not math.isfinite(fee):\n", "        if False:\n")
guard("orders", "an overfill is told", "orders_guards::test_an_overfill_is_booked_and_told",
      "over = o.filled_lots > max(o.qty_lots, o.pending_qty_lots)", "over = False")
guard("orders", "an overfill wants a snapshot", "orders_guards::test_an_overfill_is_booked_and_told",
      '            self.wants_snapshot = True\n            self._anomaly(f"{o.filled_lots} lots executed',
      '            self._anomaly(f"{o.filled_lots} lots executed')
guard("orders", "a late fill is booked", "orders_guards::test_a_late_fill_is_booked_and_flagged",
      "        if o is not None:\n            return self._fill_order",
      "        if o is not None:\n            return None if o.done else self._fill_order")
guard("orders", "a late fill is flagged", "orders_guards::test_a_late_fill_is_booked_and_flagged",
      '"late" if o.done else', '"" if o.done else')
guard("orders", "a fill before the answer is an answer", "orders_guards::test_a_fill_before_the_answer_is_an_answer",
      "        elif state is State.PENDING_NEW or (state is State.UNKNOWN and first):\n", "        elif state is State.UNKNOWN and first:\n")
guard("orders", "the other side is told", "orders_guards::test_an_execution_of_the_other_side_is_told",
      "        if r.side and r.side != o.side:\n", "        if False:\n")
guard("orders", "what was given up and executes is adopted", "orders_guards::test_what_was_given_up_and_lives_is_adopted",
      "        elif state is State.REJECTED or (o.done and o.inferred):\n", "        elif False:\n")
guard("orders", "the true execution replaces the synthetic one",
      "orders_guards::test_counted_and_never_reported_is_booked_after_a_while_and_gives_way_to_the_truth",
      "        if o.synthetic:\n", "        if False:\n")
guard("orders", "silence is doubt", "orders_guards::test_silence_is_doubt",
      "            self._time_out(now_ns - self.patience.timeout_ns)\n", "            pass\n")
guard("orders", "no rejection without proof", "orders_guards::test_rejected_only_on_proof",
      '        if not r.definitive:\n            return self._doubt(o, f"rejected',
      '        if False:\n            return self._doubt(o, f"rejected')
guard("orders", "no rejection after executions", "orders_guards::test_a_rejection_after_executions_is_no_proof",
      "        if o.filled_lots or o.told_lots or o.state in (State.PENDING_REPLACE, State.PARTIAL):\n", "        if False:\n")
guard("orders", "a refused cancel proves nothing", "orders_guards::test_a_refused_cancel_proves_nothing",
      "if not (r.definitive and o.acked and o.state is State.PENDING_CANCEL) or o.pending_qty_lots:", "if o.pending_qty_lots:")
guard("orders", "a refused change proves nothing", "orders_guards::test_a_refused_change_proves_something_only_with_proof",
      '        if not r.definitive:\n            return self._doubt(o, f"change refused',
      '        if False:\n            return self._doubt(o, f"change refused')
guard("orders", "what ends completely executed is filled", "orders_guards::test_what_ends_completely_executed_is_filled",
      "full = max(o.filled_lots, o.told_lots) >= max(o.qty_lots, o.pending_qty_lots)", "full = False")
guard("orders", "accepted as something else", "orders_guards::test_accepted_as_something_else_is_taken_over_and_told",
      "        if r.price_ticks not in (0, o.price_ticks) or r.qty_lots not in (0, o.qty_lots):\n", "        if False:\n")
guard("orders", "accepted twice", "orders_guards::test_a_fill_before_the_answer_is_an_answer",
      "        if o.acked:\n            return self._duplicate(o, r)\n        o.acked = True\n", "        o.acked = True\n")
guard("orders", "changed without being asked", "orders_guards::test_changed_without_being_asked_is_taken_over_and_told",
      '            return self._anomaly(f"changed to {told[1]} lots', '            return\n            self._anomaly(f"changed to {told[1]} lots')
guard("orders", "not found: time", "orders_guards::test_not_found_needs_time_and_repetition",
      "if age >= self.patience.query_grace_ns and o.not_found", "if o.not_found")
guard("orders", "not found: repetition", "orders_guards::test_not_found_needs_time_and_repetition",
      "if age >= self.patience.query_grace_ns and o.not_found >= self.patience.not_found_needed:", "if age >= self.patience.query_grace_ns:")
guard("orders", "not found: remembered as a guess", "orders_guards::test_where_nothing_can_be_asked_a_snapshot_is_wanted",
      'o.not_found} times in {age / 1e9:g} s")\n            o.inferred = True\n', 'o.not_found} times in {age / 1e9:g} s")\n')
guard("orders", "accepted after it was given up", "orders_guards::test_what_was_given_up_and_lives_is_adopted",
      '        if o.done and o.inferred:\n            self._move(o, State.UNKNOWN, "accepted after',
      '        if False:\n            self._move(o, State.UNKNOWN, "accepted after')
guard("orders", "found alive after its end", "orders_guards::test_a_terminal_order_that_is_found_alive_is_in_doubt_again",
      '            self._move(o, State.UNKNOWN, "found alive")\n', "            pass\n")
guard("orders", "an older word does not revive", "orders_guards::test_a_terminal_order_that_is_found_alive_is_in_doubt_again",
      "(r.time_ns <= o.venue_ns and not o.inferred)", "False")
guard("orders", "words about orders that never left", "orders_guards::test_words_about_orders_that_never_left_or_that_nobody_knows",
      "        elif o.submit_ns < 0 and not o.external:\n", "        elif False:\n")
guard("orders", "words about orders that nobody knows",
      "orders_guards::test_words_about_orders_that_never_left_or_that_nobody_knows",
      "            self.wants_snapshot = True\n"
      '            self._anomaly(f"{kind} of an order that is not known", None, r)',
      "            pass")
guard("orders", "nothing that a venue says raises", "orders_guards::test_nothing_that_a_venue_says_raises",
      "        except (TypeError, ValueError, AttributeError, KeyError) as e:\n            self.wants_snapshot",
      "        except ZeroDivisionError as e:\n            self.wants_snapshot")
guard("orders", "the fill branch takes fills only", "orders_guards::test_the_fill_branch_takes_fills_only",
      '        if report.kind != "fill":\n', "        if False:\n")
guard("orders", "events that nobody takes do not grow", "orders_guards::test_events_that_nobody_takes_do_not_grow_without_end",
      "        if len(self._fresh) > 20_000:  # nobody takes them\n", "        if False:\n")
guard("orders", "disconnect: quoting stops", "orders_guards::test_no_order_to_a_lost_venue_nor_out_of_the_queue",
      "            self._unsynced |= {r.venue_id} if r.venue_id else {x.venue for x in self.instruments.values()}\n", "            pass\n")
guard("orders", "disconnect: without a name it is every venue",
      "orders_guards::test_a_connection_without_a_name_is_every_venue_and_back_is_not_synced",
      "{r.venue_id} if r.venue_id else {x.venue for x in self.instruments.values()}", "{r.venue_id}")
guard("orders", "disconnect: back is not yet synced",
      "orders_guards::test_a_connection_without_a_name_is_every_venue_and_back_is_not_synced",
      '        else:\n            self.wants_snapshot = True\n        self._emit(OrderEvent("connection"',
      '        else:\n            self._unsynced.clear()\n        self._emit(OrderEvent("connection"')
guard("orders", "reconcile: one venue's account does not prove another's",
      "orders_guards::test_no_order_to_a_lost_venue_nor_out_of_the_queue",
      "self._unsynced = self._unsynced - {venue} if venue is not None else set()", "self._unsynced = set()")
guard("orders", "reconcile: missed executions are booked",
      "orders_guards::test_executions_that_we_missed_are_booked_and_those_before_the_start_are_not",
      '                self._fill(Report("fill", x.client_id, x.symbol,', '                str(Report("fill", x.client_id, x.symbol,')
guard("orders", "reconcile: history is not booked",
      "orders_guards::test_executions_that_we_missed_are_booked_and_those_before_the_start_are_not",
      "            if x.symbol in self.instruments and self.instruments[x.symbol].venue in opening:\n", "            if False:\n")
guard("orders", "reconcile: the opening's cash",
      "orders_guards::test_executions_that_we_missed_are_booked_and_those_before_the_start_are_not",
      "        if opening and not math.isnan(cash):\n", "        if False:\n")
guard("orders", "reconcile: orders of others are taken in", "orders_guards::test_an_external_order_that_is_no_longer_listed_is_over",
      "            self._adopt_external(k, w)\n", "            pass\n")
guard("orders", "reconcile: not listed is doubt",
      "orders_guards::test_not_listed_is_doubt_and_not_an_end_and_a_young_order_is_not_judged",
      '                self._doubt(o, "not listed by the venue")\n',
      '                self._move(o, State.CANCELLED, "not listed by the venue")\n')
guard("orders", "reconcile: a young order is not judged", "orders_guards::test_another_price_or_size_there_is_taken_over_and_told",
      "        return self.now_ns - o.last_ns >= self.patience.protect_ns\n", "        return True\n")
guard("orders", "reconcile: another venue's orders are not judged",
      "orders_guards::test_not_listed_is_doubt_and_not_an_end_and_a_young_order_is_not_judged",
      " or (venue is not None and at != venue):\n", ":\n")
guard("orders", "reconcile: another size there", "orders_guards::test_another_price_or_size_there_is_taken_over_and_told",
      "            self._adopt(o, told)\n        self._tidy(o)", "        self._tidy(o)")
guard("orders", "reconcile: an order in doubt that is listed is alive",
      "orders_guards::test_an_order_in_doubt_that_is_listed_is_alive",
      "        if o.done or o.state in (State.UNKNOWN, State.PENDING_NEW):\n            self._on_alive(o, told)\n"
      "        elif",
      "        if False:\n            pass\n        elif")
guard("orders", "reconcile: an external order that is gone is over",
      "orders_guards::test_an_external_order_that_is_no_longer_listed_is_over",
      '                self._move(o, State.CANCELLED, "EXTERNAL: no longer listed")\n', "                pass\n")
guard("orders", "reconcile: counted and never reported is booked",
      "orders_guards::test_counted_and_never_reported_is_booked_after_a_while_and_gives_way_to_the_truth",
      "        self._synthesise(out)\n", "")
guard("orders", "reconcile: a report may still come",
      "orders_guards::test_counted_and_never_reported_is_booked_after_a_while_and_gives_way_to_the_truth",
      "            if self.now_ns - self._short_of[k] >= self.patience.protect_ns:\n", "            if True:\n")
guard("orders", "reconcile: an opening is the first look", "orders_guards::test_a_gap_in_the_position_needs_two_looks_and_is_told",
      "        return set() if mine & used else mine\n", "        return mine\n")
guard("orders", "reconcile: a gap needs two looks", "orders_guards::test_a_gap_in_the_position_needs_two_looks_and_is_told",
      "                if first or before.get(symbol) == gap:\n", "                if True:\n")
guard("orders", "reconcile: a gap is taken over in the end", "orders_guards::test_a_gap_in_the_position_needs_two_looks_and_is_told",
      "                if first or before.get(symbol) == gap:\n", "                if first:\n")
guard("orders", "reconcile: a correction is told", "orders_guards::test_a_gap_in_the_position_needs_two_looks_and_is_told",
      "                    if not first:\n                        self._anomaly",
      "                    if False:\n                        self._anomaly")
guard("orders", "reconcile: fills after the snapshot are no gap", "orders_guards::test_fills_after_the_snapshot_are_no_gap",
      "            if f.venue_ns > snapshot.time_ns:\n", "            if False:\n")
guard("orders", "reconcile: positions in symbols that nobody knows", "orders_guards::test_symbols_that_nobody_knows_are_told",
      "            if symbol not in self.instruments:\n                self._anomaly", "            if False:\n                self._anomaly")
guard("orders", "reconcile: orders in symbols that nobody knows", "orders_guards::test_symbols_that_nobody_knows_are_told",
      "            if w.symbol in self.instruments:\n", "            if True:\n")
guard("orders", "reconcile: wants another look while something differs",
      "orders_guards::test_a_gap_in_the_position_needs_two_looks_and_is_told",
      "        self.wants_snapshot = bool(self._gaps or self._short_of)\n", "        self.wants_snapshot = False\n")
guard("orders", "requote: tolerance of price", "orders_guards::test_tolerance_and_youth_keep_a_quote_and_age_renews_it",
      "        if gap_ticks and gap_ticks >= self.tolerance_ticks:\n", "        if gap_ticks:\n")
guard("orders", "requote: tolerance of size", "orders_guards::test_tolerance_and_youth_keep_a_quote_and_age_renews_it",
      "if short < 0 or (short and short >= self.tolerance_size * want_lots):", "if short:")
guard("orders", "requote: a quote too large is moved", "orders_guards::test_tolerance_and_youth_keep_a_quote_and_age_renews_it",
      "if short < 0 or (short and short >= self.tolerance_size * want_lots):", "if short and short >= self.tolerance_size * want_lots:")
guard("orders", "requote: what is executed no longer stands",
      "orders_guards::test_a_partly_executed_quote_stays_while_it_has_its_share",
      "left_lots=o.qty_lots - o.filled_lots, want_lots=want,", "left_lots=o.qty_lots, want_lots=want,")
guard("orders", "requote: what is executed no longer stands, at the quick look",
      "orders_guards::test_a_partly_executed_quote_stays_while_it_has_its_share",
      "left_lots=o.qty_lots - o.filled_lots, want_lots=lots,", "left_lots=o.qty_lots, want_lots=lots,")
guard("orders", "requote: youth", "orders_guards::test_tolerance_and_youth_keep_a_quote_and_age_renews_it",
      " or age < p.min_life_ns:\n", ":\n")
guard("orders", "requote: age", "orders_guards::test_tolerance_and_youth_keep_a_quote_and_age_renews_it",
      'return "lifetime" if 0 < self.max_life_ns <= age_ns else ""', 'return ""')
guard("orders", "requote: what has not left is taken back",
      "orders_guards::test_what_has_not_left_is_taken_back_and_what_is_not_wanted_is_cancelled",
      'if state is State.PENDING_NEW and o.client_id in self._news and why in ("price", "size"):', "if False:")
guard("orders", "requote: what is not wanted is cancelled",
      "orders_guards::test_what_has_not_left_is_taken_back_and_what_is_not_wanted_is_cancelled",
      'self.cancel_quote(o.client_id, now_ns=self.now_ns, reason="not wanted")', 'str("not wanted")')
guard("orders", "requote: malformed quotes", "orders_guards::test_malformed_quotes_are_told_and_not_placed",
      "if type(w.price_ticks) is int and type(w.qty_lots) is int and w.qty_lots > 0 and w.side in (1, -1)]", "if w.side in (1, -1)]")
guard("orders", "requote: others' orders are left alone",
      "orders_guards::test_a_strangers_order_is_no_quote_of_ours",
      "if o.side == side and not o.done and not o.external and o.kind in", "if o.side == side and not o.done and o.kind in")
guard("orders", "requote: at the quick look others' orders stand for nothing", "orders_guards::test_a_strangers_order_is_no_quote_of_ours",
      "if not (o.done or o.external)]", "if not o.done]")
guard("orders", "requote: orders that take are left alone",
      "orders_guards::test_requote_leaves_orders_that_take_alone",
      ' and o.kind in ("post-only", "limit")\n', "\n")
guard("orders", "requote: hanging ends far away",
      "orders_guards::test_a_hanging_order_hangs_while_it_is_near_and_something_is_wanted",
      "o.hanging = bool(want) and min(abs(o.price_ticks - w.price_ticks) for w in want) <= self.policies[o.symbol].hanging_ticks",
      "o.hanging = bool(want)")
guard("orders", "requote: hanging begins with an execution", "orders_guards::test_only_the_other_half_of_an_executed_pair_hangs",
      "not (o.hanging and self._hangs(o, want))", "not self._hangs(o, want)")
guard("orders", "requote: hanging is the pair's other half", "orders_guards::test_only_the_other_half_of_an_executed_pair_hangs",
      "if other.group == o.group and other.side != o.side", "if other.side != o.side")
guard("orders", "requote: hanging is asked for", "orders_guards::test_only_the_other_half_of_an_executed_pair_hangs",
      "        if o.group and self.policies[o.symbol].hanging_ticks:\n", "        if o.group:\n")
guard("orders", "requote: at the quick look a hanging order stands for nothing",
      "orders_guards::test_a_hanging_order_does_not_stand_for_a_wanted_one",
      "o.state in resting and not o.hanging and", "o.state in resting and")
guard("orders", "requote: at the quick look only what rests stands",
      "orders_guards::test_what_does_not_rest_and_what_rests_on_the_other_side_does_not_stand",
      "o.state in resting and not o.hanging and", "not o.hanging and")
guard("orders", "requote: at the quick look a side is a side",
      "orders_guards::test_what_does_not_rest_and_what_rests_on_the_other_side_does_not_stand",
      "if (o.side == side and o.state in resting", "if (o.state in resting")
guard("orders", "requote: at the quick look none is left over",
      "orders_guards::test_what_has_not_left_is_taken_back_and_what_is_not_wanted_is_cancelled",
      "        if len(have) != len(wanted):\n", "        if False:\n")
guard("orders", "requote: without tolerance what stands right stays", "orders_guards::test_without_tolerance_what_stands_right_stays",
      "        if gap_ticks and gap_ticks >= self.tolerance_ticks:\n", "        if gap_ticks >= self.tolerance_ticks:\n")
guard("orders", "memory: missing executions are not forgotten",
      "orders_guards::test_closed_orders_are_forgotten_but_not_what_is_missing",
      "            if old is not None and (old.live_lots or not old.done):\n", "            if False:\n")
guard("orders", "memory: closed orders are forgotten", "orders_guards::test_closed_orders_are_forgotten_but_not_what_is_missing",
      "        while len(self._closed) > self.keep_closed:\n", "        while False:\n")
guard("orders", "settings: words of the client id", "orders_guards::test_words_of_the_client_id",
      '            if not re.fullmatch(rf"[A-Za-z0-9]{{1,{most}}}", word):\n', "            if False:\n")
guard("orders", "settings: tolerances", "orders_guards::test_settings_that_mean_nothing_are_refused",
      "            if not 0 <= getattr(self, name) < math.inf:\n", "            if False:\n")
guard("orders", "settings: no tolerance without end", "orders_guards::test_settings_that_mean_nothing_are_refused",
      "            if not 0 <= getattr(self, name) < math.inf:\n", "            if not 0 <= getattr(self, name):\n")
guard("orders", "settings: a life shorter than youth", "orders_guards::test_settings_that_mean_nothing_are_refused",
      "        if self.max_life_ns and self.max_life_ns <= self.min_life_ns:\n", "        if False:\n")
guard("orders", "settings: waiting times", "orders_guards::test_settings_that_mean_nothing_are_refused",
      "            if not getattr(self, name) > 0:\n", "            if False:\n")
guard("orders", "settings: grace", "orders_guards::test_settings_that_mean_nothing_are_refused",
      "        if not (self.query_grace_ns >= 0 and self.protect_ns >= 0):\n", "        if False:\n")
# throttle
guard("throttle", "at most the limit in every window", "test_reserve_can_fail",
      "if len(q) == self.limit and q[0] > edge:", "if False:")
guard("throttle", "half-open windows", "test_next_is_the_first",
      "if len(q) == self.limit and q[0] > edge:", "if len(q) == self.limit and q[0] > edge + 1:")
guard("throttle", "the reserve is the cancels'", "test_cancels_never_starve",
      "return cancel or len(q) < self.limit - self.reserve or q[0] <= edge", "return True")
guard("throttle", "cancels use the reserve", "test_cancels_never_starve",
      "return cancel or len(q) < self.limit - self.reserve or q[0] <= edge", "return len(q) < self.limit - self.reserve or q[0] <= edge")
guard("throttle", "time that runs backwards stands still", "orders_guards::test_a_clock_that_steps_back_stands_still",
      "edge = (now_ns if now_ns > self._last else self._last) - self.window_ns", "edge = now_ns - self.window_ns")
guard("throttle", "what passes is counted", "test_the_guard_can_fail",
      "        self.count(now_ns, cancel=cancel)\n        return True\n\n", "        return True\n\n")
guard("throttle", "venue's window: the limit", "test_venue_window",
      "return self._n < self.limit and (cancel or self._plain < self.limit - self.reserve)",
      "return cancel or self._plain < self.limit - self.reserve")
guard("throttle", "venue's window: the reserve", "test_venue_window",
      "return self._n < self.limit and (cancel or self._plain < self.limit - self.reserve)", "return self._n < self.limit")
guard("throttle", "venue's window: an older one does not open again", "test_clock_jumps",
      "        if slot > self._slot:\n", "        if slot != self._slot:\n")
guard("throttle", "venue's window: its count corrects ours", "orders_guards::test_the_venues_count_corrects_ours_upwards_only",
      "        if used > self._n:\n            self._plain += used - self._n\n            self._n = used\n", "        pass\n")
guard("throttle", "venue's window: its count never lowers ours", "orders_guards::test_the_venues_count_corrects_ours_upwards_only",
      "        if used > self._n:\n", "        if True:\n")
guard("throttle", "requests without an answer are capped", "test_in_flight_cap",
      "if not cancel and self.in_flight_cap and in_flight >= self.in_flight_cap:", "if False:")
guard("throttle", "cancels pass the cap", "test_in_flight_cap",
      "if not cancel and self.in_flight_cap and in_flight >= self.in_flight_cap:", "if self.in_flight_cap and in_flight >= self.in_flight_cap:")
guard("throttle", "every window must agree", "orders_guards::test_every_window_must_agree_and_each_counts_what_passed",
      "return all(w.peek(now_ns, cancel=cancel) for w in self.windows)",
      "return any(w.peek(now_ns, cancel=cancel) for w in self.windows) or not self.windows")
guard("throttle", "a message that passes counts in every window",
      "orders_guards::test_every_window_must_agree_and_each_counts_what_passed",
      "        for w in self.windows:\n            w.count(now_ns, cancel=cancel)\n",
      "        for w in self.windows[:1]:\n            w.count(now_ns, cancel=cancel)\n")
guard("throttle", "settings: numbers", "test_refused",
      "            if not value >= 1:\n", "            if False:\n")
guard("throttle", "settings: a reserve of everything", "test_refused",
      "        if not 0 <= reserve < limit:\n", "        if False:\n")
guard("throttle", "settings: the cap", "test_refused",
      "        if not in_flight_cap >= 0:\n", "        if False:\n")
# quote_engine
guard("quote_engine", "no quote with an inventory that is none",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "    if not math.isfinite(inventory_lots):\n", "    if False:\n")
guard("quote_engine", "no quote on a negative size", "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "    if bid_lots < 0.0 or ask_lots < 0.0:\n", "    if False:\n")
guard("quote_engine", "no quote in a crossed or locked book",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "    if bid >= ask:\n", "    if False:\n")
guard("quote_engine", "no quote without a market", "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "    if bid != bid and ask != ask:\n", "    if False:\n")
guard("quote_engine", "no price from the book without both sides",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      'return "one-sided book" if needs_both and not bid < ask else ""', 'return ""')
guard("quote_engine", "no quote without a theoretical price",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "        if theo != theo:\n", "        if False:\n")
guard("quote_engine", "no quote far from the market", "quote_guards::test_at_the_gap_is_near_enough",
      "if not abs(theo - ref) <= self.config.max_theo_gap_ticks or theo <= 0.0:", "if theo <= 0.0:")
guard("quote_engine", "no quote at a price of nothing", "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "if not abs(theo - ref) <= self.config.max_theo_gap_ticks or theo <= 0.0:", "if not abs(theo - ref) <= self.config.max_theo_gap_ticks:")
guard("quote_engine", "no quote without the volatility it uses", "test_quotes_are_legal_on_the_grid_and_within_room",
      "        if self._uses_sigma and not 0.0 <= sigma < math.inf:\n", "        if False:\n")
guard("quote_engine", "no quote without the imbalance it uses",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "        if self._uses_imbalance and not 0.0 <= imbalance <= 1.0:\n", "        if False:\n")
guard("quote_engine", "no quote without the greeks it uses",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      'return "greeks missing" if self._uses_greeks and (greeks is None or not math.isfinite(greeks.delta + greeks.vega'
      ')) else ""',
      'return ""')
guard("quote_engine", "no quote without the depth it uses",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "if lots == 0 or wide_bid != wide_bid or wide_ask != wide_ask:", "if lots == 0:")
guard("quote_engine", "no level at a price of nothing", "quote_guards::test_no_level_at_a_price_of_nothing",
      "            if qty < least or price <= 0:\n", "            if qty < least:\n")
guard("quote_engine", "no level below the least size",
      "quote_guards::test_levels_share_the_room_in_whole_increments_and_end_at_the_least_size",
      "            if qty < least or price <= 0:\n", "            if price <= 0:\n")
guard("quote_engine", "levels share the room",
      "quote_guards::test_levels_share_the_room_in_whole_increments_and_end_at_the_least_size",
      "            room -= qty\n", "")
guard("quote_engine", "levels fit the room",
      "quote_guards::test_levels_share_the_room_in_whole_increments_and_end_at_the_least_size",
      "qty = int((room if want > room else want) + 1e-9) // inc * inc", "qty = int(want + 1e-9) // inc * inc")
guard("quote_engine", "sizes are multiples of the increment",
      "quote_guards::test_levels_share_the_room_in_whole_increments_and_end_at_the_least_size",
      "qty = int((room if want > room else want) + 1e-9) // inc * inc", "qty = int((room if want > room else want) + 1e-9)")
guard("quote_engine", "a level has a largest size",
      "quote_guards::test_levels_share_the_room_in_whole_increments_and_end_at_the_least_size",
      "            want = most if want > most else want\n", "")
guard("quote_engine", "no short inventory in a cash account", "quote_guards::test_a_cash_account_sells_what_it_has",
      "room = room_ask if c.short else min(room_ask, max(inventory, 0.0))", "room = room_ask")
guard("quote_engine", "no bid whose edge lies too far",
      "quote_guards::test_a_side_that_cannot_earn_its_edge_is_left_out_and_the_other_is_pushed_out",
      "        if away_bid > c.max_half_spread_ticks:\n", "        if False:\n")
guard("quote_engine", "no ask whose edge lies too far",
      "quote_guards::test_a_side_that_cannot_earn_its_edge_is_left_out_and_the_other_is_pushed_out",
      "        if away_ask > c.max_half_spread_ticks:\n", "        if False:\n")
guard("quote_engine", "the bid is worth its least edge",
      "quote_guards::test_a_side_that_cannot_earn_its_edge_is_left_out_and_the_other_is_pushed_out",
      "low, high = min(raw_bid, fair - away_bid), max(raw_ask, fair + away_ask)", "low, high = raw_bid, max(raw_ask, fair + away_ask)")
guard("quote_engine", "the ask is worth its least edge",
      "quote_guards::test_a_side_that_cannot_earn_its_edge_is_left_out_and_the_other_is_pushed_out",
      "low, high = min(raw_bid, fair - away_bid), max(raw_ask, fair + away_ask)", "low, high = min(raw_bid, fair - away_bid), raw_ask")
guard("quote_engine", "quotes stay passive", "quote_guards::test_quotes_stay_passive_though_the_belief_is_elsewhere",
      "first_bid, first_ask = _legal_nb(low / inc, high / inc, bid / inc, ask / inc, 1.0)",
      "first_bid, first_ask = math.floor(low / inc), math.ceil(high / inc)")
guard("quote_engine", "widths have limits", "quote_guards::test_widths_and_leans_have_limits",
      "return low if half < low else high if half > high else half", "return half")
guard("quote_engine", "a missing depth is not zero", "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "if depth >= 0.0 else math.nan", "if depth >= 0.0 else 0.0")
guard("quote_engine", "the lean is bounded", "quote_guards::test_widths_and_leans_have_limits",
      "    x = -1.0 if x < -1.0 else 1.0 if x > 1.0 else x\n", "")
guard("quote_engine", "the adding side shrinks", "quote_guards::test_the_adding_side_shrinks_and_the_reducing_side_does_not",
      "adding = int(lots * (1.0 - c.size.taper * min(abs(over) / c.max_inventory_lots, 1.0)) + 1e-9)", "adding = lots")
guard("quote_engine", "a size that lacks its number is none",
      "quote_guards::test_what_is_missing_or_cannot_be_is_declined_and_counted",
      "want = budget / (loss * lot_value) if loss > 0.0 else 0.0", "want = budget / (loss * lot_value) if not loss <= 0.0 else 1.0")
guard("quote_engine", "refresh: not computed too often", "quote_guards::test_quotes_are_not_thought_over_too_often",
      "return now_ns - self.last_ns >= self.every_ns", "return True")
guard("quote_engine", "config: unknown keys", "test_mistakes_are_told_by_key_and_line",
      'model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)',
      'model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)')
guard("quote_engine", "config: text is no number", "test_mistakes_are_told_by_key_and_line",
      'model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)',
      'model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)')
guard("quote_engine", "config: NaN is no number", "test_mistakes_are_told_by_key_and_line",
      'model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)',
      'model_config = ConfigDict(frozen=True, extra="forbid", strict=True)')
guard("quote_engine", "config: does not change", "test_config_is_frozen_and_every_key_is_documented",
      'model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)',
      'model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)')
guard("quote_engine", "config: contradictions", "test_mistakes_are_told_by_key_and_line",
      "        for key, wrong, message in _contradictions(self):\n            if wrong:\n",
      "        for key, wrong, message in _contradictions(self):\n            if False:\n")
guard("quote_engine", "config: a key that stands twice", "test_mistakes_are_told_by_key_and_line",
      "        if here in lines:\n", "        if False:\n")
guard("quote_engine", "config: files that cannot be read", "test_files_that_cannot_be_read",
      "    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as e:\n", "    except ZeroDivisionError as e:\n")
guard("quote_engine", "config: the lean never improves what adds", "test_mistakes_are_told_by_key_and_line",
      "or any(b > a for a, b in zip(y, y[1:], strict=False)):", "or False:")
guard("quote_engine", "config: the size rule has its number", "test_mistakes_are_told_by_key_and_line",
      "            if self.by == rule and not key:\n", "            if False:\n")
guard("quote_engine", "config: an edge that is not below its target", "test_mistakes_are_told_by_key_and_line",
      "        if self.target is not None and least is not None and self.target <= least:\n", "        if False:\n")
guard("quote_engine", "config: two targets", "test_mistakes_are_told_by_key_and_line",
      "        if self.target_ticks is not None and self.decay_per_tick is not None:\n", "        if False:\n")
guard("quote_engine", "config: a life shorter than a look", "test_mistakes_are_told_by_key_and_line",
      "        if 0 < self.lifetime_ms <= self.every_ms:\n", "        if False:\n")
guard("quote_engine", "instrument: the tick", "test_instrument_numbers_are_checked",
      'self.tick_size = check_positive("tick_size", tick_size, unit="price", remedy="the exchange\'s minimum price incre'
      'ment")',
      "self.tick_size = tick_size")
# config
guard("config", "no secret in the file", "test_no_secrets_in_the_file",
      "            if _SECRET.search(path[-1]):\n", "            if False:\n")
guard("config", "unknown sections", "test_mistakes",
      "            if name not in TOP and not _SECRET.search(name):\n", "            if False:\n")
guard("config", "missing sections", "test_mistakes",
      "            if not self.data.get(name):\n", "            if False:\n")
guard("config", "a section is a mapping", "test_mistakes",
      "        if not isinstance(here, Mapping):\n            self.say", "        if False:\n            self.say")
guard("config", "all mistakes at once", "test_all_sections_are_told_at_once",
      "            self.problems += [p for p in e.problems if p not in self.problems]\n",
      "            self.problems = self.problems or list(e.problems)\n")
guard("config", "a mistake ends it", "test_mistakes",
      "    if r.problems:\n        raise ConfigError(r.problems)\n    _agree(r,", "    _agree(r,")
guard("config", "hanging only where it is asked for", "test_requote_policy_follows_the_refresh_section",
      "refresh.hanging_ticks if refresh.hanging else 0.0", "refresh.hanging_ticks")
guard("config", "a disagreement ends it", "test_mistakes",
      "    if r.problems:\n        raise ConfigError(r.problems)\n    requote", "    requote")
guard("config", "what is named exists", "test_mistakes",
      '            if name not in self.part("instruments"):\n', "            if False:\n")
guard("config", "quoted is a list of symbols", "test_mistakes",
      "    if not isinstance(named, list) or not all(isinstance(s, str) for s in named):\n", "    if False:\n")
guard("config", "unknown keys of risk", "test_mistakes",
      '        if name not in ("account", "default", "symbols"):\n', "        if False:\n")
guard("config", "the account has limits", "quote_guards::test_a_session_without_limits_on_the_account_is_told_so",
      '        if "account" not in self.part("risk"):\n', "        if False:\n")
guard("config", "the strategy's word", "test_mistakes",
      '    if not isinstance(strategy, str) or not re.fullmatch(r"[A-Za-z0-9]{1,8}", strategy):\n', "    if False:\n")
guard("config", "an option has a strike", "test_mistakes",
      'if isinstance(data, Mapping) and data.get("kind") == "option" and data.get("strike") is None:', "if False:")
guard("config", "an expiry has a zone", "test_mistakes",
      "        if value.tzinfo is None:\n", "        if False:\n")
guard("config", "an expiry is a time", "test_mistakes",
      "    if isinstance(value, bool) or not (isinstance(value, int) and value == 0):\n", "    if False:\n")
guard("config", "a throttle lets orders pass", "test_mistakes",
      "        if self.reserve >= self.limit:\n", "        if False:\n")
guard("config", "a hedging rule has its numbers", "test_mistakes",
      '            if (getattr(self, key) is not None) != (self.rule == "whalley-wilmott"):\n', "            if False:\n")
guard("config", "a hedging rule has somebody to hedge", "test_mistakes",
      '        if self.rule != "none" and not self.underlyings:\n', "        if False:\n")
guard("config", "a band rule has a band", "test_mistakes",
      '                if hedging.rule == "band" and math.isinf(made.hedge_band):\n', "                if False:\n")
guard("config", "a live venue has a name", "test_mistakes",
      '        if self.kind in ("paper", "live") and not self.name:\n', "        if False:\n")
guard("config", "a live session says so", "test_a_live_session_says_so",
      "' WITH REAL ORDERS'", "''")
guard("config", "quoting within the position limit", "test_mistakes",
      "c.max_inventory_lots > x.max_position_lots, f", "False, f")
guard("config", "levels within the order limit", "test_mistakes",
      "_largest(c) > x.max_order_lots, f", "False, f")
guard("config", "levels within the throttle", "test_mistakes",
      "2 * c.levels > budget, f", "False, f")
guard("config", "refresh within the age limit", "test_mistakes",
      "c.refresh.every_ms > age > 0, f", "False, f")
guard("config", "lean and guard have one target", "quote_guards::test_quoting_and_guard_lean_to_one_target",
      'c.skew.shape != "none" and x.target_lots != 0 and c.skew.target_lots != x.target_lots, f', "False, f")
guard("config", "a cash account has no short target", "test_mistakes",
      "not c.short and x.target_lots < 0, f", "False, f")
guard("config", "an option's price for options", "test_mistakes",
      'c.theo == "option" and i.kind != "option", f', "False, f")
guard("config", "an order is not worth more than the account", "test_mistakes",
      "        if x.max_order_value > account.max_gross:\n", "        if False:\n")
guard("config", "greeks are of something", "test_mistakes",
      "        if not any(name in (s, i.underlying) for s, i in instruments.items()):\n", "        if False:\n")
guard("config", "a hedge exists", "test_mistakes",
      "        if not math.isinf(g.hedge_band) and hedge not in instruments:\n", "        if False:\n")
guard("config", "a class's own refusal is a mistake of the file", "test_mistakes",
      "    except ParameterError as e:\n        raise ConfigError([_blame(str(e), lines=lines, path=path)]) from None\n",
      "    except ZeroDivisionError as e:\n"
      "        raise ConfigError([_blame(str(e), lines=lines, path=path)]) from None\n")
# trader
guard("trader", "constructor: every order passes this guard", "test_refuses_parts_that_do_not_belong_together",
      "        if orders.approve != guard.approve:\n", "        if False:\n")
guard("trader", "constructor: what is quoted has limits", "test_refuses_parts_that_do_not_belong_together",
      "        if unknown:\n", "        if False:\n")
guard("trader", "constructor: slippage", "test_refuses_parts_that_do_not_belong_together",
      "        if slippage_ticks < 0:\n", "        if False:\n")
guard("trader", "stands aside: halted", "test_why_it_stands_aside", "    if guard.state is TradingState.HALTED:\n", "    if False:\n")
guard("trader", "stands aside: disabled", "test_why_it_stands_aside", "    if symbol in guard.latch.tripped:\n", "    if False:\n")
guard("trader", "stands aside: connection", "test_why_it_stands_aside", "    if guard.down:\n", "    if False:\n")
guard("trader", "stands aside: the account's breaker", "test_why_it_stands_aside",
      "    if now_ns < guard.until_ns or now_ns < track.until_ns:\n", "    if now_ns < track.until_ns:\n")
guard("trader", "stands aside: the symbol's breaker", "test_why_it_stands_aside",
      "    if now_ns < guard.until_ns or now_ns < track.until_ns:\n", "    if now_ns < guard.until_ns:\n")
guard("trader", "stands aside: no book", "test_why_it_stands_aside",
      "    if top is None or not top.synced:\n", "    if top is not None and not top.synced:\n")
guard("trader", "stands aside: a book with gaps", "test_why_it_stands_aside", "    if top is None or not top.synced:\n", "    if top is None:\n")
guard("trader", "stands aside: stale", "test_why_it_stands_aside",
      'return "stale" if now_ns - top.local_ns > track.limits.max_age_ns else ""', 'return ""')
guard("trader", "no value, no quote", "test_a_market_makes_two_quotes_and_a_lost_value_withdraws_them",
      ' or ("no value" if value is None else "")', "")
guard("trader", "quotes pass the guard's soft limits", "test_quotes_shrink_with_the_guards_soft_limit",
      "(guard.shape(q, exposure) for q in wanted)", "wanted")
guard("trader", "the guard hears greeks", "test_an_option_fill_is_hedged_once_with_the_underlying",
      "        guard.set_greeks(symbol, *value.greeks)\n", "        pass\n")
guard("trader", "the guard hears orders' news", "test_a_loss_is_flattened_with_reduce_only_orders_and_then_halted",
      "        t.guard.on_event(e, now_ns)\n", "")
guard("trader", "the guard hears markets", "test_a_market_makes_two_quotes_and_a_lost_value_withdraws_them",
      "        self.guard.on_market(top, now_ns)\n", "")
guard("trader", "a jump is measured by the valuer's volatility", "test_a_jump_is_measured_by_the_valuers_volatility",
      "            top = top if value is None else replace(top, sigma=value.sigma)\n", "")
guard("trader", "an execution is thought over", "test_an_execution_is_reason_to_think",
      "            t.due[e.symbol] = None\n", "            pass\n")
guard("trader", "a withdrawal does not wait", "test_a_withdrawal_does_not_wait_for_the_next_thought",
      " or standing_aside(t.guard, t.tops.get(symbol), symbol, now_ns):\n", ":\n")
guard("trader", "a thought waits for its time", "test_a_withdrawal_does_not_wait_for_the_next_thought",
      "            waiting[symbol] = None\n", "            _quote(t, symbol, now_ns)\n")
guard("trader", "takes: no price, no order", "test_nothing_takes_from_a_side_that_is_not_there", "    if not touch or now_ns", "    if now_ns")
guard("trader", "takes: the pause", "test_a_hedge_that_ended_at_once_waits_for_the_pause",
      " or now_ns - t._taken.get((symbol, side), -t.take_pause_ns) < t.take_pause_ns:\n", ":\n")
guard("trader", "takes: a price of something", "test_a_taking_order_never_has_a_price_of_nothing",
      "price = max(touch + side * t.slippage_ticks, 1)", "price = touch + side * t.slippage_ticks")
guard("trader", "takes: an own quote in the way goes", "test_an_own_quote_in_the_way_of_a_hedge_goes_first",
      "    for o in ours:\n", "    for o in ():\n")
guard("trader", "takes: waits until the way is clear", "test_an_own_quote_in_the_way_of_a_hedge_goes_first",
      "    if any(not o.done for o in ours):\n", "    if False:\n")
guard("trader", "takes: a flattening only reduces", "test_a_loss_is_flattened_with_reduce_only_orders_and_then_halted",
      "reduce_only=isinstance(action, Flatten)", "reduce_only=False")
guard("trader", "the guard's cancels are done", "test_a_kill_cancels_orders_that_others_placed",
      "            t.orders.cancel_all(a.symbol, now_ns=now_ns, reason=a.reason)\n", "            pass\n")
guard("trader", "alerts reach somebody", "test_kill_cancels_whatever_may_execute", "            t._alerts.append(a)\n", "            pass\n")
guard("trader", "hedger: only while we trade", "test_the_hedger_is_asked_now_and_then_and_only_while_we_trade",
      " and t.guard.state is TradingState.ACTIVE:\n", ":\n")
guard("trader", "hedger: not too often", "test_the_hedger_is_asked_now_and_then_and_only_while_we_trade",
      " and now_ns - t._hedged_ns >= t.hedge_every_ns and", " and")
guard("trader", "a lost link reaches the guard", "test_a_link_is_back_whatever_words_the_venue_finds",
      '        if report.kind in ("disconnected", "reconnected"):\n', "        if False:\n")
guard("trader", "a link that is lost is not back", "test_a_link_is_back_whatever_words_the_venue_finds",
      'self.guard.on_connection(report.kind == "reconnected", now_ns,', "self.guard.on_connection(True, now_ns,")
guard("trader", "a timer thinks everything over", "test_a_timer_thinks_over_what_no_market_mentions",
      "        self.due.update(dict.fromkeys(self.engines))\n", "")
guard("trader", "a kill is one", "test_kill_cancels_whatever_may_execute", "        self.guard.kill(reason, now_ns)\n", "")
guard("trader", "adopted lots enter the guard's ledger", "test_a_reconnection_waits_for_a_snapshot_and_adopts_the_position",
      "        _price_adopted(self)\n        return _run", "        return _run")
guard("trader", "adopted lots wait for a price", "test_adopted_lots_leave_the_cost_of_those_held_and_wait_for_a_price",
      "        if track is None or track.mid > 0:\n", "        if True:\n")
guard("trader", "adopted lots get the first price", "test_adopted_lots_leave_the_cost_of_those_held_and_wait_for_a_price",
      "        if self._adopted:\n", "        if False:\n")
guard("trader", "adopted lots enter once", "test_adopted_lots_leave_the_cost_of_those_held_and_wait_for_a_price",
      "            del t._adopted[symbol]\n", "")
guard("trader", "adopted lots add up", "test_adopted_lots_of_two_snapshots_add_up_while_there_is_no_price",
      "self._adopted[symbol] = self._adopted.get(symbol, 0) + lots", "self._adopted[symbol] = lots")
# valuation
guard("valuation", "volatility: warm-up", "test_spot_valuer_is_silent_until_warm_and_for_strangers",
      "if self.seen >= max(self.warm, 1) else math.nan", "if self.seen else math.nan")
guard("valuation", "volatility: a price that is none", "test_a_nan_or_an_old_price_changes_nothing",
      " or not math.isfinite(price):\n", ":\n")
guard("valuation", "volatility: a price before its time", "test_a_nan_or_an_old_price_changes_nothing",
      "if self._started and gap < self.sample_ns or not math.isfinite(price):", "if not math.isfinite(price):")
guard("valuation", "volatility: the half-life", "test_ew_volatility_refuses",
      'check_positive("half_life_s", half_life_s, unit="s")', "half_life_s")
guard("valuation", "volatility: the sample", "test_ew_volatility_refuses",
      'check_positive("sample_s", sample_s, unit="s")', "sample_s")
guard("valuation", "volatility: the number of changes", "test_ew_volatility_refuses",
      'check_nonnegative("warm", warm, unit="changes")', "warm")
guard("valuation", "spot: a book that is none", "test_spot_valuer_is_silent_until_warm_and_for_strangers",
      "        if top.synced and top.two_sided:\n", "        if True:\n")
guard("valuation", "spot: strangers", "test_spot_valuer_is_silent_until_warm_and_for_strangers",
      "        if vol is None:\n            return ()\n", "        if vol is None:\n            return (top.symbol,)\n")
guard("valuation", "spot: silent until warm", "test_spot_valuer_is_silent_until_warm_and_for_strangers",
      "return Value(sigma=sigma) if sigma == sigma else None", "return Value(sigma=sigma)")
guard("valuation", "option: stale volatilities", "test_option_valuer_knows_when_to_be_silent_and_what_moved",
      " or now_ns - self.vol_ns > self.max_vol_age_ns:\n", ":\n")
guard("valuation", "option: expired", "test_option_valuer_knows_when_to_be_silent_and_what_moved",
      "        if T <= 0:\n", "        if False:\n")
guard("valuation", "option: no spot yet", "test_an_option_without_its_underlying_has_no_value",
      "not (self.spot > 0 and vol > 0)", "not vol > 0")
guard("valuation", "option: no volatility", "test_new_volatilities_replace_the_old_ones_and_are_thought_over",
      "not (self.spot > 0 and vol > 0)", "not self.spot > 0")
guard("valuation", "option: an underlying with gaps", "test_an_option_without_its_underlying_has_no_value",
      "        if not (top.synced and top.two_sided):\n", "        if not top.two_sided:\n")
guard("valuation", "option: an underlying with one side", "test_an_option_without_its_underlying_has_no_value",
      "        if not (top.synced and top.two_sided):\n", "        if not top.synced:\n")
guard("valuation", "option: a lost underlying ends the value", "test_an_option_without_its_underlying_has_no_value",
      "            self.spot = math.nan\n", "            pass\n")
guard("valuation", "option: a lost underlying is thought over", "test_an_option_without_its_underlying_has_no_value",
      "            return tuple(self.options)\n", "            return ()\n")
guard("valuation", "option: an underlying that is back is thought over", "test_an_option_without_its_underlying_has_no_value",
      "            self.said.clear()\n            return tuple", "            return tuple")
guard("valuation", "option: new volatilities are thought over", "test_new_volatilities_replace_the_old_ones_and_are_thought_over",
      "dict(vols), now_ns\n        self.said.clear()\n", "dict(vols), now_ns\n")
guard("valuation", "option: volatilities left out are forgotten", "test_new_volatilities_replace_the_old_ones_and_are_thought_over",
      "= dict(vols), now_ns\n", "= self.vols | dict(vols), now_ns\n")
guard("valuation", "option: volatilities above zero", "test_option_valuer_knows_when_to_be_silent_and_what_moved",
      """            check_positive(f"vols[{symbol!r}]", v, unit="1/sqrt(year)")\n""", "            pass\n")
guard("valuation", "option: a move too small for a thought", "test_option_valuer_knows_when_to_be_silent_and_what_moved",
      " >= self.move_ticks * x.tick_size\n", " >= 0\n")
guard("valuation", "option: the underlying exists", "test_option_valuer_refuses",
      "        if underlying not in instruments:\n", "        if False:\n")
guard("valuation", "option: rates", "test_option_valuer_refuses",
      "            if not math.isfinite(value) or abs(value) > 1:\n", "            if False:\n")
guard("valuation", "option: the age of volatilities", "test_option_valuer_refuses",
      'check_positive("max_vol_age_s", max_vol_age_s, unit="s")', "max_vol_age_s")
guard("valuation", "option: the least move", "test_option_valuer_refuses",
      'check_nonnegative("move_ticks", move_ticks, unit="ticks")', "move_ticks")
guard("valuation", "team: each symbol once", "test_a_team_says_the_first_value_and_each_symbol_once",
      "return tuple(dict.fromkeys(s for m in self.members for s in m.on_market(top, now_ns=now_ns)))",
      "return tuple(s for m in self.members for s in m.on_market(top, now_ns=now_ns))")
guard("valuation", "team: the first value", "test_a_team_says_the_first_value_and_each_symbol_once",
      "        for m in self.members:\n            v =", "        for m in self.members[::-1]:\n            v =")

# The live session: who takes the orders back, and how a session starts, trades and ends. The fault matrix has its own table, on the whole of it.

guard("guardian", "lease: the lock", "test_an_account_is_held_once_and_given_back_by_any_death",
      "fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass")
guard("guardian", "lease: the key is held too", "test_one_key_is_one_lease_whatever_the_file_calls_it",
      "            self.lease = self.stack.enter_context(Lease(key_name(self.config, keys_of(self.config))))\n", "")
guard("guardian", "taking back: an early empty list is not believed", "test_an_empty_list_is_not_believed_while_an_order_may_be_under_way",
      "if not rest and late >= 0:", "if not rest:")
guard("guardian", "taking back: a cancel that raises is tried again", "test_everything_is_cancelled_again_until_the_venue_says_so",
      "            except Exception as err:\n                say(f\"cancel all of", "            except ZeroDivisionError as err:\n                say(f\"cancel all of")
guard("guardian", "taking back: patience ends", "test_everything_is_cancelled_again_until_the_venue_says_so",
      "        if time.monotonic() > end:\n", "        if False:\n")
guard("guardian", "taking back: a log that is gone", "test_a_log_that_takes_no_line_and_a_cancel_that_fails_do_not_end_the_guardian test_kill_knows_in_which_mode_the_folder_has_sent_orders",
      "        with contextlib.suppress(Exception):\n            say(words)", "        say(words)")
guard("guardian", "pipe: an end without goodbye is a death", "test_the_watchdog_tells_goodbye_from_death_and_silence",
      "return \"bye\" if last == b\"q\" else \"dead\"", "return \"bye\"")
guard("guardian", "pipe: silence", "test_the_watchdog_tells_goodbye_from_death_and_silence",
      "            return \"silent\"\n", "            continue\n")
guard("guardian", "pipe: beats that nobody reads", "test_a_guardian_that_hangs_is_noticed_long_before_its_pipe_is_full",
      "self.broken = _unread(self.fd) > UNREAD", "self.broken = False")
guard("guardian", "guard: a cancel that raises is tried again", "test_a_log_that_takes_no_line_and_a_cancel_that_fails_do_not_end_the_guardian",
      "            except Exception as err:\n                left = -1\n", "            except ZeroDivisionError as err:\n                left = -1\n")
guard("guardian", "guard: tried until nothing is open", "test_a_dead_engines_orders_are_tried_until_they_are_gone_or_another_engine_has_the_account",
      "        while left and not relieved():", "        if left and not relieved():")
guard("guardian", "guard: another engine has the account", "test_a_dead_engines_orders_are_tried_until_they_are_gone_or_another_engine_has_the_account",
      "        while left and not relieved():", "        while left:")
guard("guardian", "guard: a silent engine that stirs", "test_a_silent_engine_that_stirs_gets_its_orders_back",
      "return any(e & select.POLLIN and not e & select.POLLHUP for _, e in eyes.poll(0))", "return False")
guard("guardian", "guard: its own engine does not relieve it", "test_a_guardian_leaves_only_for_a_session_of_another_process",
      " and not held.startswith(f\"process {engine} \")", "")
guard("guardian", "guard: a session that only looks does not relieve it", "test_a_guardian_leaves_only_for_a_session_of_another_process",
      "return held.endswith(\"guarded\\n\") and", "return")
guard("guardian", "guard: the file is the one that the engine read", "test_a_file_that_was_changed_is_not_guarded",
      "    if hashlib.sha256(config.text.encode()).hexdigest() != text:\n", "    if False:\n")
guard("guardian", "process: ready before the first order", "test_a_guardian_that_does_not_start_is_an_error",
      " or os.read(out, 5) != b\"ready\":", ":")
guard("guardian", "process: the first beat", "test_the_first_beat_is_there_when_the_guardian_is_and_a_new_one_ends_the_old",
      "            os.write(self.pulse.fd, b\".\")  # the first", "            pass  # the first")
guard("guardian", "process: a new one ends the old", "test_the_first_beat_is_there_when_the_guardian_is_and_a_new_one_ends_the_old",
      "        self._end()  # one that hangs", "        # one that hangs")
guard("guardian", "minder: what cannot be started ends the session", "test_a_guardian_that_cannot_be_started_again_ends_the_session_whatever_the_reason",
      "        except Exception as e:\n            return engine.stop(f\"the guardian cannot", "        except MakerlabError as e:\n            return engine.stop(f\"the guardian cannot")
guard("guardian", "minder: nothing is quoted unwatched", "test_a_guardian_that_cannot_be_started_again_ends_the_session_whatever_the_reason",
      "        engine.trader.guard.on_connection(False, engine.clock(), \"guardian\")\n", "")
guard("guardian", "session: a refused start says goodbye", "test_a_start_is_beaten_for_and_a_refused_one_says_goodbye",
      "    except StartRefused:  # nothing", "    except ZeroDivisionError:  # nothing")
guard("guardian", "session: a start is beaten for", "test_a_start_is_beaten_for_and_a_refused_one_says_goodbye",
      "        if engine.phase in (\"new\", \"starting\"):", "        if False:")
guard("guardian", "control: the token", "test_the_control_port_wants_its_token_and_a_local_caller",
      " or not hmac.compare_digest(given.encode(\"utf8\", \"surrogateescape\"), control._token.encode())", "")
guard("guardian", "control: no page of a browser", "test_the_control_port_wants_its_token_and_a_local_caller",
      " or \"Origin\" in request.headers", "")
guard("guardian", "control: no other host", "test_the_control_port_wants_its_token_and_a_local_caller",
      "if not local or", "if")
guard("guardian", "control: a token that cannot be guessed", "test_the_control_port_wants_its_token_and_a_local_caller",
      "        if len(token) < 16:\n", "        if False:\n")
guard("guardian", "control: its file is its owner's", "test_the_control_port_wants_its_token_and_a_local_caller",
      "os.O_EXCL, 0o600)", "os.O_EXCL, 0o644)")
guard("guardian", "kill: an answer that is none", "test_a_stranger_on_the_old_port_does_not_stop_the_kill",
      "        if found[\"verified\"] is True:", "        if found[\"verified\"]:")
guard("guardian", "kill: a port that a dead engine left", "test_a_stranger_on_the_old_port_does_not_stop_the_kill",
      "        os.kill(int(where[\"pid\"]), 0)  #", "        #")
guard("guardian", "kill: a file that sends nothing now", "test_kill_knows_in_which_mode_the_folder_has_sent_orders",
      "    if not config.sends and (config.folder / \"account\").exists():\n", "    if False:\n")
guard("guardian", "kill: the mode in which orders were sent", "test_kill_knows_in_which_mode_the_folder_has_sent_orders",
      "    if mode is None and ran.exists():\n", "    if False:\n")
guard("guardian", "baseline: one that cannot be read", "test_the_baseline_is_kept",
      "    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as e:\n        raise MakerlabError(f\"{path} cannot", "    except ZeroDivisionError as e:\n        raise MakerlabError(f\"{path} cannot")

guard("engine", "journal: written before it leaves", "test_every_order_is_in_the_journal_before_it_leaves",
      " or not _write_down(self, requests, now_ns)):", "):")
guard("engine", "journal: a decision as a whole", "test_a_decision_is_written_as_a_whole_and_questions_leave_without_a_row",
      "rows = [r for r in requests if type(r) is not QueryOrder]", "rows = list(requests)")
guard("engine", "journal: one that fails halts", "test_a_journal_that_fails_halts_the_account_and_cancels_still_leave",
      "            e.send(e.trader.kill(f\"journal: {e.journal_error}\", now_ns=now), now)\n", "")
guard("engine", "journal: what is not written is told as refused", "test_an_order_that_the_journal_does_not_take_is_known_not_to_have_left",
      "            self.on_report(Report(kind, x.client_id, reason=\"the journal does not take it\", definitive=True))\n", "            pass\n")
guard("engine", "venue: one that raises leaves an unknown order", "test_a_venue_that_raises_leaves_an_unknown_order_that_is_asked_for",
      "                e.on_report(Report(\"unknown\", r.client_id", "                e.on_report(Report(\"rejected\", r.client_id, definitive=True")
guard("engine", "venue: a kill is asked of cancel-all too", "test_a_venue_that_does_not_hear_single_cancels_is_told_to_cancel_all",
      "                await self._sweep(reason, rest_s / 2)\n", "                pass\n")
guard("engine", "stop: the venue's own cancel-all, however late", "test_a_stop_that_stood_still_for_all_of_its_time_still_tells_the_venue_to_cancel_all",
      " or not (swept or self.sparing):\n", ":\n")
guard("engine", "stop: verified at the venue", "test_a_venue_that_does_not_hear_single_cancels_is_told_to_cancel_all",
      "                if not rest and not any(o.submit_ns", "                if True or not any(o.submit_ns")
guard("engine", "stop: a pipeline that raises", "test_a_pipeline_that_raises_keeps_no_cancel_all_back",
      "            except Exception as err:  # a pipeline", "            except ZeroDivisionError as err:  # a pipeline")
guard("engine", "stop: bounded though nobody answers", "test_a_stop_is_bounded_and_tries_the_cancel_all_though_nobody_answers",
      "asyncio.wait({task}, timeout=max(0.0, seconds))", "asyncio.wait({task})")
guard("engine", "stop: all symbols at once", "test_one_symbol_that_hangs_does_not_keep_the_cancel_all_from_the_others",
      "await asyncio.gather(*(_within(self.venue.cancel_all(s), seconds) for s in symbols), return_exceptions=True)",
      "[await _within(self.venue.cancel_all(s), seconds) for s in symbols]")
guard("engine", "stop: a task that does not end", "test_a_task_that_does_not_end_holds_no_stop_for_ever",
      "return_exceptions=True)], timeout=5.0)", "return_exceptions=True)])")
guard("engine", "stop: the venue's switch stays armed", "test_the_dead_mans_switch_stays_armed_unless_the_stop_is_verified",
      "    if done and e.config.sends and", "    if e.config.sends and")
guard("engine", "stop: what is not verified comes first", "test_a_part_that_fails_and_a_stop_that_is_not_verified_say_one",
      "    return 1 if not done else 2 if failed else 0", "    return 2 if failed else 1 if not done else 0")
guard("engine", "start: orders of others are refused", "test_orders_of_others_can_be_refused",
      "        if strange and self.config.live.found == \"refuse\":\n", "        if False:\n")
guard("engine", "start: a refused one touches nothing", "test_a_refused_start_touches_no_order_that_is_not_ours",
      "            requests = [r for r in requests if ours(self.config, r.client_id)]\n", "            pass\n")
guard("engine", "start: what an earlier session left is cancelled", "test_orders_left_by_an_earlier_session_are_cancelled_at_the_start",
      "        if e.config.live.found == \"cancel\" or ours(e.config, o.client_id):\n", "        if False:\n")
guard("engine", "start: the first beat comes first", "test_the_first_beat_comes_before_the_first_order",
      "            beat(self.clock())\n", "            pass\n")
guard("engine", "account: a task that is cancelled while it is wanted", "test_the_account_task_ends_when_it_is_cancelled_in_the_turn_it_is_wanted",
      "            async with asyncio.timeout(wait):  # not wait_for: that of Python 3.11 can swallow a cancellation\n                await e._want.wait()",
      "            await asyncio.wait_for(e._want.wait(), wait)")
guard("engine", "account: a failed snapshot does not end it", "test_a_thousand_failed_snapshots_do_not_end_the_session",
      "min(0.5 * 2.0 ** min(failed, 10), e.config.live.snapshot_s)", "min(0.5 * 2.0 ** failed, e.config.live.snapshot_s)")
guard("engine", "books: confirmed only while the feed lives", "test_a_quiet_book_is_confirmed_only_while_the_feed_lives test_a_silent_feed_pulls_the_quotes",
      "        if now_ns - self.alive_ns <= 2 * quiet:\n", "        if True:\n")
guard("engine", "books: one that was lost is blind", "test_a_book_that_was_lost_is_no_market_gone_mad",
      "            top = blind(top, self.tops.get(top.symbol))\n", "            pass\n")
guard("engine", "rules: a closed symbol", "test_a_symbol_that_closes_is_not_quoted_until_it_opens",
      "            top = replace(top, synced=False)\n        if not top.synced", "            pass\n        if not top.synced")
guard("engine", "rearm: the journal is asked first", "test_a_rearm_asks_the_journal_first",
      "        if self.journal_error:\n            raise", "        if False:\n            raise")
guard("engine", "kill: first the orders, then the log", "test_a_kill_comes_before_its_line_in_the_log",
      "        self.send(self.trader.kill(reason, now_ns=begin), begin)\n        self.note(\"kill\", reason)\n", "        self.note(\"kill\", reason)\n        self.send(self.trader.kill(reason, now_ns=begin), begin)\n")


# The machinery: heavy libraries are imported once, each mutant runs in a fork of that process

LIGHT = ("numpy", "pytest", "_hypothesis_pytestplugin", "hypothesis.stateful")
HEAVY = (*LIGHT, "pandas", "scipy.stats", "statsmodels.api", "numba", "pydantic", "yaml", "pandera.pandas", "hypothesis.extra.numpy")


def _prepare(names: tuple[str, ...] = HEAVY) -> None:
    "What every fork needs and no mutant changes."
    os.environ |= {"NUMBA_DISABLE_JIT": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode = True
    for name in names:
        try:
            __import__(name)
        except ImportError:  # what is missing will be told by the tests
            continue


def _child(home: Path, tests: tuple[str, ...], log: Path) -> int:
    "Run the tests against the package in a folder; the fork's exit code is pytest's."
    import pytest

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.pop("MAKERLAB_CHECK_FAILED", None)  # an earlier step's failure is not this mutant's
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(home / ".hypothesis")
    os.environ["MAKERLAB_CACHE_DIR"] = str(home / "cache")
    sys.path.insert(0, str(home))
    os.environ |= {"PYTHONPATH": str(home), "PYTHONSAFEPATH": "1"}  # for processes that a test starts
    os.chdir(ROOT)
    import makerlab

    if not str(makerlab.__file__).startswith(str(home)):
        return 99
    how = ["-x", "-q", "--assert=plain", "--tb=line", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin", "--hypothesis-seed=0"]
    return int(pytest.main([*how, *tests]))


def _fork(home: Path, tests: tuple[str, ...], log: Path, patience_s: int) -> int:
    "Start the tests in a fork; returns its process id."
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 98
    try:
        signal.alarm(patience_s)
        code = _child(home, tests, log)
    finally:
        os._exit(code)


def _verdict(status: int) -> str:
    "What a fork's end says about the guard."
    if os.WIFSIGNALED(status):
        return "killed (hangs)" if os.WTERMSIG(status) == signal.SIGALRM else f"BROKEN: signal {os.WTERMSIG(status)}"
    code = os.waitstatus_to_exitcode(status)
    return {0: "SURVIVED", 1: "killed", 5: "BROKEN: no such test"}.get(code, f"BROKEN: the copy cannot be tested (pytest says {code})")


def run(mutants: list[Mutant], *, jobs: int, verbose: bool) -> list[str]:
    "Verdicts in the order of the mutants; prints what is not killed as it comes."
    work = Path(tempfile.mkdtemp(prefix="mutants-"))
    homes = [work / str(k) for k in range(jobs)]
    for home in homes:
        shutil.copytree(ROOT / "makerlab", home / "makerlab", ignore=shutil.ignore_patterns("__pycache__"))
    verdicts, todo, busy, free = [""] * len(mutants), list(range(len(mutants)))[::-1], {}, list(homes)
    try:
        while todo or busy:
            while todo and free:
                k, home = todo.pop(), free.pop()
                try:
                    text = mutants[k].text((ROOT / mutants[k].path).read_text(encoding="utf8"))
                except (OSError, ValueError) as e:
                    verdicts[k] = f"BROKEN: {e}"
                    free.append(home)
                    _tell(mutants[k], verdicts[k], None, verbose)
                    continue
                (home / mutants[k].path).write_text(text, encoding="utf8")
                patience_s = PATIENCE_S if mutants[k].new != mutants[k].old else 10 * PATIENCE_S  # with nothing off, all tests run
                busy[_fork(home, mutants[k].tests, home / "log", patience_s)] = k, home
            if busy:
                pid, status = os.wait()
                k, home = busy.pop(pid)
                verdicts[k] = _verdict(status)
                _tell(mutants[k], verdicts[k], home / "log", verbose)
                shutil.copyfile(ROOT / mutants[k].path, home / mutants[k].path)
                free.append(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return verdicts


def run_apart(mutants: list[Mutant]) -> list[str]:
    "The same from a fresh process, for callers that have imported makerlab; verdicts as text."
    code = ("import sys, pickle; sys.path.insert(0, sys.argv[1]); import mutants as m; m._prepare(m.LIGHT); "
            "some = [m.Mutant(*x) for x in pickle.loads(sys.stdin.buffer.read())]; print('\\n'.join(['@@', *m.run(some, jobs=1, verbose=False)]))")
    rows = [(m.module, m.what, m.old, m.new, m.tests) for m in mutants]
    said = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], input=pickle.dumps(rows), stdout=subprocess.PIPE, check=True)
    return said.stdout.decode().split("@@\n")[1].splitlines()


def _tell(m: Mutant, verdict: str, log: Path | None, verbose: bool) -> None:
    "One line a guard, or only those that are not killed; a broken one with the end of what pytest said."
    if m.old != m.new and (verbose or not verdict.startswith("killed")):
        print(f"{verdict:<10} {m.module}: {m.what}   [{' '.join(t.removeprefix('tests/test_') for t in m.tests)}]", flush=True)
    if log is not None and (verdict.startswith("BROKEN") or (m.old == m.new and verdict != "SURVIVED")):
        print("    " + "\n    ".join(log.read_text(encoding="utf8", errors="replace").splitlines()[-12:]), flush=True)


def main() -> int:
    "0 when every guard was missed by a test."
    p = argparse.ArgumentParser(description="Switch each guard off once and see a test fail.")
    p.add_argument("words", nargs="*", help="only guards of these modules, or with these words in their name")
    p.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="how many at a time")
    p.add_argument("--quiet", action="store_true", help="only what is not killed")
    a = p.parse_args()
    some = [m for m in MUTANTS if not a.words or any(w == m.module or w in m.what for w in a.words)]
    start = time.monotonic()
    _prepare()
    if not some:
        print("no such guard")
        return 1
    tests = tuple(dict.fromkeys(t for m in some for t in m.tests))
    clean = Mutant(some[0].module, "nothing switched off", some[0].old, some[0].old, tests)
    if run([clean], jobs=1, verbose=False) != ["SURVIVED"]:
        print("a named test fails though no guard is off: make the tests pass first")
        return 1
    print(f"{len(tests)} tests pass with every guard on; now {len(some)} guards, one off at a time", flush=True)
    verdicts = run(some, jobs=max(1, a.jobs), verbose=not a.quiet)
    count = Counter(v.split()[0].rstrip(":") for v in verdicts)
    print(f"{count['killed']} of {len(some)} killed, {count['SURVIVED']} survived, {count['BROKEN']} broken, in {time.monotonic() - start:.0f} s")
    return 0 if count["killed"] == len(some) else 1


if __name__ == "__main__":
    sys.exit(main())
