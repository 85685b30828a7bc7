"""A Trader Workstation that is not one: the socket protocol of TWS (server version 176) over TCP, a small matching book behind it,
switches for what goes wrong, and a log of what truly happened. The client that speaks to it is ib_async's, unchanged."""
import asyncio
import calendar
import contextlib
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

VERSION = 176


@dataclass
class Stock:
    "A contract that the fake lists."

    con_id: int
    symbol: str
    tick: float = 0.01
    sec_type: str = "STK"
    exchange: str = "SMART"
    currency: str = "USD"
    expiry: str = ""
    strike: float = 0.0
    right: str = ""
    multiplier: str = ""

    def head(self):
        return [self.con_id, self.symbol, self.sec_type, self.expiry, self.strike or "", self.right, self.multiplier]

    def tail(self):
        return [self.exchange, self.currency, self.symbol, self.symbol]


@dataclass
class Ticket:
    "An order of a client."

    order_id: int
    client_id: int
    perm_id: int
    con_id: int
    side: int
    total: int
    kind: str
    price: float
    tif: str
    ref: str
    account: str
    filled: int = 0
    paid: float = 0.0
    status: str = "Submitted"
    told: bool = False

    @property
    def left(self):
        return self.total - self.filled

    @property
    def alive(self):
        return self.status in ("PreSubmitted", "Submitted", "PendingCancel")


class Book:
    "First come, first served, at each price: queues of [lots, ticket or None]."

    def __init__(self):
        self.queues = {1: {}, -1: {}}

    def prices(self, side):
        return sorted((p for p, q in self.queues[side].items() if q), key=lambda p: -side * p)

    def levels(self, side, n):
        return [(p, sum(k for k, _ in self.queues[side][p])) for p in self.prices(side)[:n]]

    def within(self, side, limit):
        "What an order of a side could take up to a limit (None: anything), best first."
        return [p for p in self.prices(-side) if limit is None or side * p <= side * limit]

    def rest(self, side, tick, lots, ticket=None):
        self.queues[side].setdefault(tick, deque()).append([lots, ticket])

    def remove(self, ticket):
        for q in self.queues[ticket.side].values():
            for entry in [e for e in q if e[1] is ticket]:
                q.remove(entry)

    def take(self, side, limit, lots):
        "Trade; yields (price, lots, whose)."
        for p in self.within(side, limit):
            q = self.queues[-side][p]
            while q and lots:
                n = min(lots, q[0][0])
                q[0][0] -= n
                lots -= n
                whose = q[0][1]
                if not q[0][0]:
                    q.popleft()
                yield p, n, whose


@dataclass
class Line:
    "One client's connection."

    writer: asyncio.StreamWriter
    client_id: int = -1
    depth: dict = field(default_factory=dict)  # con_id -> (request, rows)
    shown: dict = field(default_factory=dict)  # (con_id, side) -> rows as sent
    positions: bool = False
    open: bool = True


@dataclass
class Mischief:
    "What goes wrong from now on."

    reset_filled: bool = True  # the status after a change says filled = 0, which ib_async would take over
    double_status: bool = False  # every orderStatus comes twice
    drop_status: int = 0  # so many orderStatus messages are lost
    drop_exec: int = 0  # so many execDetails are lost
    drop_open: int = 0  # so many openOrder messages outside of answers are lost
    double_exec: bool = False  # every execDetails comes twice
    exec_first: bool = False  # the execution comes before the order's first status
    hold: bool = False  # requests pile up and are handled by release()
    deaf: bool = False  # nothing is read, nothing is answered: a black hole
    cut_open: int = 0  # so many questions for open orders are answered by a cut line
    mute_open: int = 0  # so many are not answered at all
    mute_orders: int = 0  # so many orders are swallowed: never placed, never answered
    refuse: tuple = ()  # (code, text): the next order or change is refused with it
    say_202: bool = True  # an error 202 goes with every cancel
    commission: float = 0.35  # of an execution
    late_commission: bool = False  # commissions wait for send_commissions()


