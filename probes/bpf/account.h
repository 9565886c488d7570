/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where the time of a target thread goes: the state machine behind the
 * scheduler programs, on plain values, so that both loaders share it.
 *
 * Every nanosecond between birth (or seeding) and exit is added to exactly one
 * entry of thread.ns. While a thread is runnable but off the CPU it holds a slot in
 * the queue of its CPU, and whoever leaves that CPU is charged for the overlap.
 * All callers but migration hold the lock of the run queue concerned.
 */
#ifndef QUIETCORE_ACCOUNT_H
#define QUIETCORE_ACCOUNT_H

/*
 * An idle CPU begins to run what was woken within this, from the deepest sleep as well. Who
 * waits longer beside it is held back: by a quota that is not seen here (bcc; before 6.18 for
 * a thread woken in a throttled group), or by a hypervisor. agent/attribution.py knows both.
 */
#define WAKE_UP_NS 1000000
#define HELD_BACK 0xffffffff /* as the offender in a blame_key; no tid is that high */

static __always_inline void charge(__u32 victim, __u32 offender, struct waiter *w, __u64 ns,
				   int describe)
{
	struct blame_key key = { .victim = victim, .offender = offender };
	struct blame *b;

	if (!offender && ns > WAKE_UP_NS)
		key.offender = HELD_BACK;
	b = map_lookup(blames, &key);
	if (!b) {
		struct blame fresh = {};

		map_insert(blames, &key, &fresh);
		b = map_lookup(blames, &key);
		if (!b) {
			count_loss(LOST_BLAME, ns);
			return;
		}
	}
	b->ns += ns;
	b->slices++;
	/* only the task leaving the CPU is at hand to be described */
	if (describe && !b->tgid)
		describe_current(b);
	if (b->ns && ns > w->top_ns) {
		w->top_ns = ns;
		w->top_tid = offender;
	}
}

/* The part of [w->since, now] in which `running` had the CPU. */
static __always_inline __u64 overlap(struct cpu_queue *q, struct waiter *w, __u64 now)
{
	__u64 start = w->since > q->switched ? w->since : q->switched;

	return now > start ? now - start : 0;
}

static __always_inline void unqueue_waiter(struct thread *t, __u32 tid, __u64 now, int charge_running)
{
	__u32 cpu = t->cpu, i = t->waiter - 1;
	struct cpu_queue *q;
	struct waiter *w;

	if (!t->waiter)
		return;
	t->waiter = 0;
	q = map_lookup(cpu_queues, &cpu);
	if (!q || i >= WAITERS_PER_CPU)
		return;
	w = &q->waiters[i];
	/* a migration took the slot without the queue's lock and lost the race */
	if (q->tids[i] != tid) {
		count_loss(LOST_WAITERS, 1);
		return;
	}
	if (charge_running)
		charge(tid, q->running, w, overlap(q, w, now), 0);
	t->offender = w->top_tid;
	q->tids[i] = 0;
}

static __always_inline void queue_waiter(struct thread *t, __u32 tid, __u32 cpu, __u64 now)
{
	struct cpu_queue *q = map_lookup(cpu_queues, &cpu);
	__u32 i;

	/* a slot that was never given back would be charged for ever */
	unqueue_waiter(t, tid, now, 0);
	t->cpu = cpu;
	if (!q)
		return;
	for (i = 0; i < WAITERS_PER_CPU; i++) {
		if (q->tids[i])
			continue;
		q->waiters[i].since = now;
		q->waiters[i].top_ns = 0;
		q->waiters[i].top_tid = 0;
		q->tids[i] = tid;
		t->waiter = i + 1;
		return;
	}
	count_loss(LOST_WAITERS, 1);
}

/* The current task, `prev`, leaves: everybody who waits here charges it. */
static __always_inline void charge_waiters(struct cpu_queue *q, __u32 prev, __u64 now)
{
	__u64 ns;
	__u32 i, tid;

	for (i = 0; i < WAITERS_PER_CPU; i++) {
		tid = q->tids[i];
		if (!tid || tid == prev)
			continue;
		/* user space has forgotten it */
		if (!map_lookup(threads, &tid)) {
			q->tids[i] = 0;
			continue;
		}
		ns = overlap(q, &q->waiters[i], now);
		if (ns)
			charge(tid, prev, &q->waiters[i], ns, 1);
	}
}

