"""Capacity: the highest request rate at which an SLO holds for a given share of requests."""

from cbsim.studies.capacity.answer import CapacityAnswer, CapacityInterrupted, capacity
from cbsim.studies.capacity.capacity_plan import Plan
from cbsim.studies.capacity.capacity_progress import CapacityProgress
from cbsim.studies.capacity.verdict import Contender

__all__ = ["CapacityAnswer", "CapacityInterrupted", "CapacityProgress", "Contender", "Plan", "capacity"]
