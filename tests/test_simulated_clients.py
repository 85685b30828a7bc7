"Two clients that nobody here wrote talk to the simulated venue: binance-sdk-spot (the official one) and python-binance."
import asyncio

import pytest

pytest.importorskip("binance_sdk_spot", reason="pip install binance-sdk-spot: the official client is one of the two referees of the simulated venue")
pytest.importorskip("binance", reason="pip install python-binance: the second referee of the simulated venue")

from binance import AsyncClient, BinanceSocketManager
from binance.exceptions import BinanceAPIException
from binance_common.configuration import ConfigurationRestAPI, ConfigurationWebSocketAPI, ConfigurationWebSocketStreams
from binance_common.errors import BadRequestError, TooManyRequestsError
from binance_sdk_spot.spot import Spot

from makerlab.live.simulated import SimulatedVenue


def run(story, **settings):
    async def main():
        async with SimulatedVenue(seed=1, **settings) as v:
            await asyncio.wait_for(story(v), 60)
    asyncio.run(main())


def sdk(v, kind="ed25519"):
    key, secret = v.key_of("alice", kind)
    who = dict(api_key=key, private_key=secret) if kind == "ed25519" else dict(api_key=key, api_secret=secret)
    ws = v.url.replace("http", "ws")
    return Spot(ConfigurationRestAPI(**who, base_path=v.url, retries=0, timeout=10_000), ConfigurationWebSocketAPI(**who, stream_url=ws + "/ws-api/v3", timeout=10_000),
                ConfigurationWebSocketStreams(stream_url=ws + "/stream"))


async def until(true, timeout=10.0):
    end = asyncio.get_running_loop().time() + timeout
    while not true():
        assert asyncio.get_running_loop().time() < end, "it never came"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["ed25519", "hmac"])
def test_the_official_rest_client(kind):
    async def story(v):
        c = sdk(v, kind).rest_api
        call = lambda f, *a, **k: asyncio.to_thread(lambda: f(*a, **k).data())
        info = await call(c.exchange_info, symbol="BTCUSDT")
        assert info.symbols[0].symbol == "BTCUSDT" and info.rate_limits and info.symbols[0].filters
        book = await call(c.depth, "BTCUSDT", limit=5)
        bid = float(book.bids[0][0])
        assert bid < float(book.asks[0][0]) and book.last_update_id > 0
        made = await call(c.new_order, "BTCUSDT", "BUY", "LIMIT", time_in_force="GTC", quantity=0.01, price=bid - 50, new_client_order_id="sdk-1")
        assert (made.status, made.client_order_id, made.executed_qty) == ("NEW", "sdk-1", "0.00000000")
        assert (await call(c.get_order, "BTCUSDT", orig_client_order_id="sdk-1")).order_id == made.order_id
        assert [o.client_order_id for o in await call(c.get_open_orders, symbol="BTCUSDT")] == ["sdk-1"]
        both = await call(c.order_cancel_replace, "BTCUSDT", "BUY", "LIMIT", "STOP_ON_FAILURE", time_in_force="GTC", quantity=0.02, price=bid - 60,
                          cancel_orig_client_order_id="sdk-1", new_client_order_id="sdk-2")
        assert both.cancel_result == both.new_order_result == "SUCCESS"
        less = await call(c.order_amend_keep_priority, "BTCUSDT", new_qty=0.01, orig_client_order_id="sdk-2")
        assert less.amended_order.qty == "0.01000000"
        gone = await call(c.delete_order, "BTCUSDT", orig_client_order_id="sdk-2")
        assert gone.status == "CANCELED" and gone.orig_client_order_id == "sdk-2"
        took = await call(c.new_order, "BTCUSDT", "SELL", "MARKET", quantity=0.01)
        assert took.status == "FILLED" and took.fills
        trades = await call(c.my_trades, "BTCUSDT")
        assert sum(float(t.qty) for t in trades) == pytest.approx(0.01) and not trades[0].is_buyer
        money = await call(c.get_account)
        assert {b.asset for b in money.balances} == {"BTC", "USDT"} and money.can_trade
        assert v.exchange.truth_position("alice") == {"BTCUSDT": -1000}
        with pytest.raises(BadRequestError, match="Unknown order"):
            await call(c.delete_order, "BTCUSDT", orig_client_order_id="sdk-1")
        v.fault("throttle", seconds=7)
        with pytest.raises(TooManyRequestsError):
            await call(c.get_account)
    run(story)


