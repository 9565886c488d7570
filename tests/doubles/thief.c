// SPDX-License-Identifier: Apache-2.0
/* Takes a known share of one CPU: burns for duty * period, sleeps the rest. */
#define _GNU_SOURCE
#include <getopt.h>
#include <sys/resource.h>

#include "common.h"

static struct {
	int cpu, nice;
	double duty, period_ms, duration;
	clockid_t clock;
	const char *gate;
} opt = { .cpu = -1,
	  .duty = 0.3,
	  .period_ms = 20,
	  .duration = 10,
	  .clock = CLOCK_MONOTONIC };

static void burn(uint64_t ns)
{
	uint64_t until = clock_ns(opt.clock) + ns;

	while (clock_ns(opt.clock) < until && !stopped())
		;
}

static uint64_t steal(uint64_t start)
{
	uint64_t period = (uint64_t)(opt.period_ms * 1e6);
	uint64_t end = start + (uint64_t)(opt.duration * NSEC);
	uint64_t next = start, bursts = 0, now = start;

	while (!stopped() && now < end) {
		burn((uint64_t)(opt.duty * (double)period));
		bursts++;
		next += period;
		now = now_ns();
		if (now > next) /* late: take no more than the share from here on */
			next = now;
		sleep_until(next < end ? next : end);
		now = now_ns();
	}
	return bursts;
}

static void usage(FILE *out)
{
	fputs("usage: thief [options]\n"
	      "  --cpu C           pin to CPU C\n"
	      "  --duty F          share to take, 0..1 (default 0.3)\n"
	      "  --period-ms N     length of a period (default 20)\n"
	      "  --duration S      for S seconds (default 10)\n"
	      "  --nice N          -20..19 (default: inherited)\n"
	      "  --clock cpu|wall  what a burst is measured in (default wall)\n"
	      "  --gate FILE       print 'ready PID', start when FILE exists\n",
	      out);
}

static void set_nice(const char *text)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (end == text || *end)
		fail("--nice", "needs a whole number");
	if (setpriority(PRIO_PROCESS, 0, (int)value))
		fail("--nice", strerror(errno));
}

static void set_clock(const char *text)
{
	if (!strcmp(text, "cpu"))
		opt.clock = CLOCK_THREAD_CPUTIME_ID;
	else if (strcmp(text, "wall"))
		fail("--clock", "cpu or wall");
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "cpu", 1, NULL, 'c' },      { "duty", 1, NULL, 'u' },
		{ "period-ms", 1, NULL, 'p' }, { "duration", 1, NULL, 'd' },
		{ "nice", 1, NULL, 'n' },     { "clock", 1, NULL, 'k' },
		{ "gate", 1, NULL, 'g' },     { "help", 0, NULL, 'h' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			opt.cpu = (int)parse_count("--cpu", optarg);
			break;
		case 'u':
			opt.duty = parse_number("--duty", optarg);
			break;
		case 'p':
			opt.period_ms = parse_number("--period-ms", optarg);
			break;
		case 'd':
			opt.duration = parse_number("--duration", optarg);
			break;
		case 'n':
			set_nice(optarg);
			break;
		case 'k':
			set_clock(optarg);
			break;
		case 'g':
			opt.gate = optarg;
			break;
		case 'h':
			usage(stdout);
			exit(0);
		default:
			usage(stderr);
			exit(2);
		}
	}
	if (opt.duty > 1 || opt.period_ms < 0.01)
		fail("--duty, --period-ms", "out of range");
}

int main(int argc, char **argv)
{
	uint64_t start, end, cpu_ns, bursts;

	parse(argc, argv);
	catch_signals();
	pin_to(opt.cpu);
	prctl(PR_SET_TIMERSLACK, 1);
	wait_gate(opt.gate);

	cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	start = now_ns();
	bursts = steal(start);
	end = now_ns();
	cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;

	printf("{\"pid\": %d, \"tid\": %d, \"cpu\": %d, \"duty\": %g, "
	       "\"period_ms\": %g, \"nice\": %d, \"clock\": \"%s\", "
	       "\"bursts\": %llu, \"wall_ns\": %llu, \"cpu_ns\": %llu, "
	       "\"cpu_share\": %.5f, \"start_ns\": %llu, \"end_ns\": %llu}\n",
	       (int)getpid(), (int)my_tid(), opt.cpu, opt.duty, opt.period_ms,
	       getpriority(PRIO_PROCESS, 0),
	       opt.clock == CLOCK_MONOTONIC ? "wall" : "cpu",
	       (unsigned long long)bursts, (unsigned long long)(end - start),
	       (unsigned long long)cpu_ns,
	       end > start ? (double)cpu_ns / (double)(end - start) : 0,
	       (unsigned long long)start, (unsigned long long)end);
	return 0;
}
