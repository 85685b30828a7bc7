"A bench for tests/venue_contract.py on the simulated venue: give it a function that connects a Venue to an address."
import asyncio
import contextlib

from venue_contract import Bench

from makerlab.live.simulated import contract_venue


class SimulatedBench(Bench):
    """`connect(sim)` returns the Venue under test for a started SimulatedVenue `sim` (its `url`, and `sim.key_of("alice")` -> API key, PEM;
    `sim.key_of("alice", "hmac")` -> API key, secret). The venue's clock moves by hand: `sim.clock.now_ns()` is what it says."""

    symbol = "XUSDT"

    def __init__(self, connect, market="spot"):
        self.sim, self.connect, self.market = contract_venue(market), connect, market
        self.reports, self._task = [], None

    async def __aenter__(self):
        await self.sim.start()
        self.venue = await self._made(self.connect(self.sim))
        return await super().__aenter__()

    async def _made(self, x):
        return await x if asyncio.iscoroutine(x) else x

    async def __aexit__(self, *why):
        await super().__aexit__(*why)
        close = getattr(self.venue, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                await self._made(close())
        await self.sim.stop()

    async def settle(self):
        await self.sim.advance(0.02)
        await self.sim.flushed()
        await asyncio.sleep(0.005)

    async def trade(self, side, tick, lots):
        self.sim.fault("trade", side=side, tick=tick, lots=lots)
        await self.settle()

    async def break_connection(self):
        self.sim.fault("cut", kind="any")
        for _ in range(400):
            if any(r.kind == "reconnected" for r in self.reports):
                break
            await self.sim.advance(0.05)
            await asyncio.sleep(0.01)
