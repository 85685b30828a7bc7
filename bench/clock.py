"What every row measures with: seconds of repeated calls, and their median, minimum and maximum."
import statistics
import time


def timed(run, runs):
    "Seconds of each of `runs` calls."
    out = []
    for _ in range(runs):
        tic = time.perf_counter()
        run()
        out.append(time.perf_counter() - tic)
    return out


def describe(seconds, **more):
    "Median, minimum and maximum."
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "runs": len(seconds), **more}
