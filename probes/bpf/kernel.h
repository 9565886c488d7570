/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types that the programs read, relocated at load time (CO-RE).
 * Kernel drift lives here and nowhere else.
 */
#ifndef QUIETCORE_KERNEL_H
#define QUIETCORE_KERNEL_H

#include <linux/types.h>
#include <linux/ptrace.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include <stdbool.h>

#ifndef PF_KTHREAD
#define PF_KTHREAD 0x00200000
#endif

/* task state bits of include/linux/sched.h, unchanged since 4.14 */
#define TASK_UNINTERRUPTIBLE 0x2
#define TASK_NOLOAD 0x400 /* with UNINTERRUPTIBLE: idle, not blocked */
#define TASK_DEAD 0x80

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};

struct cfs_rq {
	int throttle_count; /* CONFIG_CFS_BANDWIDTH */
};

struct sched_entity {
	struct cfs_rq *cfs_rq; /* CONFIG_FAIR_GROUP_SCHED */
};

struct thread_info {
	__u32 cpu; /* 5.16+ */
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live; /* threads of the process that have not begun to exit */
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int __state; /* 5.14+ */
	unsigned int flags;
	int pid;
	int tgid;
	char comm[16];
	struct signal_struct *signal;
	struct css_set *cgroups;
	struct sched_entity se;
	bool throttled; /* 6.18+: tasks are throttled one by one */
};

/* before 5.14 (commit 2f064a59a11f) */
struct task_struct___old_state {
	long state;
};

/* before 5.16 (commit bcf9033e5449) */
struct task_struct___old_cpu {
	unsigned int cpu;
};

enum cgroup_subsys_id {
	cpu_cgrp_id = 1,
};

#pragma clang attribute pop

static __always_inline unsigned int task_state(struct task_struct *task)
{
	struct task_struct___old_state *old = (void *)task;

	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state);
	return BPF_CORE_READ(old, state);
}

/* Inside a wake-up: the CPU on whose queue the task has just been put. */
static __always_inline __u32 task_cpu(struct task_struct *task)
{
	struct task_struct___old_cpu *old = (void *)task;

	if (bpf_core_field_exists(task->thread_info.cpu))
		return BPF_CORE_READ(task, thread_info.cpu);
	return BPF_CORE_READ(old, cpu);
}

/* Is the task, which has just left the CPU runnable, held back by its quota? */
static __always_inline bool task_throttled(struct task_struct *task)
{
	if (bpf_core_field_exists(task->throttled))
		return BPF_CORE_READ(task, throttled);
	if (bpf_core_field_exists(task->se.cfs_rq) &&
	    bpf_core_field_exists(((struct cfs_rq *)0)->throttle_count))
		return BPF_CORE_READ(task, se.cfs_rq, throttle_count) > 0;
	return false;
}

/*
 * The cgroup of the cpu controller: the one whose quota and weight apply. On a
 * cgroup v1 or hybrid host the default hierarchy's id is 1 for everyone.
 */
static __always_inline __u64 task_cgroup(struct task_struct *task)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *css = NULL;

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, cpu_cgrp_id))
		return BPF_CORE_READ(set, dfl_cgrp, kn, id);
	bpf_core_read(&css, sizeof(css),
		      &set->subsys[bpf_core_enum_value(enum cgroup_subsys_id, cpu_cgrp_id)]);
	return BPF_CORE_READ(css, cgroup, kn, id);
}

/* In the default (v2) hierarchy, where a cgroup may lack the cpu controller. */
static __always_inline __u64 task_default_cgroup(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

#endif
