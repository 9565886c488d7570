// SPDX-License-Identifier: Apache-2.0
/*
 * Targets for the doctor and for calibrating the cost of an uprobe. What a trap
 * costs depends on the first instruction: the kernel emulates a push, may turn
 * a 5-byte nop into a call, and must single-step most others.
 */
#include <stdint.h>
#include <time.h>

#define PUBLIC __attribute__((visibility("default")))

PUBLIC void qc_selftest_push(void);
PUBLIC void qc_selftest_nop5(void);
PUBLIC void qc_selftest_step(void);
PUBLIC uint64_t qc_selftest_burst(void (*fn)(void), uint64_t n);
PUBLIC uint64_t qc_selftest_burst_name(int which, uint64_t n);

#ifdef __x86_64__
/* aligned, so that the nop lies within one page and one cache line */
#define TARGET(name, body)                                                     \
	__asm__(".pushsection .text\n\t.p2align 5\n\t.globl " #name            \
		"\n\t.type " #name ", @function\n" #name ":\n\t" body          \
		"\n\tret\n\t.size " #name ", .-" #name "\n\t.popsection")

TARGET(qc_selftest_push, "push %rbp\n\tmov %rsp, %rbp\n\tpop %rbp");
TARGET(qc_selftest_nop5, ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00");
TARGET(qc_selftest_step, "sub $8, %rsp\n\tadd $8, %rsp");
#else
/* the empty asm keeps three bodies from being folded into one */
#define TARGET(name)                                                           \
	void name(void)                                                        \
	{                                                                      \
		__asm__ volatile("/* " #name " */");                           \
	}

TARGET(qc_selftest_push)
TARGET(qc_selftest_nop5)
TARGET(qc_selftest_step)
#endif

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t qc_selftest_burst(void (*fn)(void), uint64_t n)
{
	uint64_t start = now_ns();

	while (n--)
		fn();
	return now_ns() - start;
}

/* which: 0 push, 1 nop5, 2 step; anything else returns 0 */
uint64_t qc_selftest_burst_name(int which, uint64_t n)
{
	switch (which) {
	case 0:
		return qc_selftest_burst(qc_selftest_push, n);
	case 1:
		return qc_selftest_burst(qc_selftest_nop5, n);
	case 2:
		return qc_selftest_burst(qc_selftest_step, n);
	}
	return 0;
}
