/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Structs and constants that the BPF programs and user space share.
 *
 * probes/layout.py mirrors every struct here; a test compares size and offsets.
 * All times are nanoseconds of CLOCK_MONOTONIC.
 */
#ifndef QUIETCORE_LAYOUT_H
#define QUIETCORE_LAYOUT_H

#define COMM_LEN 16
#define WAITERS_PER_CPU 16
#define IRQ_NESTING 8
#define MAX_APIS 64

/*
 * What a thread is doing. The first six are the split that sums to wall time;
 * the rest never accumulate.
 */
enum thread_state {
	ON_CPU = 0,
	RUNQUEUE_WAIT = 1, /* woken up, waiting for a CPU */
	PREEMPTED = 2,	   /* runnable but taken off the CPU */
	THROTTLED = 3,	   /* off the CPU by CFS quota */
	SLEEPING = 4,	   /* interruptible */
	BLOCKED = 5,	   /* uninterruptible: disk, page fault, lock in the kernel */
	NR_STATES = 6,
	UNKNOWN = 6, /* seeded, no event yet: the first event tells what it was */
	EXITED = 7,
};

/*
 * One target thread. Single writer at any time: events of one thread are
 * ordered by its run queue's lock. A reader copies from low to high
 * addresses, so `written` (first word, stored last) equal to `writing` (last
 * word, stored first) proves that the copy is not torn.
 */
struct thread {
	__u64 written;
	__u64 since; /* when `state` began */
	__u64 ns[8]; /* by thread_state; two spare */
	__u32 state;
	__u32 resolved; /* what UNKNOWN turned out to be; until then what /proc said */
	__u64 seeded;	/* when it was seeded; 0 once it was born under our eyes */
	__u64 irq_ns;
	__u64 softirq_ns;
	__u64 irqs;
	__u64 softirqs;
	__u64 voluntary;
	__u64 involuntary;
	__u64 migrations;
	__u64 wakeups;
	__u64 born; /* fork time; 0 when older than us */
	__u32 tgid;
	__u32 cpu;
	__u32 waiter;	/* index + 1 into cpu_queue, 0 when not queued */
	__u32 offender; /* tid that ran longest in the last finished wait */
	char comm[COMM_LEN];
	__u64 writing;
};

/* Threads of targets that wait on one CPU, and what runs there meanwhile. */
struct waiter {
	__u64 since;
	__u64 top_ns;
	__u32 top_tid;
	__u32 pad;
};

struct cpu_queue {
	__u64 switched; /* when `running` got the CPU */
	__u32 running;
	__u32 pad;
	__u32 tids[WAITERS_PER_CPU]; /* 0 = free slot */
	struct waiter waiters[WAITERS_PER_CPU];
};

/* How long `offender` ran while `victim` was runnable on the same CPU. */
struct blame_key {
	__u32 victim;	/* tid */
	__u32 offender; /* tid; 0 = the CPU was idle: wake-up latency */
};

struct blame {
	__u64 ns;
	__u64 slices;
	__u64 cgroup; /* id in the cpu controller's hierarchy, 0 = unknown */
	__u32 tgid;
	__u32 pad;
	char comm[COMM_LEN];
};

/* How often `waker` ended a sleep of `wakee`, and how much sleep that was. */
struct wake_key {
	__u32 waker; /* tid; 0 = interrupt context: a timer or a device */
	__u32 wakee;
};

struct wake {
	__u64 wakeups;
	__u64 slept_ns;
};

enum irq_kind {
	IRQ_HARD = 1,	/* device interrupt, by number */
	IRQ_SOFT = 2,	/* softirq, by vector */
	IRQ_VECTOR = 3, /* local interrupt: timer, reschedule, function call */
};

enum irq_vector {
	VECTOR_LOCAL_TIMER = 0,
	VECTOR_RESCHEDULE = 1,
	VECTOR_CALL_FUNCTION = 2,
	VECTOR_CALL_FUNCTION_SINGLE = 3,
	VECTOR_IRQ_WORK = 4,
	NR_VECTORS = 5,
};

#define NR_SOFTIRQS 10
/* Rows of the per-CPU totals: softirqs, then vectors, then all device IRQs. */
#define TOTAL_SOFTIRQ 0
#define TOTAL_VECTOR NR_SOFTIRQS
#define TOTAL_HARD (NR_SOFTIRQS + NR_VECTORS)
#define NR_IRQ_TOTALS (TOTAL_HARD + 1)

struct irq_key {
	__u32 tid; /* the interrupted thread */
	__u32 id;  /* irq_kind << 16 | number */
};

struct irq_time {
	__u64 ns; /* exclusive of nested interrupts */
	__u64 count;
};

