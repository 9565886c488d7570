// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Device interrupts, softirqs and local vectors: what they take from the
 * thread that they interrupt, and totals by CPU. ksoftirqd is a thread like
 * any other: what it does while a target waits, the scheduler programs charge.
 *
 * Local vectors exist on x86 only; elsewhere the loader leaves them out.
 */
#include "maps.h"

HASH_MAP(irq_times, struct irq_key, struct irq_time, 16384);
ARRAY_MAP(irq_totals, BPF_MAP_TYPE_PERCPU_ARRAY, struct irq_time, NR_IRQ_TOTALS);

#include "state.h"
#include "interrupt.h"

static __always_inline int entry(__u32 kind, __u32 nr)
{
	return interrupt_entry(bpf_ktime_get_ns(), IRQ_ID(kind, nr));
}

static __always_inline int leave(__u32 kind, __u32 nr, __u32 row)
{
	return interrupt_exit(bpf_ktime_get_ns(), IRQ_ID(kind, nr), row, bpf_get_current_pid_tgid());
}

static __always_inline __u32 softirq_row(__u32 vector)
{
	return TOTAL_SOFTIRQ + (vector < NR_SOFTIRQS ? vector : NR_SOFTIRQS - 1);
}

#define BOTH(hook, name, call, ...)                                                                \
	SEC("tp_btf/" #hook) int BPF_PROG(name##_btf, __VA_ARGS__) { return call; }                \
	SEC("raw_tp/" #hook) int BPF_PROG(name##_raw, __VA_ARGS__) { return call; }

#define VECTOR(name, nr)                                                                           \
	BOTH(name##_entry, name##_entry, entry(IRQ_VECTOR, nr), int vector)                        \
	BOTH(name##_exit, name##_exit, leave(IRQ_VECTOR, nr, TOTAL_VECTOR + nr), int vector)

BOTH(irq_handler_entry, irq_entry, entry(IRQ_HARD, irq), int irq)
BOTH(irq_handler_exit, irq_exit, leave(IRQ_HARD, irq, TOTAL_HARD), int irq)
BOTH(softirq_entry, softirq_entry, entry(IRQ_SOFT, vector), unsigned int vector)
BOTH(softirq_exit, softirq_exit, leave(IRQ_SOFT, vector, softirq_row(vector)), unsigned int vector)

VECTOR(local_timer, VECTOR_LOCAL_TIMER)
VECTOR(reschedule, VECTOR_RESCHEDULE)
VECTOR(call_function, VECTOR_CALL_FUNCTION)
VECTOR(call_function_single, VECTOR_CALL_FUNCTION_SINGLE)
VECTOR(irq_work, VECTOR_IRQ_WORK)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
