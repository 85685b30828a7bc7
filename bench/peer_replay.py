"""hftbacktest under the reference strategy, in the peers' environment.

One argument: a JSON file with the settings (data: an .npy of its 64-byte rows; tick, lot, depth "roi" or "hash", queue "risk-averse" or "power-prob:N",
half_ticks, skew_ticks, qty, max_position, interval_ns, send_ns, back_ns, and optionally latency: an .npy of rows sent, exchange, back).
Prints a line with the version; then "run" on stdin gives {"seconds", "build_seconds", ...} for one run, and "save PATH" writes positions and fills.
"""

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from hftbacktest import FILLED, GTX, LIMIT, BacktestAsset, HashMapMarketDepthBacktest, ROIVectorMarketDepthBacktest
from numba import njit

NO_BID, NO_ASK = -(2**63), 2**63 - 1


@njit
def note_fills(orders, seen, n):
    "Orders that are filled, once each: exchange ns, side, price in ticks, quantity, number."
    values = orders.values()
    while values.has_next():
        order = values.get()
        if order.status == FILLED:
            known = False
            for i in range(max(n - 64, 0), n):
                known = known or seen[i, 4] == order.order_id
            if not known:
                seen[n, 0], seen[n, 1], seen[n, 2] = order.exch_timestamp, order.side, order.exec_price_tick
                seen[n, 3], seen[n, 4] = order.exec_qty, order.order_id
                n += 1
    return n


@njit
def trade(hbt, interval, tick, half, skew, qty, most, positions, fills, noting):
    "A decision at every ring of the timer; returns how many there were, the next order number and the fills noted."
    number, k, n = 1, 0, 0
    mine, at = np.zeros(2, np.int64), np.zeros(2, np.int64)  # number and price of the order that works on each side
    want, goal = np.zeros(2, np.bool_), np.zeros(2, np.int64)
    while hbt.elapse(interval) == 0:
        depth, held = hbt.depth(0), hbt.position(0)
        bid, ask = depth.best_bid_tick, depth.best_ask_tick
        if noting:
            n = note_fills(hbt.orders(0), fills, n)
        hbt.clear_inactive_orders(0)
        orders = hbt.orders(0)
        two = bid != NO_BID and ask != NO_ASK
        if two:
            centre = 0.5 * (bid + ask) - skew * held
            goal[0] = min(np.int64(np.floor(centre - half)), ask - 1)
            goal[1] = max(np.int64(np.ceil(centre + half)), bid + 1)
        want[0], want[1] = two and held < most, two and held > -most
        for side in range(2):
            if mine[side] > 0:
                order = orders.get(mine[side])
                if order is None:
                    mine[side] = 0
                elif order.cancellable and (not want[side] or at[side] != goal[side]):
                    hbt.cancel(0, mine[side], False)
                    mine[side] = 0
        for side in range(2):
            if want[side] and mine[side] == 0:
                if side == 0:
                    hbt.submit_buy_order(0, number, goal[0] * tick, qty, GTX, LIMIT, False)
                else:
                    hbt.submit_sell_order(0, number, goal[1] * tick, qty, GTX, LIMIT, False)
                mine[side], at[side] = number, goal[side]
                number += 1
        if k < positions.size:
            positions[k] = held
        k += 1
    if noting:
        n = note_fills(hbt.orders(0), fills, n)
    return k, number, n


def main():
    s = json.loads(Path(sys.argv[1]).read_text())
    data = np.load(s["data"])
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    delays = None
    if s.get("latency"):
        pairs = np.load(s["latency"])
        delays = np.zeros(len(pairs), np.dtype([("req_ts", "i8"), ("exch_ts", "i8"), ("resp_ts", "i8"), ("_padding", "i8")], align=True))
        delays["req_ts"], delays["exch_ts"], delays["resp_ts"] = pairs.T

    def build():
        a = BacktestAsset().data(data).linear_asset(1.0).tick_size(s["tick"]).lot_size(s["lot"]).no_partial_fill_exchange()
        a = a.trading_value_fee_model(0.0, 0.0).last_trades_capacity(0)
        a = a.constant_order_latency(s["send_ns"], s["back_ns"]) if delays is None else a.intp_order_latency(delays)
        name, _, n = s["queue"].partition(":")
        a = a.risk_adverse_queue_model() if name == "risk-averse" else a.power_prob_queue_model3(float(n))
        if s["depth"] == "hash":
            return HashMapMarketDepthBacktest([a])
        return ROIVectorMarketDepthBacktest([a.roi_lb(s["low"]).roi_ub(s["high"])])

    def once(noting):
        positions, fills = np.zeros(s["marks"]), np.zeros((s["fills"] if noting else 1, 5))
        tic = time.perf_counter()
        hbt = build()
        built = time.perf_counter()
        k, number, n = trade(hbt, s["interval_ns"], s["tick"], s["half_ticks"], s["skew_ticks"], s["qty"], s["max_position"], positions, fills, noting)
        done = time.perf_counter()
        values = hbt.state_values(0)
        trades, balance = int(values.num_trades), float(values.balance)
        hbt.close()
        return {"seconds": done - built, "build_seconds": built - tic, "marks": int(k), "orders": int(number) - 1, "fills": trades, "balance": balance}, positions[:k], fills[:n]

    first = time.perf_counter()
    once(False)
    print(json.dumps({"version": version("hftbacktest"), "loaded_mb": loaded, "first_seconds": time.perf_counter() - first}), flush=True)
    for line in sys.stdin:
        word = line.split()
        if word[0] == "run":
            out, _, _ = once(False)
            print(json.dumps(out | {"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
        else:
            out, positions, fills = once(True)
            np.savez(word[1], positions=positions, fills=fills)
            print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
