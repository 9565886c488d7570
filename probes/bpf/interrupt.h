/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Interrupts as theft: the time between entry and exit belongs to the handler,
 * and is taken from the thread that was current. A per-CPU stack keeps nested
 * ones apart, so each nanosecond is counted once.
 */
#ifndef QUIETCORE_INTERRUPT_H
#define QUIETCORE_INTERRUPT_H

#define IRQ_ID(kind, nr) ((kind) << 16 | ((nr) & 0xffff))

static __always_inline int interrupt_entry(__u64 now, __u32 id)
{
	struct irq_stack *stack;
	__u32 zero = 0, depth;

	stack = map_lookup(irq_stacks, &zero);
	if (!stack)
		return 0;
	depth = stack->depth;
	/* deeper than interrupts nest: exits were not shown, what is open is given up */
	if (depth >= IRQ_NESTING) {
		count_loss(LOST_IRQ_STACK, 1);
		depth = 0;
	}
	stack->depth = depth + 1;
	stack->frames[depth].start = now;
	stack->frames[depth].nested = 0;
	stack->frames[depth].id = id;
	return 0;
}

/*
 * Whom an interrupt interrupts was running. If its switch-in was not shown to
 * us (a kernel may hide some tasks from tracing, and with them the switches
 * that they make), the wait would grow for as long as the thread runs.
 */
static __always_inline void heal_switch(struct thread *t, __u64 now)
{
	if (t->state == ON_CPU || t->state == UNKNOWN)
		return;
	enter_state(t, now, t->state, ON_CPU);
	count_loss(LOST_SWITCHES, 1);
}

/* `start`: when the interrupt began, `ns`: how long it took without nested ones. */
static __always_inline void steal_from(__u32 tid, __u32 id, __u64 start, __u64 ns)
{
	struct irq_key key = { .tid = tid, .id = id };
	struct irq_time fresh = {}, *spent;
	struct thread *t;

	t = map_lookup(threads, &tid);
	if (!t || t->state == EXITED)
		return;
	heal_switch(t, start);
	if (id >> 16 == IRQ_SOFT) {
		t->softirq_ns += ns;
		t->softirqs++;
	} else {
		t->irq_ns += ns;
		t->irqs++;
	}
	spent = map_lookup(irq_times, &key);
	if (!spent) {
		map_insert(irq_times, &key, &fresh);
		spent = map_lookup(irq_times, &key);
		if (!spent) {
			count_loss(LOST_IRQ, ns);
			return;
		}
	}
	spent->ns += ns;
	spent->count++;
}

/* `row` of the per-CPU totals, `tid` of the interrupted thread. */
static __always_inline int interrupt_exit(__u64 now, __u32 id, __u32 row, __u32 tid)
{
	struct irq_stack *stack;
	struct irq_time *total;
	__u32 zero = 0, depth;
	__u64 ns, own;

	stack = map_lookup(irq_stacks, &zero);
	/* attached in the middle of this interrupt */
	if (!stack || !stack->depth)
		return 0;
	depth = --stack->depth;
	/* for the verifier: entries see to it */
	if (depth >= IRQ_NESTING)
		return 0;
	if (stack->frames[depth].id != id) {
		stack->depth = 0;
		count_loss(LOST_IRQ_STACK, 1);
		return 0;
	}
	ns = now - stack->frames[depth].start;
	own = ns - stack->frames[depth].nested;
	if (depth > 0)
		stack->frames[(depth - 1) & (IRQ_NESTING - 1)].nested += ns;

	total = map_lookup(irq_totals, &row);
	if (total) {
		total->ns += own;
		total->count++;
	}
	/* idle is nobody */
	if (tid)
		steal_from(tid, id, now - ns, own);
	return 0;
}

#endif