/*
 * `leaving` is prev's entry, if it has one, and `state` what it goes into:
 * PREEMPTED and THROTTLED are what the kernel counts as involuntary.
 */
static __always_inline int on_switch(__u64 now, __u32 cpu, struct thread *leaving, __u32 prev,
				     __u32 next, __u32 state)
{
	struct cpu_queue *q = map_lookup(cpu_queues, &cpu);
	struct irq_stack *irqs;
	struct thread *t;
	__u32 zero = 0;

	if (!q)
		return 0;
	charge_waiters(q, prev, now);

	if (leaving && leaving->state != EXITED) {
		/* a switch that was not shown to us must not leave a slot behind */
		unqueue_waiter(leaving, prev, now, 0);
		enter_state(leaving, now, ON_CPU, state);
		leaving->cpu = cpu;
		if (state == PREEMPTED || state == THROTTLED)
			leaving->involuntary++;
		else
			leaving->voluntary++;
		bpf_get_current_comm(leaving->comm, sizeof(leaving->comm));
		if (state == PREEMPTED)
			queue_waiter(leaving, prev, cpu, now);
	}

	t = map_lookup(threads, &next);
	/* a stranger may have got the id of a target that ended */
	if (t && t->state != EXITED) {
		/* no wake-up since the seeding: it was waiting all along */
		enter_state(t, now, PREEMPTED, ON_CPU);
		unqueue_waiter(t, next, now, 0);
		t->cpu = cpu;
	}

	/* no interrupt is in flight at a switch: heal a lost exit */
	irqs = map_lookup(irq_stacks, &zero);
	if (irqs)
		irqs->depth = 0;
	q->switched = now;
	q->running = next;
	return 0;
}

/* In the waker's context, before the target is queued. */
static __always_inline int on_waking(__u64 now, __u32 tid, __u32 waker)
{
	struct thread *t = map_lookup(threads, &tid);
	struct wake_key key = { .waker = waker, .wakee = tid };
	struct wake fresh = {}, *wake;
	struct irq_stack *irqs;
	__u32 zero = 0;

	if (!t || (t->state != SLEEPING && t->state != BLOCKED))
		return 0;
	/* in an interrupt the current task has nothing to do with the wake-up */
	irqs = map_lookup(irq_stacks, &zero);
	if (irqs && irqs->depth)
		key.waker = 0;
	wake = map_lookup(wakes, &key);
	if (!wake) {
		map_insert(wakes, &key, &fresh);
		wake = map_lookup(wakes, &key);
		if (!wake) {
			count_loss(LOST_WAKES, 1);
			return 0;
		}
	}
	wake->wakeups++;
	if (now > t->since)
		wake->slept_ns += now - t->since;
	return 0;
}

static __always_inline int on_wakeup(__u64 now, __u32 tid, __u32 cpu)
{
	struct thread *t = map_lookup(threads, &tid);

	if (!t)
		return 0;
	/* woken before it got round to sleeping, or woken twice */
	if (t->state != SLEEPING && t->state != BLOCKED && t->state != UNKNOWN)
		return 0;
	/* seeded as running and no event since: so it was woken before it slept */
	if (t->state == UNKNOWN && t->resolved == ON_CPU)
		return 0;
	enter_state(t, now, t->resolved, RUNQUEUE_WAIT);
	t->wakeups++;
	queue_waiter(t, tid, cpu, now);
	return 0;
}

static __always_inline int on_migrate(__u64 now, __u32 tid, __u32 cpu)
{
	struct thread *t = map_lookup(threads, &tid);

	if (!t)
		return 0;
	t->migrations++;
	/* a sleeper moves on its way to being woken; only waiting costs count */
	if (t->waiter) {
		unqueue_waiter(t, tid, now, 1);
		queue_waiter(t, tid, cpu, now);
	}
	return 0;
}

/* A thread that is born in a target process. It sleeps until its first wake-up. */
static __always_inline void add_thread(__u64 now, __u32 tid, __u32 tgid)
{
	struct thread fresh = {};

	fresh.since = now;
	fresh.born = now;
	fresh.state = BLOCKED;
	fresh.tgid = tgid;
	bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
	if (map_update(threads, &tid, &fresh))
		count_loss(LOST_THREADS, 1);
}

#endif
