"""A timer of known law: points as a calibration makes them, with noise, without any device."""

import numpy as np

from cbsim.cost.form import StepForm
from cbsim.lab.calibrate.accuracy import predict
from cbsim.lab.calibrate.point import Point
from cbsim.lab.calibrate.timing_plan import Limits, PlanName, make_plan

DENSE_TOKENS = sorted({*range(1, 9), *(round(10 * 1.2**power) for power in range(41)), 16_384})
LOGITS_ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 512)
DECODES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
CONTEXTS = (16, 64, 256, 512, 1024, 2048, 4096, 16_384, 65_536)
CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CHUNK_CONTEXTS = (0, 512, 4096, 32_768)


def sizes(*, mixed: bool) -> list[Point]:
    """What is timed, with 1 s for every time."""
    points = [Point("dense", 1.0, tokens=tokens) for tokens in DENSE_TOKENS]
    points += [Point("logits", 1.0, num_logits=rows) for rows in LOGITS_ROWS]
    for batch in DECODES:
        points += [decode_point(batch, context) for context in CONTEXTS if batch * context <= 2_000_000]
    for tokens in CHUNKS:
        points += [Point("prefill", 1.0, chunks=((tokens, context),)) for context in CHUNK_CONTEXTS]
    for count in (2, 4, 16, 64):
        points += [Point("prefill", 1.0, chunks=((tokens, 0),) * count) for tokens in (32, 128, 256)]
    if mixed:
        for tokens in (32, 128, 512, 2048):
            points += [
                decode_point(batch, context, op="mixed", chunks=((tokens, chunk_context),))
                for batch in (1, 8, 32, 128)
                for context in (256, 2048, 6000)
                for chunk_context in (0, 2048)
            ]
    return points


def planned(name: PlanName) -> list[Point]:
    """The points of a real plan, with 1 s for every time."""
    return [
        Point(
            point.op,
            1.0,
            chunks=point.chunks,
            num_decodes=len(point.contexts),
            decode_context=sum(point.contexts),
            max_decode_context=max(point.contexts, default=0),
            tokens=point.tokens,
            num_logits=point.num_logits,
            split=point.split,
        )
        for point in make_plan(name, Limits())
    ]


def decode_point(batch: int, context: int, op="decode", chunks=()) -> Point:
    return Point(
        op,
        1.0,
        chunks=chunks,
        num_decodes=batch,
        decode_context=batch * context,
        max_decode_context=context,
    )


def timed(points: list[Point], law: StepForm, noise: float, seed: int) -> list[Point]:
    """The points with the law's times, each off by a lognormal factor of `noise`."""
    rng = np.random.default_rng(seed)
    factors = np.exp(rng.normal(0.0, noise, len(points)))
    return [
        Point(**{name: getattr(point, name) for name in Point.__slots__} | {"t_median_s": float(seconds)})
        for point, seconds in zip(points, predict(law, points) * factors, strict=True)
    ]
