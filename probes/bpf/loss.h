/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef QUIETCORE_LOSS_H
#define QUIETCORE_LOSS_H

/* keeps the compiler from moving stores across the version words; kernel headers have it */
#ifndef barrier
#define barrier() asm volatile("" ::: "memory")
#endif

/* Nothing goes missing silently. */
static __always_inline void count_loss(__u32 why, __u64 amount)
{
	__u64 *lost = map_lookup(losses, &why);

	if (lost)
		*lost += amount;
}

#endif
