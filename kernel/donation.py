"""Donation: a call lends the caller's scheduling context to the server that it calls, and the reply returns it.

Responsible for: the account. CPU time that a server spends on a call is charged to whoever called: to its reservation, or to its
share of the fair class; the server's own job is not charged for it. A budget is not replenished while it is lent. A call made by the
kernel or an operator lends nothing. Refuses: nothing; a server answers one message after the other, so what it used since its last
answer, or since the call was sent, whichever is later, is what the call cost.
"""

from __future__ import annotations

from kernel.state import Pending, Turn


def lend(t: Turn, pending: Pending, donor: str) -> None:
    """`pending` is about to be delivered on behalf of `donor`."""
    s = t.state
    if donor not in s.servers:
        return
    pending.donor, pending.cpu_from_ns = donor, s.servers[pending.server].cpu_ns
    if donor in s.cbs:
        s.cbs[donor].lend()


def returned(t: Turn, pending: Pending, cpu_ns: int) -> None:
    """The reply is here (`cpu_ns`: the server's CPU time by now), or there will be none (0): account and give back."""
    s = t.state
    server = s.servers[pending.server]
    cost_ns = max(0, cpu_ns - max(pending.cpu_from_ns, server.paid_cpu_ns))
    server.paid_cpu_ns = max(server.paid_cpu_ns, cpu_ns)
    donor, pending.donor = pending.donor, ""
    if not donor:
        return
    server.job_cpu_ns += cost_ns  # a job that it runs besides is not charged for it
    if donor in s.fair:
        s.fair.charge(donor, cost_ns, lent=True)
    if donor in s.cbs:
        s.cbs[donor].charge(cost_ns, lent=True)
        s.cbs[donor].give_back()