def test_the_official_stream_client():
    async def story(v):
        c = sdk(v).websocket_streams
        connection = await c.create_connection()
        got = {"depth": [], "trade": [], "agg": [], "ticker": []}
        (await connection.diff_book_depth(symbol="btcusdt", update_speed="100ms")).on("message", got["depth"].append)
        (await connection.trade(symbol="btcusdt")).on("message", got["trade"].append)
        (await connection.agg_trade(symbol="btcusdt")).on("message", got["agg"].append)
        (await connection.book_ticker(symbol="btcusdt")).on("message", got["ticker"].append)
        await until(lambda: all(len(x) >= 3 for x in got.values()), 20)
        for a, b in zip(got["depth"], got["depth"][1:]):
            assert b.U == a.u + 1, "spot ids are contiguous"
        assert all(float(t.b) < float(t.a) for t in got["ticker"]) and all(t.e == "trade" for t in got["trade"])
        await connection.close_connection()
    run(story, speed=4.0)


def test_the_official_websocket_api():
    async def story(v):
        c = sdk(v).websocket_api
        connection = await c.create_connection()
        events = []
        user = await connection.user_data_stream_subscribe_signature()
        user.stream.on("message", events.append)
        bid = v.exchange.markets["BTCUSDT"].depth(1, 1)[0][0] / 100
        answer = await connection.order_place(symbol="BTCUSDT", side="BUY", type="LIMIT", time_in_force="GTC", price=round(bid - 40, 2), quantity=0.01, new_client_order_id="ws-1")
        assert answer.data().result.status == "NEW" and answer.rate_limits
        status = await connection.order_status(symbol="BTCUSDT", orig_client_order_id="ws-1")
        assert status.data().result.client_order_id == "ws-1"
        await connection.order_cancel(symbol="BTCUSDT", orig_client_order_id="ws-1")
        word = lambda e: (getattr(getattr(e, "actual_instance", e), "x", None), getattr(getattr(e, "actual_instance", e), "c", None), getattr(getattr(e, "actual_instance", e), "C", None))
        await until(lambda: any(word(e)[0] == "CANCELED" for e in events))
        new, cancel = next(e for e in events if word(e)[0] == "NEW"), next(e for e in events if word(e)[0] == "CANCELED")
        assert word(new)[1] == "ws-1" and word(cancel)[1] != "ws-1" and word(cancel)[2] == "ws-1", "on a cancel the order's id is in C"
        logon = await connection.session_logon()
        assert logon.data().result.api_key == v.key_of("alice")[0]
        await connection.close_connection()
    run(story)


async def other(v, kind="hmac", **more):
    key, secret = v.key_of("bob", kind)
    who = dict(api_key=key, api_secret=secret) if kind == "hmac" else dict(api_key=key, private_key=secret)
    AsyncClient.API_URL, AsyncClient.FUTURES_URL = v.url + "/api", v.url + "/fapi"
    AsyncClient.WS_API_URL = v.url.replace("http", "ws") + "/ws-api/v3"
    return AsyncClient(**who, **more)


