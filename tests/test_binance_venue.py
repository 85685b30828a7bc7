"Binance, spot and USD-M: the contract of a venue against the simulated exchange, and every fault of the matrix that a venue can meet."
import asyncio
from dataclasses import replace

from venue_contract import Bench, VenueContract

from makerlab.execution.venue import Instrument
from makerlab.live.binance import BinanceVenue, Settings
from makerlab.live.protocol import Ed25519Signer, HmacSigner, Hosts, Keys
from makerlab.live.simulated import SimulatedVenue, SymbolRules

LEVELS = ((1, 99, 5), (1, 98, 9), (-1, 101, 5), (-1, 102, 9))
RULES = SymbolRules(symbol="BTCUSDT", tick="0.01", lot="1", min_qty="1", max_qty="100000", min_notional="0", percent="0")
QUICK = Settings(timeout_s=10.0, ask_s=15.0, backoff_s=(0.01, 0.1))


def keys_of(sim, account="alice", kind="ed25519"):
    "The keys that the simulated venue made for an account."
    key, secret = sim.key_of(account, kind)
    return Keys(key, Ed25519Signer(secret) if kind == "ed25519" else HmacSigner(secret))


def venue_of(sim, url, market, *, account="alice", kind="ed25519", settings=QUICK, **more):
    "A gateway to the simulated venue."
    x = Instrument("BTCUSDT", 0.01, 1.0, kind="spot" if market == "spot" else "future", venue="binance")
    return BinanceVenue([x], market=market, hosts=Hosts.local(url, market=market), keys=keys_of(sim, account, kind), settings=settings, **more)


class SimulatedBench(Bench):
    "The contract's book on the simulated exchange, which speaks HTTP and websockets."

    symbol = "BTCUSDT"

    def __init__(self, market, **more):
        self.market, self.more = market, more
        self.sim = SimulatedVenue(symbols=[RULES], flow=None, levels={"BTCUSDT": LEVELS}, market=market)
        super().__init__(None)

    async def __aenter__(self):
        url = await self.sim.start()
        self.venue = venue_of(self.sim, url, self.market, **self.more)
        return await super().__aenter__()

    async def __aexit__(self, *exc):
        await super().__aexit__(*exc)
        await self.venue.close()
        await self.sim.stop()

    async def settle(self):
        assert await self.venue.drain()
        await asyncio.sleep(0.002)  # stamps are whole milliseconds
        await self.sim.flushed()

    async def trade(self, side, tick, lots):
        self.sim.fault("trade", side=side, tick=tick, lots=lots)
        await self.settle()

    async def break_connection(self):
        back = len(self.of_all("reconnected"))
        self.sim.fault("cut", kind="user")
        while len(self.of_all("reconnected")) == back:
            await asyncio.sleep(0.005)


class TestSpot(VenueContract):
    def make_venue(self):
        return SimulatedBench("spot")


class TestSpotHmac(VenueContract):
    def make_venue(self):
        return SimulatedBench("spot", kind="hmac", settings=replace(QUICK, native_modify=False))


class TestUsdm(VenueContract):
    def make_venue(self):
        return SimulatedBench("usdm")
