"The venue's protocol: documented signatures, messages under fuzz, exact numbers, filters that every quote passes, outcomes by the table."
import base64
import json
import os
import pickle
from decimal import Decimal

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings, strategies as st

from makerlab.core import DataError, ParameterError
from makerlab.live import protocol as p
from makerlab.live.protocol import (AccountUpdate, AggTrade, Answer, BookTicker, DepthDiff, Ed25519Signer, ExecutionReport, FeedError, Filters, Grid, HmacSigner, Hosts,
                                    Keys, Notice, OrderTradeUpdate, Secret, Snapshot, Trade, classify, decode, format_price, format_qty, load_keys, rate_limits, signed_query,
                                    stream_name, subscribe, ws_api_params)

API_KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"  # the example key of Binance's documents
SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
ORDER = dict(side="BUY", type="LIMIT", timeInForce="GTC", quantity="1", price="0.1")


# ---- signatures
@pytest.mark.parametrize("symbol, signature", [("LTCBTC", "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"),
                                               ("１２３４５６", "e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3")])
def test_documented_rest_signatures(symbol, signature):
    query = signed_query(dict(symbol=symbol, **ORDER), HmacSigner(SECRET), 1499827319559)
    assert query.endswith("&recvWindow=5000&timestamp=1499827319559&signature=" + signature) and query.isascii()


@pytest.mark.parametrize("params, window, signature", [
    (dict(symbol="BTCUSDT", side="SELL", type="LIMIT", timeInForce="GTC", quantity="0.01000000", price="52000.00", newOrderRespType="ACK"), 100,
     "cc15477742bd704c29492d96c7ead9414dfd8e0ec4a00f947bb5bb454ddbd08a"),
    (dict(symbol="BTCUSDT", side="SELL", type="LIMIT", timeInForce="GTC", quantity="0.01000000", price="52000.00"), 100,
     "aa1b5712c094bc4e57c05a1a5c1fd8d88dcd628338ea863fec7b88e59fe2db24"),
    (dict(symbol="１２３４５６", side="BUY", type="LIMIT", timeInForce="GTC", quantity="1.00000000", price="0.10000000"), 5000,
     "b33892ae8e687c939f4468c6268ddd4c40ac1af18ad19a064864c47bae0752cd")])
def test_documented_websocket_signatures(params, window, signature):
    assert ws_api_params(params | {"apiKey": API_KEY}, HmacSigner(SECRET), 1645423376532, window)["signature"] == signature


def pem(raw=None):
    key = ed25519.Ed25519PrivateKey.generate() if raw is None else ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(raw))
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), key.public_key()