class _State:
    "Tables."

    def __init__(self, *stocks, account="DU1234567", first_order_id=1, clock=time.time_ns):
        self.stocks = {s.con_id: s for s in stocks or (Stock(101, "X"),)}
        self.books = {c: Book() for c in self.stocks}
        self.account, self.next_id, self.clock, self.port = account, first_order_id, clock, 0
        self.tickets, self.executions, self.truth, self.held = [], [], [], deque()
        self.replenish = False  # strangers put back what we took from them
        self.lines, self.fault, self.received, self.commissions = [], Mischief(), [], []
        self.used = {}  # client -> highest order id
        self._server = self._ids = None
        self._perm = 1_000_000

    def log(self, what, ticket=None, **more):
        t = ticket
        row = dict(time_ns=self.clock(), what=what)
        if t is not None:
            row |= dict(ref=t.ref, perm_id=t.perm_id, side=t.side, price=t.price, total=t.total, filled=t.filled, status=t.status)
        self.truth.append(row | more)

    def truth_orders(self):
        "Orders that are alive, by reference: (side, price, total, filled)."
        return {t.ref: (t.side, t.price, t.total, t.filled) for t in self.tickets if t.alive}

    def truth_position(self, con_id=None, account=None):
        c = con_id or next(iter(self.stocks))
        mine = [e for e in self.executions if e["con_id"] == c and account in (None, e["account"])]
        return sum((1 if e["side"] == "BOT" else -1) * e["shares"] for e in mine)


class _Voice(_State):
    "What the server says."

    def send(self, line, *fields):
        if line.open and not self.fault.deaf:
            data = "".join(f"{x}\0" for x in fields).encode()
            line.writer.write(struct.pack(">I", len(data)) + data)

    def all(self, *fields):
        for line in self.lines:
            self.send(line, *fields)

    def line_of(self, client_id):
        return next((x for x in self.lines if x.client_id == client_id and x.open), None)

    def error(self, line, request, code, text):
        if line is not None:
            self.send(line, 4, 2, request, code, text, "")

    def status(self, t, *, line=None, filled=None):
        "orderStatus, perhaps twice, perhaps not at all."
        line = line or self.line_of(t.client_id)
        if line is None:
            return
        if self.fault.drop_status > 0:
            self.fault.drop_status -= 1
            return
        done = t.filled if filled is None else filled
        average = t.paid / t.filled if t.filled else 0.0
        for _ in range(2 if self.fault.double_status else 1):
            self.send(line, 3, t.order_id, t.status, done, t.total - done, average, t.perm_id, 0, average, t.client_id, "", 0.0)

    def open_order(self, t, *, line=None, answer=False):
        "openOrder: the order as the server holds it."
        line = line or self.line_of(t.client_id)
        if line is None:
            return
        if not answer and self.fault.drop_open > 0:
            self.fault.drop_open -= 1
            return
        s = self.stocks[t.con_id]
        self.send(line, 5, t.order_id, *s.head(), *s.tail(), *_order_fields(t, completed=False))

    def completed(self, t, line):
        s = self.stocks[t.con_id]
        self.send(line, 101, *s.head(), *s.tail(), *_order_fields(t, completed=True))

    def execution(self, e, *, line=None, request=-1):
        line = line or self.line_of(e["client_id"])
        if line is None:
            return
        s = self.stocks[e["con_id"]]
        stamp = time.strftime("%Y%m%d %H:%M:%S UTC", time.gmtime(e["time_ns"] / 1e9))
        for _ in range(2 if self.fault.double_exec and request == -1 else 1):
            self.send(line, 11, request, e["order_id"], *s.head(), *s.tail(), e["exec_id"], stamp, e["account"], "ISLAND", e["side"], e["shares"],
                      e["price"], e["perm_id"], e["client_id"], 0, e["cum"], e["price"], e["ref"], "", "", "", e["liquidity"])

    def commission(self, e, line=None):
        line = line or self.line_of(e["client_id"])
        if line is not None:
            self.send(line, 59, 1, e["exec_id"], self.fault.commission, "USD", 0.0, "", "")

    def send_commissions(self):
        "Those that waited."
        for e in self.commissions:
            self.commission(e)
        self.commissions = []

    def position(self, line, con_id):
        s = self.stocks[con_id]
        for account in self.account.split(","):
            self.send(line, 61, 3, account, *s.head(), *s.tail(), self.truth_position(con_id, account), 0.0)


