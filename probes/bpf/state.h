/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One step of the state machine that splits a thread's time (account.h). */
#ifndef QUIETCORE_STATE_H
#define QUIETCORE_STATE_H

/* `was`: what a seeded thread must have been doing for this event to happen. */
static __always_inline void enter_state(struct thread *t, __u64 now, __u32 was, __u32 state)
{
	t->writing++;
	barrier();
	if (t->state == UNKNOWN) {
		t->resolved = was;
		t->state = was;
	}
	/* clocks of two CPUs may differ by a few ns: never go back */
	if (now > t->since) {
		t->ns[t->state & 7] += now - t->since;
		t->since = now;
	}
	t->state = state;
	barrier();
	t->written = t->writing;
}

#endif