@pytest.mark.parametrize("private, message, signature", [  # RFC 8032, 7.1, tests 1 and 2 (Binance publishes no private key)
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "r",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00")])
def test_published_ed25519_signatures(private, message, signature):
    assert base64.b64decode(Ed25519Signer(pem(private)[0]).sign(message)).hex() == signature


def test_ed25519_requests_verify_and_are_escaped():
    text, public = pem()
    query = signed_query(dict(symbol="BTCUSDT", **ORDER), Ed25519Signer(text), 1, 0)
    payload, _, signature = query.partition("&signature=")
    assert "recvWindow" not in payload and not set("+/=") & set(signature)
    from urllib.parse import unquote
    public.verify(base64.b64decode(unquote(signature)), payload.encode())
    out = ws_api_params({"symbol": "B", "apiKey": "k", "quantity": Decimal("1E-5"), "flag": True, "none": None}, Ed25519Signer(text), 1, 0)
    assert list(out) == ["apiKey", "flag", "quantity", "symbol", "timestamp", "signature"] and out["quantity"] == "0.00001"
    public.verify(base64.b64decode(out["signature"]), b"apiKey=k&flag=true&quantity=0.00001&symbol=B&timestamp=1")


def test_floats_and_wild_windows_are_not_signed():
    for make in (signed_query, ws_api_params):
        with pytest.raises(ParameterError, match="exponent"):
            make({"price": 1e-7}, HmacSigner("s"), 1)
    with pytest.raises(ParameterError):
        signed_query({}, HmacSigner("s"), 1, 70_000)


# ---- secrets
def test_secrets_do_not_show_themselves():
    s, text = Secret("hunter2secret"), pem()[0]
    keys = Keys("my-api-key", HmacSigner("hunter2secret"))
    for x in (s, keys, keys.signer, Ed25519Signer(text), [s], {"a": s}):
        assert "hunter2" not in f"{x!r}{x!s}{x}" and "my-api-key" not in f"{x!r}{x}" and "MC4CAQ" not in f"{x!r}"
    with pytest.raises(TypeError):
        pickle.dumps(s)
    with pytest.raises(TypeError):
        hash(s)
    assert s == Secret("hunter2secret") and s != Secret("x") and s != "hunter2secret" and s.reveal() == "hunter2secret"
    with pytest.raises(ParameterError):
        Secret("")


def test_keys_come_from_the_environment_or_a_private_file(tmp_path):
    text, public = pem()
    assert load_keys("BINANCE", environ={"BINANCE_API_KEY": "k", "BINANCE_API_SECRET": "s"}).kind == "hmac"
    assert load_keys("BINANCE", environ={"BINANCE_API_KEY": "k", "BINANCE_PRIVATE_KEY": text.replace("\n", "\\n")}).kind == "ed25519"
    keyfile, conf = tmp_path / "key.pem", tmp_path / "keys.conf"
    keyfile.write_text(text)
    conf.write_text("# mine\napi_key = abc\nprivate_key_file = key.pem\n")
    for f in (conf, keyfile):
        f.chmod(0o600)
    keys = load_keys(conf)
    public.verify(base64.b64decode(keys.signer.sign("x")), b"x")
    assert keys.api_key == "abc" and load_keys(str(conf)).kind == "ed25519"
    for f in (conf, keyfile):
        for mode in (0o644, 0o640, 0o604, 0o610):
            f.chmod(mode)
            with pytest.raises(ParameterError, match=f"{mode:04o}.*chmod 600"):
                load_keys(conf)
        f.chmod(0o600)


@pytest.mark.parametrize("environ", [{}, {"B_API_KEY": "k"}, {"B_API_SECRET": "s"}, {"B_API_KEY": "k", "B_API_SECRET": "s", "B_PRIVATE_KEY": "x"}])
def test_half_a_key_is_refused(environ):
    with pytest.raises(ParameterError, match="api_key and one of"):
        load_keys("B", environ=environ)


def test_wrong_keys_and_files_are_refused_without_showing_them(tmp_path):
    wrong = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for text in (wrong, "no pem SECRETTEXT"):
        with pytest.raises(ParameterError, match="openssl genpkey") as e:
            Ed25519Signer(text)
        assert "SECRETTEXT" not in str(e.value) and e.value.__cause__ is None
    with pytest.raises(ParameterError, match="cannot be opened"):
        load_keys(tmp_path / "none")
    f = tmp_path / "k"
    f.write_text("api_key = a\napi_secret = SECRETTEXT\nmore = 1\n")
    os.chmod(f, 0o600)
    with pytest.raises(ParameterError) as e:
        load_keys(f)
    assert "SECRETTEXT" not in str(e.value)


def test_a_private_key_given_as_the_keys_file_is_not_shown(tmp_path):
    f = tmp_path / "key.pem"  # lines of base64 that end in = look like names
    f.write_text("-----BEGIN PRIVATE" " KEY-----\nSECRETTEXTSECRETTEXT==\nc2VjcmV0c2VjcmV0=x\n-----END PRIVATE KEY-----\n")
    os.chmod(f, 0o600)
    with pytest.raises(ParameterError, match="gives none of them and 2 other lines") as e:
        load_keys(f)
    assert "SECRETTEXT" not in str(e.value) and "c2Vj" not in str(e.value)
    f.write_text("api_key = a\nSECRETTEXT=1==\nSECRETTEXT2=2\n")
    with pytest.raises(ParameterError, match="gives api_key and 2 other lines") as e:
        load_keys(f)
    assert "SECRETTEXT" not in str(e.value)
    with pytest.raises(ParameterError, match="cannot be opened"):
        load_keys(tmp_path)


# ---- messages, as in the documents
DEPTH = {"e": "depthUpdate", "E": 1672515782136, "s": "BNBBTC", "U": 157, "u": 160, "b": [["0.0024", "10"]], "a": [["0.0026", "100"]]}
USDM_DEPTH = {**DEPTH, "T": 1672515782130, "pu": 149}
AGG = {"e": "aggTrade", "E": 1672515782136, "s": "BNBBTC", "a": 12345, "p": "0.001", "q": "100", "f": 100, "l": 105, "T": 1672515782136, "m": True, "M": True}
TRADE = {"e": "trade", "E": 1672515782136, "s": "BNBBTC", "t": 12345, "p": "0.001", "q": "100", "T": 1672515782136, "m": False, "M": True}
TICKER = {"u": 400900217, "s": "BNBUSDT", "b": "25.35190000", "B": "31.21000000", "a": "25.36520000", "A": "40.66000000"}
PARTIAL = {"lastUpdateId": 160, "bids": [["0.0024", "10"]], "asks": [["0.0026", "100"]]}
REPORT = {"e": "executionReport", "E": 1499405658658, "s": "ETHBTC", "c": "mUvoqJxFIILMdfAW5iGSOW", "S": "BUY", "o": "LIMIT", "f": "GTC", "q": "1.00000000", "p": "0.10264410", "P": "0.00000000",
          "F": "0.00000000", "g": -1, "C": "", "x": "NEW", "X": "NEW", "r": "NONE", "i": 4293153, "l": "0.00000000", "z": "0.00000000", "L": "0.00000000", "n": "0", "N": None, "T": 1499405658657,
          "t": -1, "v": 3, "I": 8641984, "w": True, "m": False, "M": False, "O": 1499405658657, "Z": "0.00000000", "Y": "0.00000000", "Q": "0.00000000", "W": 1499405658657, "V": "NONE"}
UPDATE = {"e": "ORDER_TRADE_UPDATE", "E": 1568879465651, "T": 1568879465650, "o": {
    "s": "BTCUSDT", "c": "TEST", "S": "SELL", "o": "LIMIT", "f": "GTX", "q": "0.010", "p": "7000.1", "ap": "7000.1", "sp": "0", "x": "TRADE", "X": "PARTIALLY_FILLED", "i": 8886774, "l": "0.004",
    "z": "0.004", "L": "7000.1", "N": "USDT", "n": "-0.0056", "T": 1568879465650, "t": 77, "b": "0", "a": "9.91", "m": True, "R": True, "wt": "CONTRACT_PRICE", "ot": "LIMIT", "ps": "BOTH", "cp": False,
    "rp": "-1.25", "pP": False, "si": 0, "ss": 0, "V": "EXPIRE_TAKER", "pm": "NONE", "gtd": 0}}


def test_messages_of_the_documents():
    d = decode(json.dumps(DEPTH), market="spot")
    assert d == DepthDiff("BNBBTC", 157, 160, -1, [(240_000, 10**9)], [(260_000, 10**10)], 1672515782136 * 10**6, 1672515782136 * 10**6)
    assert decode(json.dumps({"stream": "bnbbtc@depth", "data": DEPTH}).encode(), market="spot") == d
    f = decode(json.dumps(USDM_DEPTH), market="usdm")
    assert (f.previous, f.time_ns, f.event_ns) == (149, 1672515782130 * 10**6, 1672515782136 * 10**6)
    a, t = decode(json.dumps(AGG), market="spot"), decode(json.dumps(TRADE), market="usdm")
    assert isinstance(a, AggTrade) and (a.side, a.price, a.first_trade, a.last_trade) == (-1, 100_000, 100, 105), "m true: the buyer waited, the seller took"
    assert isinstance(t, Trade) and (t.side, t.qty) == (1, 10**10)
    assert decode(json.dumps(TICKER), market="spot") == BookTicker("BNBUSDT", 400900217, 2535190000, 3121000000, 2536520000, 4066000000, -1)
    assert decode(json.dumps({**TICKER, "e": "bookTicker", "E": 5, "T": 4}), market="usdm").time_ns == 4 * 10**6
    assert decode(json.dumps(PARTIAL), market="spot").symbol == "" and decode(json.dumps({"stream": "bnbbtc@depth5", "data": PARTIAL}), market="spot").symbol == "BNBBTC"
    assert decode('{"e":"serverShutdown","E":1770123456789}', market="spot") == Notice("serverShutdown", 1770123456789 * 10**6)
    assert decode('{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}', market="spot").kind == "serverShutdown"
    assert decode('{"result":null,"id":1}', market="spot") == Answer(1)
    assert decode('{"code":-1121,"msg":"Invalid symbol."}', market="spot") == Answer(None, 400, None, -1121, "Invalid symbol.")
    w = decode('{"id":"x","status":429,"error":{"code":-1003,"msg":"slow","data":{"serverTime":1,"retryAfter":9}},"rateLimits":[]}', market="spot")
    assert (w.id, w.status, w.code, w.retry_after_ms, w.rate_limits) == ("x", 429, -1003, 9, [])
    us = decode(json.dumps({**DEPTH, "E": 1672515782136001}), market="spot")
    assert us.event_ns == 1672515782136001000, "microseconds are told from milliseconds"


def test_an_orders_news():
    r = decode(json.dumps({"subscriptionId": 0, "event": REPORT}), market="spot")
    assert isinstance(r, ExecutionReport) and (r.client_id, r.exec_type, r.trade_id, r.price, r.time_ns) == ("mUvoqJxFIILMdfAW5iGSOW", "NEW", -1, 10264410, 1499405658657 * 10**6)
    c = decode(json.dumps({**REPORT, "x": "CANCELED", "X": "CANCELED", "c": "the-cancel", "C": "the-order"}), market="spot")
    assert (c.client_id, c.request_id) == ("the-order", "the-cancel"), "on a cancel the order's name is in C"
    u = decode(json.dumps(UPDATE), market="usdm")
    assert isinstance(u, OrderTradeUpdate) and (u.client_id, u.side, u.last_qty, u.trade_id, u.maker, u.reduce_only) == ("TEST", -1, 400_000, 77, True, True)
    assert (u.fee, u.realized, u.event_ns) == (Decimal("-0.0056"), Decimal("-1.25"), 1568879465651 * 10**6)
    assert decode(json.dumps({**UPDATE, "o": {**UPDATE["o"], "t": 0, "x": "NEW", "l": "0", "L": "0", "z": "0"}}), market="usdm").trade_id == -1


def test_account_news():
    a = decode('{"e":"outboundAccountPosition","E":1564034571105,"u":1564034571073,"B":[{"a":"ETH","f":"10000.000000","l":"0.5"}]}', market="spot")
    assert a == AccountUpdate(balances={"ETH": (Decimal(10000), Decimal("0.5"))}, time_ns=1564034571105 * 10**6)
    b = decode('{"e":"balanceUpdate","E":1573200697110,"a":"BTC","d":"-100.0","T":1573200697068}', market="spot")
    assert b.balances["BTC"][0] == -100 and b.reason == "balanceUpdate"
    f = decode('{"e":"ACCOUNT_UPDATE","E":2,"T":1,"a":{"m":"ORDER","B":[{"a":"USDT","wb":"122.6","cw":"100","bc":"0"}],"P":[{"s":"BTCUSDT","pa":"-0.5","ep":"1"}]}}', market="usdm")
    assert f.positions == {"BTCUSDT": Decimal("-0.5")} and f.balances["USDT"][0] == Decimal("122.6") and f.reason == "ORDER"


REFUSED = [
    ({**DEPTH, "b": [["NaN", "1"]]}, "nan"), ({**DEPTH, "b": [["1", "-Infinity"]]}, "nan"), ({**DEPTH, "b": [["-1", "1"]]}, "negative"), ({**DEPTH, "b": [["0", "1"]]}, "zero"),
    ({**DEPTH, "b": [["1e400", "1"]]}, "number"), ({**DEPTH, "b": [["1_0", "1"]]}, "number"), ({**DEPTH, "b": [["+1", "1"]]}, "number"), ({**DEPTH, "b": [["٣", "1"]]}, "number"),
    ({**DEPTH, "b": [["0.000000001", "1"]]}, "number"), ({**DEPTH, "b": [["9" * 30, "1"]]}, "range"), ({**DEPTH, "b": [["9" * 5000, "1"]]}, "range"), ({**DEPTH, "b": [[1.0, "1"]]}, "shape"),
    ({**DEPTH, "b": [["1"]]}, "shape"), ({**DEPTH, "U": -1}, "shape"), ({**DEPTH, "U": 2**70}, "shape"), ({**DEPTH, "U": 161}, "order"), ({**DEPTH, "U": "157"}, "shape"),
    ({k: v for k, v in DEPTH.items() if k != "u"}, "shape"), ({**DEPTH, "s": ""}, "shape"), ({**DEPTH, "E": 2**63 - 1}, "time"), (USDM_DEPTH, "market"), ({**TRADE, "p": "0"}, "zero"), ({**TRADE, "m": 1}, "shape"),
    ({**AGG, "l": 1}, "order"), ({**TICKER, "b": "26"}, "crossed"), ({**TICKER, "b": "25.36520000"}, "crossed"), ({**TICKER, "b": "0"}, "zero"), ({**PARTIAL, "bids": [["0.0026", "1"]]}, "crossed"),
    ({**PARTIAL, "bids": [["0.0026", "0"]]}, "zero"), ({**REPORT, "S": "HOLD"}, "shape"), ({**REPORT, "z": "2"}, "order"), ({**REPORT, "n": "NaN"}, "nan"), ({**REPORT, "n": "x"}, "number"),
    ({"e": "kline"}, "kind"), ({}, "kind"), ([], "shape"), (None, "shape"), ("x", "shape"), (5, "shape"), ({"e": 5}, "shape"), ({"stream": "a", "data": {"stream": "b", "data": {"stream": "c", "data": DEPTH}}}, "kind")]


@pytest.mark.parametrize("message, reason", REFUSED)
def test_what_is_refused_and_why(message, reason):
    with pytest.raises(FeedError) as e:
        decode(json.dumps(message), market="spot")
    assert e.value.reason == reason and reason in p.REASONS and isinstance(e.value, DataError)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"e":"trade"}x', "[" * 20_000, "{" * 5000, '{"a":' * 5000, b'{"e":"\xff"}', "nan", '{"id":1e999}', '"\ud800"', b"\x00", '{"e":"depthUpdate","s":"\\ud800"}'])
def test_broken_json_is_refused(raw):
    with pytest.raises(FeedError) as e:
        decode(raw, market="spot")
    assert e.value.reason in ("json", "shape", "kind")


def test_a_usdm_change_without_pu_is_of_the_other_market():
    with pytest.raises(FeedError) as e:
        decode(json.dumps(DEPTH), market="usdm")
    assert e.value.reason == "market"


SEEDS = [DEPTH, USDM_DEPTH, AGG, TRADE, TICKER, PARTIAL, REPORT, UPDATE, {"result": None, "id": 1}, {"e": "listenKeyExpired", "E": 1, "listenKey": "k"}, {"stream": "bnbbtc@depth", "data": DEPTH},
         {"e": "outboundAccountPosition", "E": 1, "B": [{"a": "ETH", "f": "1", "l": "0"}]}, {"e": "ACCOUNT_UPDATE", "E": 2, "T": 1, "a": {"B": [], "P": []}}]
odd = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["NaN", "-1", "1e400", "", "0", "9" * 50, "0x1", "1.", ".5", " 1 "]), st.lists(st.text(max_size=3), max_size=3),
                st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))