def _order_fields(t, *, completed):
    "The order's part of openOrder (5) and completedOrder (101), as server version 176 sends it; empty where a plain order has nothing."
    head = ["BUY" if t.side > 0 else "SELL", t.total, t.kind, t.price, 0.0, t.tif, "", t.account, "", 0, t.ref]
    head += [t.perm_id, 0, 0, 0, ""] if completed else [t.client_id, t.perm_id, 0, 0, 0, "", ""]
    head += ["", "", "", "", "", "", "", "", "", 0, "", -1]  # faGroup .. exemptCode
    if completed:
        head += ["", "", "", "", "", "", 0, 0, "", 3, 0, "", "", "", ""]  # startingPrice .. deltaNeutralAuxPrice
        head += [0, "", "", "", ""]  # continuousUpdate .. comboLegsDescrip
    else:
        head += [0, "", "", "", "", "", "", 0, 0, 0, "", 3, 0, 0, "", 0, 0, "", "", "", ""]
        head += [0, "", "", "", "", "", ""]
    head += [0, 0, 0, "", "", "", ""]  # legs, leg prices, routing, scale x3, hedge
    if completed:
        head += ["", "", 0, 0, "", 0, t.status, 0, 0, 0]
        return head + ["", "", "", 0, 0, "", t.filled, "", 0, "", 0, 0, "", "20261121 22:00:00 UTC", "done"] + [""] * 5
    head += [0, "", "", 0, 0, "", 0, 0, t.status] + [""] * 14 + [0, 0, 0]
    return head + ["", "", "", "", "", "", "", "", "", "", "", "", 0, 0, 0, 0] + ["", 0, 0] + [""] * 5


class _Market(_Voice):
    "The book, and what it does to orders."

    def seed(self, con_id, bids, asks):
        "Strangers' levels: (tick, lots)."
        for side, rows in ((1, bids), (-1, asks)):
            for tick, lots in rows:
                self.books[con_id].rest(side, tick, lots)
        self.show(con_id)

    def trade(self, side, tick, lots, con_id=None):
        "A stranger buys or sells up to a price; what is left goes away."
        c = con_id or next(iter(self.stocks))
        for p, n, whose in self.books[c].take(side, tick, lots):
            if whose is not None:
                self.fill(whose, p, n, maker=True)
        self.show(c)

    def fill(self, t, tick, lots, *, maker):
        "An execution of a client's order."
        t.filled += lots
        price = round(tick * self.stocks[t.con_id].tick, 10)
        t.paid += lots * price
        t.status = "Filled" if not t.left else t.status
        e = dict(exec_id=f"0000e0d5.{len(self.executions) + 1:08x}.01.01", time_ns=self.clock(), con_id=t.con_id, side="BOT" if t.side > 0 else "SLD",
                 shares=lots, price=price, tick=tick, perm_id=t.perm_id, client_id=t.client_id, order_id=t.order_id, cum=t.filled, ref=t.ref, liquidity=1 if maker else 2, account=t.account)
        self.executions.append(e)
        self.log("fill", t, lots=lots, tick=tick)
        if not (self.fault.exec_first or t.told):
            self.status(t, filled=t.filled - lots)
        if self.fault.drop_exec > 0:
            self.fault.drop_exec -= 1
        else:
            self.execution(e)
        t.told = True
        self.open_order(t)
        self.status(t)
        if self.fault.late_commission:
            self.commissions.append(e)
        else:
            self.commission(e)
        for line in self.lines:
            if line.positions:
                self.position(line, t.con_id)

    def enter(self, t):
        "Match, then rest or end."
        book, s = self.books[t.con_id], self.stocks[t.con_id]
        limit = None if t.kind == "MKT" else round(t.price / s.tick)
        here = [] if t.tif == "FOK" and sum(k for p in book.within(t.side, limit) for k, _ in book.queues[-t.side][p]) < t.left else book.take(t.side, limit, t.left)
        gone = []
        for p, n, whose in here:
            if whose is not None:
                self.fill(whose, p, n, maker=True)
            else:
                gone.append((p, n))
            self.fill(t, p, n, maker=False)
        if t.left and (t.kind == "MKT" or t.tif in ("IOC", "FOK")):
            self.end(t, "Cancelled")
        elif t.left:
            book.rest(t.side, limit, t.left, t)
        for p, n in gone if self.replenish else ():
            if all(t.side * q < t.side * p for q in book.prices(t.side)):
                book.rest(-t.side, p, n)
        self.show(t.con_id)

    def end(self, t, status, reason=""):
        "Out of the book."
        self.books[t.con_id].remove(t)
        t.status = status
        self.log("end", t)
        self.status(t)
        if self.fault.say_202 and reason:
            self.error(self.line_of(t.client_id), t.order_id, 202, f"Order Canceled - reason:{reason}")
        self.show(t.con_id)