@pytest.fixture(autouse=True)
def real_addresses():
    names = ("API_URL", "FUTURES_URL", "WS_API_URL")
    before = {n: getattr(AsyncClient, n) for n in names}
    socket = BinanceSocketManager.STREAM_URL, BinanceSocketManager.FSTREAM_URL
    yield
    for n, x in before.items():
        setattr(AsyncClient, n, x)
    BinanceSocketManager.STREAM_URL, BinanceSocketManager.FSTREAM_URL = socket


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_python_binance_on_spot(kind):
    async def story(v):
        c = await other(v, kind)
        try:
            await c.ping()
            book = await c.get_order_book(symbol="BTCUSDT", limit=5)
            bid = book["bids"][0][0]
            made = await c.create_order(symbol="BTCUSDT", side="BUY", type="LIMIT", timeInForce="GTC", quantity="0.01", price=f"{float(bid) - 30:.2f}")
            assert made["status"] == "NEW"
            assert [o["orderId"] for o in await c.get_open_orders(symbol="BTCUSDT")] == [made["orderId"]]
            gone = await c.cancel_order(symbol="BTCUSDT", orderId=made["orderId"])
            assert gone["status"] == "CANCELED" and gone["origClientOrderId"] == made["clientOrderId"]
            with pytest.raises(BinanceAPIException) as e:
                await c.create_order(symbol="BTCUSDT", side="BUY", type="LIMIT_MAKER", quantity="0.01", price=f"{float(bid) + 100:.2f}")
            assert e.value.code == -2010 and "immediately match" in e.value.message
            assert (await c.order_market_buy(symbol="BTCUSDT", quantity="0.01"))["status"] == "FILLED"
            assert {b["asset"] for b in (await c.get_account())["balances"]} == {"BTC", "USDT"}
        finally:
            await c.close_connection()
    run(story)


def test_python_binance_streams():
    async def story(v):
        c = await other(v)
        BinanceSocketManager.STREAM_URL = v.url.replace("http", "ws") + "/"
        manager = BinanceSocketManager(c)
        try:
            async with manager.depth_socket("BTCUSDT", interval=100) as depth, manager.user_socket() as user:
                first, second = await depth.recv(), await depth.recv()
                assert second["U"] == first["u"] + 1
                await c.order_market_sell(symbol="BTCUSDT", quantity="0.01")
                words = [(await user.recv()) for _ in range(4)]
                assert [w.get("x") for w in words if w["e"] == "executionReport"] == ["NEW", "TRADE"]
        finally:
            await c.close_connection()
    run(story)


def test_python_binance_on_futures():
    async def story(v):
        c = await other(v)
        BinanceSocketManager.FSTREAM_URL = v.url.replace("http", "ws") + "/"
        manager = BinanceSocketManager(c)
        try:
            info = await c.futures_exchange_info()
            assert info["symbols"][0]["contractType"] == "PERPETUAL"
            bid = (await c.futures_order_book(symbol="BTCUSDT", limit=5))["bids"][0][0]
            async with manager.futures_user_socket() as user:
                made = await c.futures_create_order(symbol="BTCUSDT", side="BUY", type="LIMIT", timeInForce="GTX", quantity="0.01", price=f"{float(bid) - 30:.2f}")
                assert made["status"] == "NEW" and made["positionSide"] == "BOTH"
                moved = await c.futures_modify_order(symbol="BTCUSDT", side="BUY", orderId=made["orderId"], quantity="0.02", price=f"{float(bid) - 20:.2f}")
                assert moved["origQty"] == "0.02000" and moved["orderId"] == made["orderId"]
                await c.futures_cancel_order(symbol="BTCUSDT", orderId=made["orderId"])
                await c.futures_create_order(symbol="BTCUSDT", side="SELL", type="MARKET", quantity="0.01")
                words = []
                while "ACCOUNT_UPDATE" not in [w["e"] for w in words]:
                    words.append(await user.recv())
                assert [w["o"]["x"] for w in words if w["e"] == "ORDER_TRADE_UPDATE"][:3] == ["NEW", "AMENDMENT", "CANCELED"]
            (position,) = await c.futures_position_information(symbol="BTCUSDT")
            assert position["positionAmt"] == "-0.01000"
            await c.futures_countdown_cancel_all(symbol="BTCUSDT", countdownTime=60_000)
            assert float((await c.futures_account_balance())[0]["balance"]) == 1_000_000
        finally:
            await c.close_connection()
    run(story, market="usdm")