def paths(x, at=()):
    yield at
    for k in (x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ()):
        yield from paths(x[k], (*at, k))


def changed(x, path, value):
    if not path:
        return value
    x = dict(x) if isinstance(x, dict) else list(x)
    x[path[0]] = changed(x[path[0]], path[1:], value)
    return x


def numbers(m):
    "All integers that a decoded message holds."
    for k in m.__struct_fields__:
        v = getattr(m, k)
        yield from (n for row in v for n in row) if k in ("bids", "asks") else ([v] if isinstance(v, int) else [])


def survives(raw):
    for market in p.MARKETS:
        try:
            m = decode(raw, market=market)
        except FeedError as e:
            assert e.reason in p.REASONS
            continue
        if not isinstance(m, Answer):
            assert all(-1 <= n < 2**63 for n in numbers(m) if not isinstance(m, (ExecutionReport, AccountUpdate)))
        if isinstance(m, (Trade, AggTrade)):
            assert m.price > 0 and m.qty > 0
        if isinstance(m, BookTicker) and m.bid and m.ask:
            assert m.bid < m.ask
        if isinstance(m, Snapshot) and m.bids and m.asks:
            assert max(m.bids) < min(m.asks)


@settings(max_examples=200)
@given(st.data())
def test_fuzz_one_field_replaced(data):
    seed = data.draw(st.sampled_from(SEEDS))
    for _ in range(data.draw(st.integers(1, 2))):
        seed = changed(seed, data.draw(st.sampled_from(list(paths(seed)))), data.draw(odd))
    survives(json.dumps(seed))


