"""Capacity: the highest request rate at which an SLO holds for a given share of requests."""

from cbsim.studies.capacity.answer import CapacityAnswer, CapacityInterrupted, CapacityProgress, capacity
from cbsim.studies.capacity.search import Plan
from cbsim.studies.capacity.verdict import Contender

__all__ = ["CapacityAnswer", "CapacityInterrupted", "CapacityProgress", "Contender", "Plan", "capacity"]
