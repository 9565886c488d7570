/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * CUDA calls of one thread: how long a launch takes, how far launches are
 * apart, and how much of either was stolen. Stolen time comes from the
 * thread's own totals, which the scheduler and interrupt programs keep: a
 * thread that executes a probe is on the CPU, so its waits are all accounted.
 *
 * Pairing: the entry of the outermost call opens, its return closes; a call
 * within (runtime inside driver, or the reverse) counts nothing. A return that
 * never came (longjmp, probe detached) is healed by the stack pointer: a later
 * entry at the same or a higher address cannot be nested in the old one.
 */
#ifndef QUIETCORE_LAUNCH_H
#define QUIETCORE_LAUNCH_H

/*
 * Bucket of a duration: 2^HIST_SUB_BITS linear steps to an octave, upper
 * bounds inclusive, as Prometheus has it.
 */
static __always_inline __u32 hist_slot(__u64 ns)
{
	__u64 v = ns ? ns - 1 : 0;
	__u32 octave = 0, slot;

	/* small values have a bucket each */
	if (v < (1 << HIST_SUB_BITS))
		return v;
	if (v >> 32)
		octave += 32;
	if (v >> octave >> 16)
		octave += 16;
	if (v >> octave >> 8)
		octave += 8;
	if (v >> octave >> 4)
		octave += 4;
	if (v >> octave >> 2)
		octave += 2;
	if (v >> octave >> 1)
		octave += 1;
	slot = ((octave - HIST_SUB_BITS + 1) << HIST_SUB_BITS) +
	       ((v >> (octave - HIST_SUB_BITS)) & ((1 << HIST_SUB_BITS) - 1));
	return slot < HIST_SLOTS ? slot : HIST_SLOTS - 1;
}

static __always_inline void take_toll(struct toll *toll, struct thread *t)
{
	toll->stolen[STOLEN_RUNQUEUE] = t->ns[RUNQUEUE_WAIT];
	toll->stolen[STOLEN_PREEMPTED] = t->ns[PREEMPTED];
	toll->stolen[STOLEN_THROTTLED] = t->ns[THROTTLED];
	toll->stolen[STOLEN_IRQ] = t->irq_ns;
	toll->stolen[STOLEN_SOFTIRQ] = t->softirq_ns;
	toll->slept = t->ns[SLEEPING] + t->ns[BLOCKED];
	toll->voluntary = t->voluntary;
	toll->involuntary = t->involuntary;
	toll->irqs = t->irqs + t->softirqs;
}

/* Returns what was stolen in between, all causes together. */
static __always_inline __u64 add_duration(struct durations *d, __u64 ns, struct toll *from,
					  struct toll *to)
{
	__u32 slot = hist_slot(ns), kind = UNINTERRUPTED, i;
	__u64 stolen = 0, part;

	if (to->involuntary != from->involuntary)
		kind = SWITCHED_INVOLUNTARILY;
	else if (to->voluntary != from->voluntary)
		kind = SWITCHED_VOLUNTARILY;
	d->count++;
	d->sum += ns;
	for (i = 0; i < NR_THEFTS; i++) {
		part = to->stolen[i] - from->stolen[i];
		d->stolen[i] += part;
		stolen += part;
	}
	d->slept += to->slept - from->slept;
	d->voluntary += to->voluntary - from->voluntary;
	d->involuntary += to->involuntary - from->involuntary;
	d->irqs += to->irqs - from->irqs;
	if (slot < HIST_SLOTS)
		d->hist[kind][slot]++;
	return stolen;
}

static __always_inline struct launcher *get_launcher(__u32 tid, __u32 tgid)
{
	struct launcher *l = map_lookup(launchers, &tid);
	struct launcher *blank;
	__u32 zero = 0;

	if (l && l->tgid == tgid)
		return l;
	/* too large for the stack: a map holds the zeroes */
	blank = map_lookup(blank_launcher, &zero);
	if (!blank)
		return NULL;
	map_update(launchers, &tid, blank);
	l = map_lookup(launchers, &tid);
	if (l)
		l->tgid = tgid;
	else
		count_loss(LOST_LAUNCHERS, 1);
	return l;
}

static __always_inline int call_entry(__u64 now, __u32 tid, __u32 tgid, __u64 sp, __u64 cookie)
{
	__u32 zero = 0, api = COOKIE_API(cookie), class = COOKIE_CLASS(cookie);
	struct cuda_config *config = map_lookup(cuda_config, &zero);
	struct thread *t = map_lookup(threads, &tid);
	struct launcher *l;
	__u64 stolen;

	if (!config)
		return 0;
	l = get_launcher(tid, tgid);
	if (!l)
		return 0;
	l->hits++;
	if (!config->enabled)
		return 0;
	if (l->epoch != config->epoch) {
		l->epoch = config->epoch;
		l->depth = 0;
		l->last_launch = 0;
	}
	if (l->depth && sp < l->frame) {
		l->depth++;
		return 0;
	}

	l->writing++;
	barrier();
	l->depth = 1;
	l->frame = sp;
	l->api = cookie;
	l->entered = now;
	l->calls[api]++;
	if (t)
		take_toll(&l->at_entry, t);
	if (t && class <= API_GRAPH_LAUNCH) {
		if (l->last_launch) {
			stolen = add_duration(&l->interval, now - l->last_launch, &l->at_launch,
					      &l->at_entry);
			if (config->outlier_ns && stolen > config->outlier_ns)
				tell_outlier(l, t, now, tid);
		}
		l->last_launch = now;
		l->at_launch = l->at_entry;
	}
	barrier();
	l->written = l->writing;
	return 0;
}

static __always_inline int call_return(__u64 now, __u32 tid)
{
	struct launcher *l = map_lookup(launchers, &tid);
	struct thread *t = map_lookup(threads, &tid);
	struct toll after;
	__u32 class;

	/* entered before the probe was attached */
	if (!l || !l->depth)
		return 0;
	if (--l->depth)
		return 0;
	if (!t)
		return 0;
	class = COOKIE_CLASS(l->api);
	if (class > API_SYNC)
		return 0;
	take_toll(&after, t);
	l->writing++;
	barrier();
	add_duration(class == API_SYNC ? &l->sync : &l->launch, now - l->entered, &l->at_entry,
		     &after);
	barrier();
	l->written = l->writing;
	return 0;
}

#endif