@settings(max_examples=150)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=6), st.integers(0, 700))
def test_fuzz_bytes_flipped_and_cut(seed, flips, cut):
    raw = bytearray(json.dumps(seed).encode())
    for at, byte in flips:
        raw[at % len(raw)] = byte
    survives(bytes(raw[:cut] if cut < len(raw) else raw))


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_fuzz_anything(raw): survives(raw)


# ---- numbers
@given(st.integers(0, 8), st.sampled_from([1, 2, 5, 25]), st.integers(0, 10**9))
def test_ticks_are_exact_both_ways(places, step, n):
    grid = Grid(Decimal(step).scaleb(-places), Decimal(1).scaleb(-places))
    text = format_price(n, grid)
    assert Decimal(text) == grid.tick * n and "e" not in text.lower() and grid.ticks(int(Decimal(text).scaleb(8))) == n
    assert Decimal(format_qty(n, grid)) == grid.lot * n and grid.lots(int((grid.lot * n).scaleb(8))) == n
    if grid.tick_units > 1:
        with pytest.raises(FeedError, match="off-grid"):
            grid.ticks(grid.tick_units * n + 1)


def test_texts_of_grids():
    g = Grid("0.01000000", "0.00001000")
    assert (format_price(6183763, g), format_price(5, g), format_qty(1, g), format_qty(10**9, g), format_price(-5, g)) == ("61837.63", "0.05", "0.00001", "10000.00000", "-0.05")
    assert format_price(3, Grid("5", "1")) == "15" and format_price(3, Grid("0.25", "1")) == "0.75"
    for bad in ("0", "-1", "0.000000001", "x", 0.01, "NaN", "Infinity", None, "1e30"):
        with pytest.raises(ParameterError):
            Grid(bad, "1")


