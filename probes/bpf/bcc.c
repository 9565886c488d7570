// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Everything in one module, for bcc: kernels without BTF. It reads the arguments
 * of tracepoints and no field of any kernel struct, so headers of another kernel do
 * no harm. Quotas, cgroups and outliers are therefore out of sight. Kernel 5.3+.
 *
 * The bodies are those of the CO-RE objects. bcc rewrites map calls in the main
 * text only, so the backend puts the quoted headers in place, turns map_lookup(map, key)
 * into map.lookup(key) and so on, and appends VECTOR_* and CUDA_ENTRY lines. It defines
 * CPUS, and PREV_* from the format of sched_switch: the values differ by kernel.
 */
#include <uapi/linux/ptrace.h>
#include "layout.h"

BPF_HASH(targets, __u32, __u32, 4096); /* tgid -> 1 + times it executed; 0 = over */
BPF_HASH(threads, __u32, struct thread, 10240);
BPF_HASH(blames, struct blame_key, struct blame, 16384);
BPF_HASH(wakes, struct wake_key, struct wake, 8192);
BPF_ARRAY(cpu_queues, struct cpu_queue, CPUS);
BPF_HASH(irq_times, struct irq_key, struct irq_time, 16384);
BPF_PERCPU_ARRAY(irq_totals, struct irq_time, NR_IRQ_TOTALS);
BPF_PERCPU_ARRAY(irq_stacks, struct irq_stack, 1);
BPF_HASH(launchers, __u32, struct launcher, 1024);
BPF_ARRAY(blank_launcher, struct launcher, 1);
BPF_ARRAY(cuda_config, struct cuda_config, 1);
BPF_PERCPU_ARRAY(losses, __u64, NR_LOSSES);

#include "loss.h"

static __always_inline void describe_current(struct blame *b)
{
	b->tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(b->comm, sizeof(b->comm));
}

static __always_inline void tell_outlier(struct launcher *l, struct thread *t, __u64 now, __u32 tid)
{
}

#include "state.h"
#include "account.h"
#include "interrupt.h"
#include "launch.h"

/* bcc finds the arguments of a tracepoint by the name of their struct. */
#define HOOK(category, event) int tp_##event(struct tracepoint__##category##__##event *args)

/* Involuntary where no letter is set: running, or preempted on its way to sleep. */
static __always_inline __u32 state_after(__u32 prev_state)
{
	if (!(prev_state & PREV_ANY))
		return PREEMPTED;
	if (prev_state & PREV_DEAD)
		return EXITED;
	return prev_state & PREV_BLOCKED ? BLOCKED : SLEEPING;
}

static __always_inline void add_target(__u32 tgid)
{
	__u32 *known = map_lookup(targets, &tgid), one = 1;

	if (known && *known)
		return;
	if (map_update(targets, &tgid, &one))
		count_loss(LOST_TARGETS, 1);
}

/*
 * A fork does not say whether the child is a thread or a process: it is taken for a
 * thread until it first leaves the CPU or forks, and its own tgid can be asked for.
 */
static __always_inline void settle_current(struct thread *t)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!t->born || t->tgid == tgid)
		return;
	t->tgid = tgid;
	add_target(tgid);
}

HOOK(sched, sched_switch)
{
	__u32 prev = args->prev_pid, state = 0;
	struct thread *leaving = map_lookup(threads, &prev);

	if (leaving) {
		settle_current(leaving);
		state = state_after(args->prev_state);
	}
	return on_switch(bpf_ktime_get_ns(), bpf_get_smp_processor_id(), leaving, prev,
			 args->next_pid, state);
}

HOOK(sched, sched_waking)
{
	return on_waking(bpf_ktime_get_ns(), args->pid, bpf_get_current_pid_tgid());
}

HOOK(sched, sched_wakeup)
{
	return on_wakeup(bpf_ktime_get_ns(), args->pid, args->target_cpu);
}

HOOK(sched, sched_wakeup_new)
{
	return on_wakeup(bpf_ktime_get_ns(), args->pid, args->target_cpu);
}

HOOK(sched, sched_migrate_task)
{
	return on_migrate(bpf_ktime_get_ns(), args->pid, args->dest_cpu);
}

/* The current process among the targets, if it is one that lives. */
static __always_inline __u32 *current_target(struct thread *current_thread, __u32 tgid)
{
	__u32 *target;

	if (current_thread)
		settle_current(current_thread);
	target = map_lookup(targets, &tgid);
	return target && *target ? target : NULL;
}

HOOK(sched, sched_process_fork)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id, tgid = id >> 32, child = args->child_pid;
	struct thread *parent = map_lookup(threads, &tid);

	if (current_target(parent, tgid) || parent)
		add_thread(bpf_ktime_get_ns(), child, tgid);
	else
		map_delete(threads, &child); /* a stranger with the number of a dead thread */
	return 0;
}

HOOK(sched, sched_process_exec)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id, *target = current_target(map_lookup(threads, &tid), id >> 32);

	if (target)
		++*target;
	return 0;
}

/* The leader's exit: the process is over, or becomes a zombie that user space looks at. */
HOOK(sched, sched_process_exit)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id, *target = current_target(map_lookup(threads, &tid), id >> 32);

	if (target && tid == id >> 32)
		*target = 0;
	return 0;
}

static __always_inline int enter(__u32 kind, __u32 nr)
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

HOOK(irq, irq_handler_entry) { return enter(IRQ_HARD, args->irq); }
HOOK(irq, irq_handler_exit) { return leave(IRQ_HARD, args->irq, TOTAL_HARD); }
HOOK(irq, softirq_entry) { return enter(IRQ_SOFT, args->vec); }
HOOK(irq, softirq_exit) { return leave(IRQ_SOFT, args->vec, softirq_row(args->vec)); }

#define VECTOR_ENTRY(name, nr)                                                                     \
	HOOK(irq_vectors, name##_entry) { return enter(IRQ_VECTOR, nr); }
#define VECTOR_EXIT(name, nr)                                                                      \
	HOOK(irq_vectors, name##_exit) { return leave(IRQ_VECTOR, nr, TOTAL_VECTOR + (nr)); }

/* bcc has no attach cookies: each API has its entry, all share the return. */
#define CUDA_ENTRY(id, cookie)                                                                     \
	int cuda_entry_##id(struct pt_regs *ctx)                                                   \
	{                                                                                          \
		__u64 task = bpf_get_current_pid_tgid();                                           \
												   \
		return call_entry(bpf_ktime_get_ns(), task, task >> 32, PT_REGS_SP(ctx), cookie);  \
	}

int cuda_return(struct pt_regs *ctx)
{
	return call_return(bpf_ktime_get_ns(), bpf_get_current_pid_tgid());
}