struct irq_frame {
	__u64 start;
	__u64 nested;
	__u32 id;
	__u32 pad;
};

struct irq_stack {
	__u32 depth;
	__u32 pad;
	struct irq_frame frames[IRQ_NESTING];
};

/*
 * CUDA calls. Durations are counted in log-linear buckets, eight to an octave:
 * a bucket holds values above the bound before it up to and including its own.
 */
#define HIST_SUB_BITS 3
#define HIST_SLOTS 288 /* 36 octaves: up to 68 s */

enum api_class {
	API_LAUNCH = 0,
	API_GRAPH_LAUNCH = 1,
	API_SYNC = 2,
	API_COPY = 3,
	API_ALLOC = 4,
};

/* Attach cookie of a probe: api id in the low byte, class above it. */
#define COOKIE_API(cookie) ((cookie) & 0x3f)
#define COOKIE_CLASS(cookie) (((cookie) >> 8) & 0x7)

/* Whether the thread left the CPU within a launch interval or a call. */
enum interruption {
	UNINTERRUPTED = 0,
	SWITCHED_VOLUNTARILY = 1, /* slept or blocked, never pushed aside */
	SWITCHED_INVOLUNTARILY = 2,
	NR_INTERRUPTIONS = 3,
};

/* What can be stolen from a thread; indices of stolen arrays. */
enum theft {
	STOLEN_RUNQUEUE = 0,
	STOLEN_PREEMPTED = 1,
	STOLEN_THROTTLED = 2,
	STOLEN_IRQ = 3,
	STOLEN_SOFTIRQ = 4,
	NR_THEFTS = 5,
};

/* Running totals of a thread, taken at one moment. */
struct toll {
	__u64 stolen[NR_THEFTS];
	__u64 slept; /* sleeping + blocked */
	__u64 voluntary;
	__u64 involuntary;
	__u64 irqs; /* irqs + softirqs */
};

struct durations {
	__u64 count;
	__u64 sum;
	__u64 stolen[NR_THEFTS];
	__u64 slept;
	__u64 voluntary;
	__u64 involuntary;
	__u64 irqs;
	__u32 hist[NR_INTERRUPTIONS][HIST_SLOTS];
};

/* One launching thread; written only by the thread itself. */
struct launcher {
	__u64 written;
	__u32 tgid;
	__u32 epoch; /* attach period in which last_launch was taken */
	__u32 depth; /* nesting of probed calls: runtime inside driver counts once */
	__u32 api;
	__u64 frame; /* stack pointer of the outermost call */
	__u64 entered;
	__u64 last_launch;
	struct toll at_launch; /* at last_launch */
	struct toll at_entry;  /* at entered */
	__u64 hits; /* every probe hit, for its cost; nested and switched-off ones too */
	__u64 calls[MAX_APIS];
	struct durations interval; /* launch to launch, same thread */
	struct durations launch;   /* entry to return of a launch */
	struct durations sync;	   /* entry to return of a synchronisation */
	__u64 writing;
};

struct cuda_config {
	__u32 epoch;	  /* raised at every attach: forgets what came before */
	__u32 enabled;	  /* 0 while attaching or detaching: nothing is counted */
	__u64 outlier_ns; /* launches that lost more go to the ring buffer */
};

enum event_kind {
	EVENT_OUTLIER = 1,
	EVENT_FORK = 2, /* a target forked a process */
	EVENT_EXEC = 3,
	EVENT_EXIT = 4, /* last thread of a target process is gone */
};

struct event {
	__u64 time;
	__u32 kind;
	__u32 tid;
	__u32 tgid;
	__u32 api;
	__u64 ns; /* duration of the launch interval */
	__u64 stolen[NR_THEFTS];
	__u32 offender; /* tid */
	__u32 pad;
	char comm[COMM_LEN];
};

/* Why something is missing from the maps. Rows of the per-CPU array. */
enum loss {
	LOST_THREADS = 0,   /* threads map full */
	LOST_BLAME = 1,	    /* blame map full, nanoseconds */
	LOST_WAITERS = 2,   /* more waiting threads on a CPU than slots, waits */
	LOST_WAKES = 3,	    /* wakes map full */
	LOST_IRQ = 4,	    /* irq_times map full, nanoseconds */
	LOST_IRQ_STACK = 5, /* unpaired or too deeply nested interrupts */
	LOST_LAUNCHERS = 6, /* launchers map full, calls */
	LOST_EVENTS = 7,    /* ring buffer full */
	LOST_TARGETS = 8,   /* targets map full */
	LOST_SWITCHES = 9,  /* target found running, its switch-in was not shown */
	NR_LOSSES = 10,
};

#endif