def test_the_memory_of_texts_is_bounded():
    for i in range(p._REMEMBERED + 5):
        p._UNITS[f"{i}.5"]
    assert len(p._UNITS) <= p._REMEMBERED


# ---- filters
def info(**changes):
    filters = {"PRICE_FILTER": dict(minPrice="0.01000000", maxPrice="1000000.00000000", tickSize="0.01000000"), "LOT_SIZE": dict(minQty="0.00001000", maxQty="9000.00000000", stepSize="0.00001000"),
               "NOTIONAL": dict(minNotional="5.00000000", applyMinToMarket=True, maxNotional="9000000.00000000"),
               "PERCENT_PRICE_BY_SIDE": dict(bidMultiplierUp="5", bidMultiplierDown="0.2", askMultiplierUp="4", askMultiplierDown="0.5"), "MAX_NUM_ORDERS": dict(maxNumOrders=200)}
    for k, v in changes.items():
        if v is None:
            del filters[k]
        else:
            filters[k] = {**filters.get(k, {}), **v}
    return {"rateLimits": [{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000}, {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 100}],
            "symbols": [{"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "orderTypes": ["LIMIT", "LIMIT_MAKER"],
                         "filters": [{"filterType": k, **v} for k, v in filters.items()]}]}


def test_filters_are_read_and_checked():
    f = Filters.from_exchange_info(info(), "btcusdt")
    assert (f.min_ticks, f.max_ticks, f.min_lots, f.max_lots, f.max_orders, f.base) == (1, 10**8, 1, 9 * 10**8, 200, "BTC")
    i = f.instrument()
    assert (i.symbol, i.tick_size, i.lot_size, i.kind) == ("BTCUSDT", 0.01, 0.00001, "spot")
    ok = (6_000_000, 100)
    assert f.check(*ok, ref=6_000_000) == "" and f.check(*ok, ref=0) == ""
    for ticks, lots, word in ((0, 100, "PRICE_FILTER"), (10**8 + 1, 100, "PRICE_FILTER"), (6_000_000, 0, "LOT_SIZE"), (6_000_000, 9 * 10**8 + 1, "LOT_SIZE"), (6_000_000, 8, "NOTIONAL"), (10**8, 10**6, "NOTIONAL")):
        assert f.check(ticks, lots) == word
    assert f.check(6_000_000, 9) == "", "0.54 more than 5 would be 9 lots at 60000: 5.40 USDT"
    assert f.check(1_100_000, 100, ref=6_000_000, side=1) == "PERCENT_PRICE" and f.check(1_300_000, 100, ref=6_000_000, side=1) == ""
    assert f.check(2_900_000, 100, ref=6_000_000, side=-1) == "PERCENT_PRICE" and f.check(2_900_000, 100, ref=6_000_000) == "PERCENT_PRICE"
    assert [(r.kind, r.window_ns, r.limit, r.header) for r in rate_limits(info())] == [("REQUEST_WEIGHT", 60 * 10**9, 6000, "x-mbx-used-weight-1m"), ("ORDERS", 10**10, 100, "x-mbx-order-count-10s")]


