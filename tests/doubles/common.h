/* SPDX-License-Identifier: Apache-2.0 */
/* What launcher, spinner and thief have in common. */
#ifndef QC_DOUBLES_COMMON_H
#define QC_DOUBLES_COMMON_H

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000ull

/* BPF's bpf_ktime_get_ns() reads this clock too */
static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * NSEC + (uint64_t)ts.tv_nsec;
}

static inline uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static inline pid_t my_tid(void)
{
	return (pid_t)syscall(SYS_gettid);
}

static atomic_bool stopping;	/* end the run: time is up or we were told to */
static atomic_bool interrupted; /* we were told to: skip what follows the run */

static void on_signal(int sig)
{
	if (sig != SIGALRM)
		atomic_store_explicit(&interrupted, true, memory_order_relaxed);
	atomic_store_explicit(&stopping, true, memory_order_relaxed);
}

static inline bool stopped(void)
{
	return atomic_load_explicit(&stopping, memory_order_relaxed);
}

static inline void catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGALRM, &sa, NULL);
}

/*
 * Sleep to an absolute time or until told to stop. A signal may land on another
 * thread, so long sleeps are cut in pieces.
 */
static inline void sleep_until(uint64_t deadline)
{
	uint64_t now;

	while (!stopped() && (now = now_ns()) < deadline) {
		uint64_t piece = deadline - now > NSEC / 10 ? now + NSEC / 10 : deadline;
		struct timespec ts = { .tv_sec = (time_t)(piece / NSEC),
				       .tv_nsec = (long)(piece % NSEC) };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
	}
}

/* Say that everything is set up, then hold until the file appears. */
static inline void wait_gate(const char *file)
{
	if (!file)
		return;
	printf("ready %d\n", (int)getpid());
	fflush(stdout);
	while (!stopped() && access(file, F_OK) != 0)
		sleep_until(now_ns() + NSEC / 1000);
}

static inline void fail(const char *what, const char *detail)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, detail);
	exit(2);
}

static inline double parse_number(const char *option, const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= 0) || value > 1e18)
		fail(option, "needs a number >= 0");
	return value;
}

static inline uint64_t parse_count(const char *option, const char *text)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 0);

	if (end == text || *end || *text == '-')
		fail(option, "needs a whole number >= 0");
	return value;
}

static inline void pin_to(int cpu)
{
	cpu_set_t set;

	if (cpu < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((unsigned int)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("--cpu", strerror(errno));
}

#endif
