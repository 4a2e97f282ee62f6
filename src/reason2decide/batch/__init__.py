"""Decide any number of cases into a folder of parts: on one machine or many, and on after any fault.

`Decider` is the stage for other people's pipelines (Ray Data, Spark).
"""

from reason2decide.batch.decider import Decider

__all__ = ["Decider"]