def test_filters_of_futures_and_switched_off_bounds():
    row = info(PRICE_FILTER=dict(minPrice="0", maxPrice="0"), NOTIONAL=None, MIN_NOTIONAL=dict(notional="100"), PERCENT_PRICE_BY_SIDE=None, PERCENT_PRICE=dict(multiplierUp="1.05", multiplierDown="0.95"),
               MAX_NUM_ORDERS=dict(maxNumOrders=0, limit=180))
    row["symbols"][0]["contractType"] = "PERPETUAL"
    f = Filters.from_exchange_info(row, "BTCUSDT")
    assert (f.market, f.min_ticks, f.max_ticks, f.min_notional, f.max_orders) == ("usdm", 0, 0, 100, 180) and f.instrument().kind == "future"
    assert f.check(6_400_000, 1000, ref=6_000_000) == "PERCENT_PRICE" and f.check(6_000_000, 166) == "NOTIONAL" and f.check(6_000_000, 167) == ""


def test_wrong_symbols_and_broken_lists_are_refused():
    with pytest.raises(ParameterError, match="there are BTCUSDT"):
        Filters.from_exchange_info(info(), "BTCUSD")
    for bad in ({}, [], {"symbols": 5}, {"symbols": [{}]}):
        with pytest.raises(DataError):
            Filters.from_exchange_info(bad, "BTCUSDT")
    with pytest.raises(DataError, match="no PRICE_FILTER"):
        Filters.from_exchange_info(info(PRICE_FILTER=None), "BTCUSDT")
    with pytest.raises(DataError, match="minQty"):
        Filters.from_exchange_info(info(LOT_SIZE=dict(minQty="NaN")), "BTCUSDT")
    for bad in ({}, {"rateLimits": [{"rateLimitType": "X"}]}, {"rateLimits": 5}):
        with pytest.raises(DataError):
            rate_limits(bad)


