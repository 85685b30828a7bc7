"The short form of tools/soak.py: three minutes of market time with random faults, and the oracle at the end."
import asyncio
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("soak", ROOT / "tools" / "soak.py")
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)


def test_three_minutes_of_faults_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKERLAB_LEASES", str(tmp_path / "leases"))
    out, rows = asyncio.run(asyncio.wait_for(soak.soak(tmp_path, minutes=3.0, seed=11, speed=4.0), 300))
    assert out["lost"] == 0 and out["faults"] == len(rows) >= 10 and out["fills"] > 20 and out["messages"] > 500
    assert out["longest_recovery_s"] < 20 and out["seconds_quoted_both_sides"] > 20


def test_quoted_seconds_are_counted_by_hand():
    row = lambda t, k, side, left: {"time_ns": int(t * 1e9), "account": "alice", "client_id": k, "side": side, "left_lots": left}
    truth = [row(1, "a", 1, 2), row(2, "b", -1, 2), row(5, "a", 1, 1), row(6, "a", 1, 0), row(7, "b", -1, 0), row(9, "c", 1, 2)]
    assert soak.quoted(truth, 0, 10_000_000_000) == (4.0, 2.0)
    assert soak.quoted(truth, 3_000_000_000, 8_000_000_000) == (3.0, 1.0)
