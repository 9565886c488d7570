"""All levers by name, in order of gentleness."""

from __future__ import annotations

from quietcore.agent.pin.host_levers import BalancerBan, Cpuset, IrqAffinity
from quietcore.agent.pin.levers import Lever
from quietcore.agent.pin.thread_levers import Affinity, Nice, SessionNice, Slice

LEVERS: dict[str, Lever] = {
    lever.name: lever
    for lever in (Affinity(), BalancerBan(), IrqAffinity(), Nice(), SessionNice(), Slice(), Cpuset())
}