@settings(max_examples=150)
@given(st.integers(2_000, 20_000_000), st.integers(1, 400), st.integers(-40, 40), st.floats(0.0, 5.0), st.integers(1, 4), st.floats(0.5, 30), st.floats(0, 0.5), st.sampled_from(["single", "skewed", "layered"]))
def test_every_order_that_the_quoting_engine_emits_passes_the_filters(bid, spread, inventory, sigma, levels, half, taper, style):
    from makerlab.execution.venue import TopOfBook
    from makerlab.models.quote_engine import QuoteConfig, QuoteEngine, Size, Skew
    f = Filters.from_exchange_info(info(), "BTCUSDT")
    lots = 2 * f.smallest_lots(max(1, bid - 200))  # a taper of a half leaves the smallest order that the venue takes
    c = QuoteConfig(style=style, max_half_spread_ticks=200, half_spread_ticks=half, levels=max(2, levels) if style == "layered" else 1, level_step_ticks=3, max_inventory_lots=50 * lots, size=Size(lots=lots, taper=taper), skew=Skew() if style == "single" else Skew(shape="linear", ticks=5))
    engine = QuoteEngine(c, tick_size=float(f.grid.tick), lot_size=float(f.grid.lot), symbol="BTCUSDT")
    top = TopOfBook("BTCUSDT", bid, bid + spread, 10_000, 10_000, 1, 1, sigma)
    quotes = engine.quotes_top(top, None, inventory_lots=inventory * lots, sigma=sigma, now_ns=1)
    for q in quotes:
        assert f.check(q.price_ticks, q.qty_lots, ref=bid + spread / 2, side=q.side) == "", q
        price, qty = Decimal(format_price(q.price_ticks, f.grid)), Decimal(format_qty(q.qty_lots, f.grid))
        assert price % f.grid.tick == 0 and qty % f.grid.lot == 0 and price * qty >= f.min_notional
    assert quotes or abs(inventory) >= 40 or engine.refused


