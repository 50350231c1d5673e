"""Ahead-of-time compilation of a function for a machine that is not here.

`plan(fn, abstract_args, topology="v5e:4x4")` in this process, `plan_in_subprocess("module:function", config,
"h200:8")` in a prepared one; both return a `Plan`: does it fit, memory, FLOPs, collectives, compile seconds.
"""

from jaxvid.plan.compile import Program, plan
from jaxvid.plan.launch import plan_in_subprocess
from jaxvid.plan.report import Plan
from jaxvid.plan.topology import Topology, parse_topology, topology_devices

__all__ = [
    "Plan",
    "Program",
    "Topology",
    "parse_topology",
    "plan",
    "plan_in_subprocess",
    "topology_devices",
]
