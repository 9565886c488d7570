// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Scheduler: splits the time of target threads, charges whoever ran in their
 * place, notes who wakes them, and follows new threads and forked processes.
 *
 * Every hook exists as tp_btf and as raw_tp; sched_switch also without its
 * fourth argument (before 5.18). The loader enables one set. Kernel 5.8+.
 */
#include "maps.h"

HASH_MAP(targets, __u32, __u32, 4096);	      /* tgid -> 1 */
HASH_MAP(target_cgroups, __u64, __u32, 1024); /* cgroup id -> 1 */
HASH_MAP(blames, struct blame_key, struct blame, 16384);
HASH_MAP(wakes, struct wake_key, struct wake, 8192);
ARRAY_MAP(cpu_queues, BPF_MAP_TYPE_ARRAY, struct cpu_queue, 1); /* resized to the CPUs */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

static __always_inline void describe_current(struct blame *b)
{
	b->tgid = bpf_get_current_pid_tgid() >> 32;
	b->cgroup = task_cgroup((void *)bpf_get_current_task());
	bpf_get_current_comm(b->comm, sizeof(b->comm));
}

#include "state.h"
#include "account.h"

/* Woken up at once: user space has a process to look at. */
static __always_inline void tell(__u32 kind, __u32 tid, __u32 tgid)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_loss(LOST_EVENTS, 1);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->kind = kind;
	e->tid = tid;
	e->tgid = tgid;
	bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);
}

/* Involuntary where the kernel counts it in nonvoluntary_ctxt_switches. */
static __always_inline __u32 state_after(struct task_struct *prev, bool preempt, unsigned int state)
{
	if (preempt || !state)
		return task_throttled(prev) ? THROTTLED : PREEMPTED;
	if (state & TASK_DEAD)
		return EXITED;
	if ((state & TASK_UNINTERRUPTIBLE) && !(state & TASK_NOLOAD))
		return BLOCKED;
	return SLEEPING;
}

static __always_inline int handle_switch(struct task_struct *prev, struct task_struct *next,
					 bool preempt, unsigned int state)
{
	__u32 prev_tid = BPF_CORE_READ(prev, pid), next_tid = BPF_CORE_READ(next, pid);
	struct thread *leaving = map_lookup(threads, &prev_tid);

	/* the state costs reads that only a target is worth */
	if (leaving)
		state = state_after(prev, preempt, state);
	return on_switch(bpf_ktime_get_ns(), bpf_get_smp_processor_id(), leaving, prev_tid,
			 next_tid, state);
}

static __always_inline int handle_waking(struct task_struct *task)
{
	return on_waking(bpf_ktime_get_ns(), BPF_CORE_READ(task, pid), bpf_get_current_pid_tgid());
}

static __always_inline int handle_migrate(struct task_struct *task, int cpu)
{
	return on_migrate(bpf_ktime_get_ns(), BPF_CORE_READ(task, pid), cpu);
}

static __always_inline bool is_target(struct task_struct *task, __u32 tgid)
{
	__u64 cgroup;

	if (map_lookup(targets, &tgid))
		return true;
	cgroup = task_cgroup(task);
	if (map_lookup(target_cgroups, &cgroup))
		return true;
	cgroup = task_default_cgroup(task);
	return map_lookup(target_cgroups, &cgroup) != NULL;
}

static __always_inline int handle_fork(struct task_struct *parent, struct task_struct *child)
{
	__u32 tgid = BPF_CORE_READ(child, tgid), tid = BPF_CORE_READ(child, pid), one = 1;

	if (!is_target(parent, BPF_CORE_READ(parent, tgid)) && !is_target(child, tgid))
		return 0;
	if (tid == tgid) {
		if (map_update(targets, &tgid, &one)) {
			count_loss(LOST_TARGETS, 1);
			return 0;
		}
		tell(EVENT_FORK, tid, tgid);
	}
	add_thread(bpf_ktime_get_ns(), tid, tgid);
	return 0;
}

static __always_inline int handle_exec(struct task_struct *task)
{
	__u32 tgid = BPF_CORE_READ(task, tgid);

	if (map_lookup(targets, &tgid))
		tell(EVENT_EXEC, BPF_CORE_READ(task, pid), tgid);
	return 0;
}

/*
 * The last thread's exit, which need not be the leader's. From here on the number may become
 * a stranger's, who is no target: user space would be too late to say so.
 */
static __always_inline int handle_exit(struct task_struct *task)
{
	__u32 tgid = BPF_CORE_READ(task, tgid);

	if (!map_lookup(targets, &tgid) || BPF_CORE_READ(task, signal, live.counter))
		return 0;
	map_delete(targets, &tgid);
	tell(EVENT_EXIT, tgid, tgid);
	return 0;
}

/* The CPU that the woken thread was queued on. */
static __always_inline int handle_wakeup(struct task_struct *task, int cpu)
{
	return on_wakeup(bpf_ktime_get_ns(), BPF_CORE_READ(task, pid), cpu);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switch_btf, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	return handle_switch(prev, next, preempt, prev_state);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(switch_btf_3args, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return handle_switch(prev, next, preempt, task_state(prev));
}

SEC("raw_tp/sched_switch")
int BPF_PROG(switch_raw, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	return handle_switch(prev, next, preempt, prev_state);
}

SEC("raw_tp/sched_switch")
int BPF_PROG(switch_raw_3args, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return handle_switch(prev, next, preempt, task_state(prev));
}

#define BOTH(hook, name, call, ...)                                                                \
	SEC("tp_btf/" #hook) int BPF_PROG(name##_btf, __VA_ARGS__) { return call; }                \
	SEC("raw_tp/" #hook) int BPF_PROG(name##_raw, __VA_ARGS__) { return call; }

BOTH(sched_waking, waking, handle_waking(task), struct task_struct *task)
BOTH(sched_wakeup, wakeup, handle_wakeup(task, task_cpu(task)), struct task_struct *task)
BOTH(sched_wakeup_new, wakeup_new, handle_wakeup(task, task_cpu(task)), struct task_struct *task)
BOTH(sched_migrate_task, migrate, handle_migrate(task, cpu), struct task_struct *task, int cpu)
BOTH(sched_process_fork, fork, handle_fork(parent, child), struct task_struct *parent,
     struct task_struct *child)
BOTH(sched_process_exec, exec, handle_exec(task), struct task_struct *task)
BOTH(sched_process_exit, exit, handle_exit(task), struct task_struct *task)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