# ---- outcomes
@pytest.mark.parametrize("status, code, message, kind, definitive", [
    (200, 0, "", "ok", True), (0, 0, "", "unknown", False), (503, 0, "Unknown error, please check your request or try again later.", "unknown", False), (503, 0, "Service Unavailable.", "overloaded", True),
    (504, -1007, "Timeout waiting for response from backend server. Send status unknown; execution status unknown.", "unknown", False), (400, -1006, "", "unknown", False), (500, 0, "", "unknown", False),
    (503, -1008, "", "overloaded", True), (400, -1021, "Timestamp for this request is outside of the recvWindow.", "clock", True), (401, -2015, "", "keys", True), (400, -1022, "", "keys", True), (400, -2014, "", "keys", True),
    (429, -1003, "Too much request weight used", "throttled", True), (429, -1015, "Too many new orders", "order-limit", True), (429, 0, "", "throttled", True), (418, -1003, "", "banned", True), (403, 0, "", "banned", True),
    (400, -1013, "Filter failure: PRICE_FILTER", "filter", True), (400, -1111, "", "filter", True), (400, -2010, "Order would immediately match and take.", "would-take", True),
    (400, -2010, "Account has insufficient balance for requested action.", "balance", True), (400, -2010, "Duplicate order sent.", "duplicate", False), (400, -2010, "Market is closed.", "closed", True),
    (400, -2010, "whatever", "rejected", True), (400, -2011, "Unknown order sent.", "cancel-rejected", False), (400, -2013, "Order does not exist.", "no-order", False), (409, -2021, "", "partial", False),
    (400, -2021, "Order would immediately trigger.", "rejected", True), (400, -2022, "", "rejected", True), (400, -1125, "", "listen-key", True), (400, -2019, "", "balance", True), (400, -5022, "", "would-take", True),
    (400, -4164, "", "filter", True), (400, -1102, "", "rejected", True), (408, 0, "", "unknown", False), (200, -1003, "", "throttled", True)])
def test_outcomes(status, code, message, kind, definitive):
    o = classify(status, code, message)
    assert (o.kind, o.definitive) == (kind, definitive) and o.action and o.kind in p.OUTCOMES


def test_waits_and_bans():
    assert classify(429, -1003, "x", retry_after_s="7").retry_after_s == 7.0 and classify(429, -1003).retry_after_s == 60.0 and classify(429, -1003, retry_after_s="soon").retry_after_s == 60.0
    o = classify(418, -1003, "Way too much request weight used; IP banned until 1659146400000. Please use WebSocket Streams", now_ms=1659146400000 - 5000)
    assert (o.kind, o.banned_until_ms, o.retry_after_s) == ("banned", 1659146400000, 5.0)
    assert classify(418, -1003, retry_after_s=30, now_ms=1000).banned_until_ms == 31_000 and classify(418).retry_after_s == 120.0
    for wait in ("inf", "1e300", float("nan"), 31 * 86_400, -3):
        for status in (418, 403):
            o = classify(status, retry_after_s=wait, now_ms=1000)  # a wait that nobody can mean is not told
            assert (o.kind, o.retry_after_s, o.banned_until_ms) == ("banned", 120.0, 121_000), wait


@given(st.integers(-5, 600), st.integers(-9999, 9999), st.text(max_size=40), st.one_of(st.none(), st.text(max_size=5), st.floats()), st.integers(0, 2**41))
def test_any_answer_has_an_outcome_and_5xx_is_never_a_reject(status, code, message, wait, now_ms):
    o = classify(status, code, message, retry_after_s=wait, now_ms=now_ms)
    assert o.kind in p.OUTCOMES and 0 <= o.retry_after_s < float("inf")
    if status >= 500 and code != -1008 and not message.lower().startswith("service unavailable"):
        assert not o.definitive


# ---- names and hosts
def test_names_and_hosts():
    assert stream_name("BTCUSDT", "depth") == "btcusdt@depth@100ms" and stream_name("BTCUSDT", "aggTrade") == "btcusdt@aggTrade"
    assert json.loads(subscribe(["a"], 3)) == {"method": "SUBSCRIBE", "params": ["a"], "id": 3}
    with pytest.raises(ParameterError):
        stream_name("X", "kline")
    assert [Hosts.preset(n).practice for n in p.HOSTS] == [n not in ("spot", "usdm") for n in p.HOSTS]
    assert Hosts.preset("usdm").socket("aggTrade") == "wss://fstream.binance.com/market" and Hosts.preset("usdm").socket("depth").endswith("/public") and Hosts.preset("spot").socket("depth").endswith(":9443")
    h = Hosts.local("http://127.0.0.1:8080/", market="usdm")
    assert (h.rest, h.api, h.socket("user"), h.ws_api) == ("http://127.0.0.1:8080", "/fapi/v1", "ws://127.0.0.1:8080/private", "") and Hosts.local("https://x").ws_api == "wss://x/ws-api/v3"
    for bad in (lambda: Hosts.preset("x"), lambda: Hosts.local("ftp://x"), lambda: Hosts.local("http://x", market="x")):
        with pytest.raises(ParameterError):
            bad()