class _Depth(_Market):
    "Market depth by rows: updates, appended rows, rows taken off the end."

    def show(self, con_id):
        for line in self.lines:
            if con_id in line.depth:
                self.show_to(line, con_id)

    def show_to(self, line, con_id):
        request, rows = line.depth[con_id]
        for side in (1, -1):
            had, now = line.shown.get((con_id, side), []), self.books[con_id].levels(side, rows)
            for i in range(len(had) - 1, len(now) - 1, -1):
                self.row(line, request, i, 2, side, 0.0, 0)
            for i, (tick, lots) in enumerate(now):
                if i >= len(had) or had[i] != (tick, lots):
                    self.row(line, request, i, 0 if i >= len(had) else 1, side, round(tick * self.stocks[con_id].tick, 10), lots)
            line.shown[con_id, side] = now

    def row(self, line, request, position, operation, side, price, size):
        "One updateMktDepth; side 1 is the bid, 0 the ask."
        self.send(line, 12, 1, request, position, operation, 1 if side > 0 else 0, price, size)

    def bad_rows(self, *rows, con_id=None):
        "Rows that no book has: (position, operation, side, price, size)."
        c = con_id or next(iter(self.stocks))
        for line in self.lines:
            if c in line.depth:
                for r in rows:
                    self.row(line, line.depth[c][0], *r)

    def reset_depth(self, con_id=None):
        "Error 317, then the book anew."
        c = con_id or next(iter(self.stocks))
        for line in self.lines:
            if c in line.depth:
                self.error(line, line.depth[c][0], 317, "Market depth data has been RESET. Please empty deep book contents before applying any new entries.")
                line.shown.pop((c, 1), None)
                line.shown.pop((c, -1), None)
                self.show_to(line, c)


class _Orders(_Depth):
    "Requests about orders."

    def do_place(self, line, f):
        order_id, con_id, ref = int(f[1]), int(f[2] or 0), f[27 - 1]
        side, total, kind, price, tif = 1 if f[16] == "BUY" else -1, float(f[17] or 0), f[18], float(f[19] or 0), f[21]
        if self.fault.mute_orders > 0:
            self.fault.mute_orders -= 1
            return self.log("swallowed", ref=ref)
        old = next((t for t in self.tickets if (t.client_id, t.order_id) == (line.client_id, order_id)), None)
        if self.fault.refuse:
            (code, text), self.fault.refuse = self.fault.refuse, ()
            self.log("refused", old, code=code, asked=ref)
            return self.error(line, order_id, code, text)
        s = self.stocks.get(con_id)
        if s is None:
            return self.error(line, order_id, 200, "No security definition has been found for the request")
        if kind != "MKT" and (price <= 0 or abs(price / s.tick - round(price / s.tick)) > 1e-6):
            return self.error(line, order_id, 110, "The price does not conform to the minimum price variation for this contract.")
        if old is not None:
            return self.change(line, old, total, price)
        if order_id <= self.used.get(line.client_id, 0):
            return self.error(line, order_id, 103, "Duplicate order id")
        if total <= 0 or total != int(total):
            return self.error(line, order_id, 434, "The order size cannot be zero.")
        self.used[line.client_id] = order_id
        self._perm += 1
        t = Ticket(order_id, line.client_id, self._perm, con_id, side, int(total), kind, price, tif, ref, f[23] or self.account)
        self.tickets.append(t)
        self.log("new", t)
        if not self.fault.exec_first:
            self.open_order(t)
            self.status(t)
        self.enter(t)
        t.told = True
        if self.fault.exec_first:
            self.open_order(t)
            self.status(t)

    def change(self, line, t, total, price):
        "A new total and limit: to the end of the queue."
        if not t.alive:
            return self.error(line, t.order_id, 104, "Cannot modify a filled order.")
        if total <= t.filled:
            return self.error(line, t.order_id, 201, "Order rejected - reason:the new size is not above what is filled")
        t.total, t.price = int(total), price
        self.books[t.con_id].remove(t)
        self.log("replaced", t)
        self.open_order(t)
        self.status(t, filled=0 if self.fault.reset_filled else None)
        self.enter(t)

    def do_cancel(self, line, f):
        order_id = int(f[2])
        t = next((t for t in self.tickets if (t.client_id, t.order_id) == (line.client_id, order_id)), None)
        if t is None:
            return self.error(line, order_id, 10147, f"OrderId {order_id} that needs to be cancelled is not found.")
        if not t.alive:
            return self.error(line, order_id, 10148, f"OrderId {order_id} that needs to be cancelled can not be cancelled, state: {t.status}.")
        self.end(t, "Cancelled", "")
        if self.fault.say_202:
            self.error(line, order_id, 202, "Order Canceled - reason:")

    def do_global_cancel(self, line, f):
        for t in [t for t in self.tickets if t.alive]:
            self.end(t, "Cancelled", "global cancel")


