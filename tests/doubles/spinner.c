// SPDX-License-Identifier: Apache-2.0
/*
 * Reads the CPU's counter without pause and notes every gap: time in which this
 * CPU did something else. The independent witness of stolen time.
 */
#define _GNU_SOURCE
#include <getopt.h>

#include "common.h"

static struct {
	int cpu;
	double duration;
	uint64_t threshold_ns;
	const char *gate;
} opt = { .cpu = -1, .duration = 10, .threshold_ns = 250 };

static struct {
	uint64_t gaps, lost, max; /* in ticks */
	uint64_t *per_second;
	size_t seconds;
} seen;

static inline uint64_t ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	uint64_t t;

	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
	return t;
#else
#error "no cycle counter for this machine"
#endif
}

static double ticks_per_ns(void)
{
	uint64_t t0 = ticks(), n0 = now_ns(), n1;

	while ((n1 = now_ns()) - n0 < 20 * NSEC / 1000)
		;
	return (double)(ticks() - t0) / (double)(n1 - n0);
}

/* A gap across the turn of a second belongs to both seconds. */
static void note_gap(uint64_t from, uint64_t to, uint64_t second)
{
	uint64_t len = to - from;

	seen.gaps++;
	seen.lost += len;
	if (len > seen.max)
		seen.max = len;
	while (from < to) {
		uint64_t i = from / second;
		uint64_t end = (i + 1) * second < to ? (i + 1) * second : to;

		if (i < seen.seconds)
			seen.per_second[i] += end - from;
		from = end;
	}
}

static uint64_t spin(double rate)
{
	uint64_t second = (uint64_t)(rate * NSEC);
	uint64_t length = (uint64_t)(opt.duration * rate * NSEC);
	uint64_t threshold = (uint64_t)((double)opt.threshold_ns * rate);
	uint64_t begin = ticks(), last = 0, t;

	do {
		t = ticks() - begin;
		if (t - last > threshold)
			note_gap(last, t, second);
		last = t;
	} while (t < length && !stopped());
	return t;
}

static void usage(FILE *out)
{
	fputs("usage: spinner [--cpu C] [--duration S] [--threshold-ns N] [--gate FILE]\n"
	      "  --cpu C           pin to CPU C\n"
	      "  --duration S      spin for S seconds (default 10)\n"
	      "  --threshold-ns N  a longer gap is lost time (default 250)\n"
	      "  --gate FILE       print 'ready PID', start when FILE exists\n",
	      out);
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "cpu", 1, NULL, 'c' },	  { "duration", 1, NULL, 'd' },
		{ "threshold-ns", 1, NULL, 't' }, { "gate", 1, NULL, 'g' },
		{ "help", 0, NULL, 'h' },	  { 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			opt.cpu = (int)parse_count("--cpu", optarg);
			break;
		case 'd':
			opt.duration = parse_number("--duration", optarg);
			break;
		case 't':
			opt.threshold_ns = parse_count("--threshold-ns", optarg);
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
}

static void report(uint64_t start, uint64_t end, uint64_t cpu_ns, double rate)
{
	size_t whole = (size_t)((end - start + NSEC - 1) / NSEC);

	printf("{\"pid\": %d, \"tid\": %d, \"cpu\": %d, \"threshold_ns\": %llu, "
	       "\"wall_ns\": %llu, \"cpu_ns\": %llu, \"lost_ns\": %.0f, "
	       "\"gaps\": %llu, \"max_gap_ns\": %.0f, \"start_ns\": %llu, "
	       "\"end_ns\": %llu, \"lost_per_second_ns\": [",
	       (int)getpid(), (int)my_tid(), opt.cpu,
	       (unsigned long long)opt.threshold_ns,
	       (unsigned long long)(end - start), (unsigned long long)cpu_ns,
	       (double)seen.lost / rate, (unsigned long long)seen.gaps,
	       (double)seen.max / rate, (unsigned long long)start,
	       (unsigned long long)end);
	for (size_t i = 0; i < whole && i < seen.seconds; i++)
		printf("%s%.0f", i ? ", " : "", (double)seen.per_second[i] / rate);
	printf("]}\n");
}

int main(int argc, char **argv)
{
	uint64_t start, end, cpu_ns, spun;
	double rate;

	parse(argc, argv);
	catch_signals();
	pin_to(opt.cpu);
	seen.seconds = (size_t)opt.duration + 2;
	seen.per_second = calloc(seen.seconds, sizeof(*seen.per_second));
	if (!seen.per_second)
		fail("memory", strerror(ENOMEM));
	memset(seen.per_second, 0, seen.seconds * sizeof(*seen.per_second));
	rate = ticks_per_ns();
	wait_gate(opt.gate);

	cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
	start = now_ns();
	spun = spin(rate);
	end = now_ns();
	cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;
	/* the whole run is the better ruler than the short calibration */
	if (end - start > NSEC / 10)
		rate = (double)spun / (double)(end - start);
	report(start, end, cpu_ns, rate);
	return 0;
}
