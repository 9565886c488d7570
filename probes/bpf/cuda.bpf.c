// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Uprobes on the CUDA driver (or runtime). One pair of programs serves every
 * symbol: the attach cookie carries api id and class, see layout.h. The loader
 * attaches them for one process at a time, by uprobe_multi where the kernel
 * has it (6.6+), else as perf uprobes; cookies need 5.15.
 */
#include "maps.h"

HASH_MAP(launchers, __u32, struct launcher, 1024);
ARRAY_MAP(blank_launcher, BPF_MAP_TYPE_ARRAY, struct launcher, 1);
ARRAY_MAP(cuda_config, BPF_MAP_TYPE_ARRAY, struct cuda_config, 1);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Read on a timer, never with a wake-up: the reader must not become the noise. */
static __always_inline void tell_outlier(struct launcher *l, struct thread *t, __u64 now, __u32 tid)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	int i;

	if (!e) {
		count_loss(LOST_EVENTS, 1);
		return;
	}
	e->time = now;
	e->kind = EVENT_OUTLIER;
	e->tid = tid;
	e->tgid = l->tgid;
	e->api = COOKIE_API(l->api);
	e->ns = now - l->last_launch;
	for (i = 0; i < NR_THEFTS; i++)
		e->stolen[i] = l->at_entry.stolen[i] - l->at_launch.stolen[i];
	e->offender = t->offender;
	e->pad = 0;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

#include "launch.h"

SEC("uprobe")
int cuda_entry(struct pt_regs *ctx)
{
	__u64 id = bpf_get_current_pid_tgid();

	return call_entry(bpf_ktime_get_ns(), id, id >> 32, PT_REGS_SP(ctx),
			  bpf_get_attach_cookie(ctx));
}

SEC("uretprobe")
int cuda_return(struct pt_regs *ctx)
{
	return call_return(bpf_ktime_get_ns(), bpf_get_current_pid_tgid());
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