class _Answers(_Orders):
    "Everything else that is asked."

    def do_start(self, line, f):
        client_id = int(f[2])
        if self.line_of(client_id) is not None:
            self.error(line, -1, 326, "Unable to connect as the client id is already in use. Retry with a unique client id.")
            return line.writer.close()
        line.client_id = client_id
        self.send(line, 15, 1, self.account)
        self.send(line, 9, 1, max(self.next_id, self.used.get(client_id, 0) + 1))
        self.error(line, -1, 2104, "Market data farm connection is OK:usfarm")

    def do_open(self, line, f):
        if self.fault.mute_open > 0:
            self.fault.mute_open -= 1
            return
        if self.fault.cut_open > 0:
            self.fault.cut_open -= 1
            line.writer.transport.abort()
            return self._drop(line)
        for t in self.tickets:
            if t.alive and (int(f[0]) == 16 or t.client_id == line.client_id):
                self.open_order(t, line=line, answer=True)
                keep, self.fault.drop_status = self.fault.drop_status, 0
                self.status(t, line=line)
                self.fault.drop_status = keep
        self.send(line, 53, 1)

    def do_executions(self, line, f):
        since = calendar.timegm(time.strptime(f[5], "%Y%m%d-%H:%M:%S")) * 10**9 if f[5] else 0
        found = [e for e in self.executions if e["time_ns"] >= since]
        for e in found:
            self.execution(e, line=line, request=int(f[2]))
        for e in found:
            if not self.fault.late_commission:
                self.commission(e, line)
        self.send(line, 55, 1, f[2])

    def do_completed(self, line, f):
        for t in self.tickets:
            if not t.alive:
                self.completed(t, line)
        self.send(line, 102)

    def do_positions(self, line, f):
        line.positions = True
        for c in self.stocks:
            if self.truth_position(c) or any(e["con_id"] == c for e in self.executions):
                self.position(line, c)
        self.send(line, 62, 1)

    def do_depth(self, line, f):
        con_id = int(f[3])
        if con_id not in self.stocks:
            return self.error(line, int(f[2]), 200, "No security definition has been found for the request")
        line.depth[con_id] = (int(f[2]), int(f[14 + 1]))
        line.shown.pop((con_id, 1), None)
        line.shown.pop((con_id, -1), None)
        self.show_to(line, con_id)

    def do_no_depth(self, line, f):
        for c in [c for c, (request, _) in line.depth.items() if request == int(f[2])]:
            del line.depth[c]

    def do_chain(self, line, f):
        request = f[1]
        for exchange in ("SMART", "CBOE"):
            self.send(line, 75, request, exchange, f[5], f[2], "100", 2, "20261218", "20270115", 3, 95.0, 100.0, 105.0)
        self.send(line, 76, request)

    def do_details(self, line, f):
        request, con_id, symbol, sec, expiry, strike, right = f[2], int(f[3] or 0), f[4], f[5], f[6], float(f[7] or 0), f[8]
        found = [s for s in self.stocks.values() if (con_id and s.con_id == con_id) or (
            not con_id and (s.symbol, s.sec_type) == (symbol, sec) and (sec != "OPT" or (s.expiry, s.strike, s.right) == (expiry, strike, right)))]
        for s in found:
            self.send(line, 10, request, s.symbol, s.sec_type, s.expiry, s.strike or "", s.right, s.exchange, s.currency, s.symbol, "NMS", s.symbol, s.con_id, s.tick,
                      s.multiplier, "LMT,MKT", "SMART,ISLAND", 1, 0, s.symbol, "ISLAND", *[""] * 9, 0, 1, "", "", "26", "", "COMMON", 1, 1, 100)
        if not found:
            return self.error(line, int(request), 200, "No security definition has been found for the request")
        self.send(line, 52, 1, request)

    def do_quotes(self, line, f):
        request, s = f[2], self.stocks.get(int(f[3] or 0))
        if s is not None and s.sec_type == "OPT":
            self.send(line, 21, request, 13, 0, 0.25, 0.5, 2.5, 0.0, 0.05, 0.1, -0.02, 100.0)

    HANDLERS: ClassVar = {71: "do_start", 3: "do_place", 4: "do_cancel", 58: "do_global_cancel", 5: "do_open", 16: "do_open", 7: "do_executions", 99: "do_completed",
                61: "do_positions", 10: "do_depth", 11: "do_no_depth", 78: "do_chain", 9: "do_details", 1: "do_quotes"}

    def handle(self, line, f):
        "One request."
        kind = int(f[0])
        if kind == 49:
            return self.send(line, 49, 1, self.clock() // 10**9)
        if kind == 8:
            return self.send(line, 9, 1, max(self.next_id, self.used.get(line.client_id, 0) + 1))
        if kind == 62:  # the client asks by itself after 1102
            return self.send(line, 64, 1, f[2])
        name = self.HANDLERS.get(kind)
        if name is not None:
            getattr(self, name)(line, f)


class FakeTws(_Answers):
    "The server: `async with FakeTws(Stock(101, 'X')) as tws`, then a client connects to 127.0.0.1 and tws.port."

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        await self.stop()

    async def start(self, port=0):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def stop(self):
        if self._server is not None:
            self._server.close()
            self.cut()
            self._server = None

    async def _serve(self, reader, writer):
        line = Line(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            assert await reader.readexactly(4) == b"API\0"
            size = struct.unpack(">I", await reader.readexactly(4))[0]
            await reader.readexactly(size)
            self.lines.append(line)
            self.send(line, VERSION, "20261121 22:00:00 UTC")
            while True:
                size = struct.unpack(">I", await reader.readexactly(4))[0]
                fields = (await reader.readexactly(size)).decode().split("\0")[:-1]
                self.received.append((line.client_id, fields))
                if self.fault.deaf:
                    continue
                if self.fault.hold and int(fields[0]) in (3, 4, 58):
                    self.held.append((line, fields))
                else:
                    self.handle(line, fields)
        self._drop(line)

    def _drop(self, line):
        line.open = False
        if line in self.lines:
            self.lines.remove(line)
        with contextlib.suppress(Exception):
            line.writer.close()

    def cut(self):
        "Every connection is lost."
        for line in list(self.lines):
            line.writer.transport.abort()
            self._drop(line)

    async def close_port(self):
        "No new connections either."
        self._server.close()
        self.cut()

    async def open_port(self):
        await self.start(self.port)

    def release(self):
        "Handle what was held."
        self.fault.hold = False
        while self.held:
            line, fields = self.held.popleft()
            self.handle(line, fields)

    def asked(self, kind):
        "Requests of one number, as they came."
        return [f for _, f in self.received if int(f[0]) == kind]

    def connectivity(self, code):
        "1100 lost, 1101 back and data lost, 1102 back and data kept."
        words = {1100: "Connectivity between IB and Trader Workstation has been lost.", 1101: "Connectivity restored - data lost.",
                 1102: "Connectivity restored - data maintained."}
        if code == 1101:
            for line in self.lines:
                line.depth.clear()
                line.shown.clear()
        for line in self.lines:
            self.error(line, -1, code, words[code])
