"""The C++ book of orderly-chaos, driven from a numba loop through its C interface.

Reads an .npy of messages (makerlab.execution.matching.MESSAGE_DTYPE), prints one JSON line for each round asked for on stdin ("run"),
and on "save PATH" writes the fills of the last round. Three ways: fills counted only, fills recorded by a compiled
callback, and counted with each cancel asking first whether the order is there (a cancel that finds nobody costs a C++ exception).
"""

import ctypes
import json
import sys
import time

import numpy as np
from numba import carray, cfunc, njit, types
from orderly_chaos import __version__
from orderly_chaos._library import candidate_paths

LIMIT, MARKET, CANCEL = 0, 1, 5
TRADE = types.Record.make_c_struct([("taker", types.uint64), ("maker", types.uint64), ("price", types.uint64), ("quantity", types.uint32),
                                    ("left", types.uint32), ("side", types.int32)])


@cfunc(types.void(types.CPointer(TRADE), types.CPointer(types.int64)))
def record(trade, out):
    "One fill to the next row; out[0] counts the rows."
    t, n = carray(trade, 1)[0], out[0]
    row = carray(out, 1 << 30)
    at = 1 + 5 * n
    row[at], row[at + 1], row[at + 2], row[at + 3], row[at + 4] = t.taker, t.maker, t.price, t.quantity, t.left
    out[0] = n + 1


def interface():
    "The functions of the C library, by plain addresses (no interpreter lock inside the loop)."
    lib = ctypes.CDLL(candidate_paths()[0])
    lib.oc_book_new.restype = ctypes.c_void_p
    lib.oc_book_free.argtypes = [ctypes.c_void_p]
    lib.oc_book_limit.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p]
    lib.oc_book_market.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
    lib.oc_book_cancel.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    lib.oc_book_has.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    lib.oc_book_has.restype = ctypes.c_int
    lib.oc_book_set_trade_callback.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    for fn in (lib.oc_book_limit, lib.oc_book_market, lib.oc_book_cancel, lib.oc_book_set_trade_callback):
        fn.restype = ctypes.c_int32
    return lib


LIB = interface()
limit, market, cancel, has = LIB.oc_book_limit, LIB.oc_book_market, LIB.oc_book_cancel, LIB.oc_book_has


@njit
def drive(book, messages, filled, filled_at, ask):
    "All messages; returns the lots that came back as filled."
    lots, bad = 0, 0
    for i in range(messages.size):
        m = messages[i]
        side = 1 if m["side"] > 0 else 0
        if m["kind"] == CANCEL:
            if ask and has(book, m["id"]) == 0:
                bad += 1
            else:
                bad += cancel(book, m["id"]) != 0
        elif m["kind"] == LIMIT:
            bad += limit(book, side, m["id"], m["lots"], m["tick"], filled_at) != 0
            lots += filled[0]
        else:
            bad += market(book, side, m["id"], m["lots"], filled_at) != 0
            lots += filled[0]
    return lots, bad


def main():
    messages = np.load(sys.argv[1])
    out, filled = np.zeros(1 + 5 * (messages.size + 1), dtype=np.int64), np.zeros(1, dtype=np.uint32)

    def once(data, callback=False, ask=False):
        book = LIB.oc_book_new()
        if callback:
            out[0] = 0
            LIB.oc_book_set_trade_callback(book, record.address, out.ctypes.data)
        tic = time.perf_counter()
        lots, bad = drive(book, data, filled, filled.ctypes.data, ask)
        toc = time.perf_counter() - tic
        LIB.oc_book_free(book)
        return toc, int(lots), int(bad)

    for callback, ask in ((False, False), (True, False), (False, True)):
        once(messages[:1000], callback, ask)
    print(json.dumps({"version": __version__}), flush=True)
    for line in sys.stdin:
        word = line.split()
        if word[0] == "run":
            quick, lots, bad = once(messages)
            asking, lots2, bad2 = once(messages, ask=True)
            full, lots3, bad3 = once(messages, callback=True)
            assert (lots, bad) == (lots2, bad2) == (lots3, bad3)
            print(json.dumps({"seconds": quick, "seconds_recording": full, "seconds_asking": asking, "lots": lots, "refused": bad, "fills": int(out[0])}), flush=True)
        else:
            np.save(word[1], out[1:1 + 5 * out[0]].reshape(-1, 5))
            print(json.dumps({"saved": word[1]}), flush=True)


if __name__ == "__main__":
    main()
