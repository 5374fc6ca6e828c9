"""Capacity: the highest request rate at which an SLO holds for a given share of requests."""

from cbsim.capacity.answer import CapacityAnswer, CapacityInterrupted, capacity
from cbsim.capacity.plan import Plan
from cbsim.capacity.progress import CapacityProgress
from cbsim.capacity.verdict import Contender

__all__ = ["CapacityAnswer", "CapacityInterrupted", "CapacityProgress", "Contender", "Plan", "capacity"]
