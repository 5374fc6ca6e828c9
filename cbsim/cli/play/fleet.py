"""Fleet: the replicas that are played, on one clock, with a router in front of them."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from cbsim.base.errors import ConfigError
from cbsim.cli.play.replica import Replica, Score, score_of
from cbsim.cluster.simpy_world import make_router
from cbsim.studies.experiment import Experiment
from cbsim.workload import Workload
from cbsim.workload.request import Request


class Fleet:
    """Goes from step end to step end, on whichever replica the next step ends; ties by number.

    In between, settings may change and requests may be added. Decides what a run decides: at one instant
    arrivals join, the step that ends takes effect, the next is decided (here: when `advance` is called next).
    """

    def __init__(self, experiment: Experiment, workload: Workload, requests: Iterator[Request]) -> None:
        """`requests`, the workload's and others, come in order of arrival. Raises what reading them does."""
        self._requests = requests
        self._next = next(requests, None)
        self.now_s = 0.0
        """The instant of what happened last anywhere."""
        self.replicas = [Replica(experiment, workload, number) for number in range(experiment.replicas.count)]
        router, seed = self.replicas[0].setup.router, experiment.seed
        try:
            self._route = make_router(router.kind, seed)
        except KeyError:
            name = experiment.replicas.router.type
            raise ConfigError(f"replicas.router.type: got {name}; cbsim play has no such router") from None
        if router.refresh_s:
            raise ConfigError("replicas.router.refresh_s: cbsim play shows routers replicas as they stand: 0")
        self._arrive()

    @property
    def next_arrival_s(self) -> float | None:
        """When the next request comes, seconds; `None` if none will."""
        return None if self._next is None else self._next.arrival_s

    @property
    def is_over(self) -> bool:
        """Whether every request has ended and none will come."""
        return self._next is None and not any(replica.stepper.num_outstanding for replica in self.replicas)

    @property
    def live(self) -> list[Request]:
        """Requests that have arrived and not ended."""
        return [request for replica in self.replicas for request in replica.live]

    @property
    def score(self) -> Score:
        """The figures of all replicas together, so far."""
        return score_of([request for replica in self.replicas for request in replica.stepper.world.requests])

    def advance(self) -> bool:
        """Let the next step end, after idling until there is one; False if there is none.

        Raises `PluginError` for a scheduler or a cost model that does what it must not.
        """
        while True:
            for replica in self.replicas:
                if replica.is_due and replica.stepper.num_outstanding:
                    replica.decide()
            ending = min(self.replicas, key=_end_s)
            waking = min(self.replicas, key=_wake_s)
            arrival_s = inf if self._next is None else self._next.arrival_s
            if arrival_s < inf and arrival_s <= min(_end_s(ending), _wake_s(waking)):
                self.now_s = max(self.now_s, arrival_s)
                self._arrive()
            elif _end_s(ending) < inf and _end_s(ending) <= _wake_s(waking):
                self.now_s = _end_s(ending)
                ending.end_step()
                return True
            elif _wake_s(waking) < inf:
                self.now_s = _wake_s(waking)
                waking.wake(self.now_s)
            else:
                return False

    def add(self, request: Request) -> None:
        """A request arrives now; it is rejected if it could never be served."""
        steppers = [replica.stepper for replica in self.replicas]
        chosen = self._route(request, steppers) if len(steppers) > 1 else 0
        self.replicas[chosen].add(request, self.now_s)

    def become(self, experiment: Experiment) -> None:
        """Go on with other settings of the scheduler or another number of KV blocks, on all replicas.

        Limits change for those who run and wait; whatever else of the scheduler changes, it is another one:
        steps under way end, all are preempted, to be computed again, and queue at it. Raises `ConfigError`,
        and nothing has changed, as `Replica.setup_for` does.
        """
        setups = [replica.setup_for(experiment) for replica in self.replicas]
        if not self.replicas[0].takes_on(experiment):
            while (end_s := min(map(_end_s, self.replicas))) < inf:
                self.now_s = end_s
                self._arrive()
                min(self.replicas, key=_end_s).end_step()
        for replica, setup in zip(self.replicas, setups, strict=True):
            replica.become(experiment, setup, self.now_s)

    def _arrive(self) -> None:
        """Everybody who is due by now joins a queue."""
        while self._next is not None and self._next.arrival_s <= self.now_s:
            request, self._next = self._next, next(self._requests, None)
            self.add(request)


def _end_s(replica: Replica) -> float:
    """When its step under way ends, infinite for none."""
    under_way = replica.stepper.under_way
    return under_way[0].end_s if under_way else inf


def _wake_s(replica: Replica) -> float:
    """When an idle replica is to be asked again although nobody comes, infinite for never."""
    at_s = None if replica.stepper.under_way else replica.stepper.wake_at_s()
    return at_s if at_s is not None and at_s > replica.now_s else inf
