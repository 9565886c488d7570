// SPDX-License-Identifier: Apache-2.0
/*
 * A stand-in for libcuda.so.1: the launch, sync and copy entries with their
 * real argument lists, a host cost per call and one simulated device timeline
 * per process. It computes nothing and moves no data. Settings are read from
 * the environment once, when the library is loaded (see README.md).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "cuda_abi.h"

#define NSEC 1000000000ull
#define SLOTS 128

enum kind { LAUNCH, SYNC, COPY, OTHER, KINDS };

#define APIS(X)                                                                \
	X(cuInit, OTHER)                                                       \
	X(cuDriverGetVersion, OTHER)                                           \
	X(cuDeviceGetCount, OTHER)                                             \
	X(cuLaunchKernel, LAUNCH)                                              \
	X(cuLaunchKernel_ptsz, LAUNCH)                                         \
	X(cuLaunchKernelEx, LAUNCH)                                            \
	X(cuLaunchKernelEx_ptsz, LAUNCH)                                       \
	X(cuLaunchCooperativeKernel, LAUNCH)                                   \
	X(cuLaunchCooperativeKernel_ptsz, LAUNCH)                              \
	X(cuGraphLaunch, LAUNCH)                                               \
	X(cuGraphLaunch_ptsz, LAUNCH)                                          \
	X(cuStreamSynchronize, SYNC)                                           \
	X(cuStreamSynchronize_ptsz, SYNC)                                      \
	X(cuEventSynchronize, SYNC)                                            \
	X(cuCtxSynchronize, SYNC)                                              \
	X(cuMemcpyAsync, COPY)                                                 \
	X(cuMemcpyAsync_ptsz, COPY)                                            \
	X(cuMemcpyHtoDAsync_v2, COPY)                                          \
	X(cuMemcpyHtoDAsync_v2_ptsz, COPY)                                     \
	X(cuMemcpyDtoHAsync_v2, COPY)                                          \
	X(cuMemcpyDtoHAsync_v2_ptsz, COPY)                                     \
	X(cuMemAlloc_v2, OTHER)                                                \
	X(cuMemFree_v2, OTHER)                                                 \
	X(cuGetProcAddress_v2, OTHER)

/* the public symbol as an address, whichever way it is defined */
#define DECLARE(name, kind)                                                    \
	EXPORTED(name)                                                         \
	extern const char entry_##name[] __asm__(#name)                        \
		__attribute__((visibility("default")));
APIS(DECLARE)

#define ID(name, kind) API_##name,
enum api { APIS(ID) API_COUNT };

#define ROW(name, kind) { #name, entry_##name, kind },
static const struct {
	const char *name;
	const void *entry;
	enum kind kind;
} apis[] = { APIS(ROW) };

__attribute__((visibility("default"))) uint64_t fakecuda_count(const char *api);

/* ---- exact counts ---- */

/*
 * A thread keeps to one slot, so launching threads share no cache line. Past
 * SLOTS threads slots are shared; the adds are atomic, so counts stay exact.
 */
static struct {
	_Alignas(64) atomic_ullong calls[API_COUNT];
} slots[SLOTS];
static atomic_uint next_slot;
static _Thread_local unsigned int my_slot; /* 0: none yet, else slot + 1 */

static void count(enum api api)
{
	if (!my_slot)
		my_slot = atomic_fetch_add(&next_slot, 1) % SLOTS + 1;
	atomic_fetch_add_explicit(&slots[my_slot - 1].calls[api], 1,
				  memory_order_relaxed);
}

static uint64_t count_of(enum api api)
{
	uint64_t sum = 0;

	for (int i = 0; i < SLOTS; i++)
		sum += atomic_load_explicit(&slots[i].calls[api],
					    memory_order_relaxed);
	return sum;
}

uint64_t fakecuda_count(const char *api)
{
	for (int i = 0; i < API_COUNT; i++)
		if (!strcmp(api, apis[i].name))
			return count_of(i);
	return 0;
}

/* ---- time ---- */

static uint64_t cost_ns[KINDS];
static uint64_t kernel_ns;
static bool sync_spins;
static uint64_t tick_ns; /* one back-to-back reading of the clock */
static uint64_t gap_ns;	 /* longer than this between readings: we were off */
static atomic_ullong free_at;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC + (uint64_t)ts.tv_nsec;
}

/*
 * Host work of a call. Time in which the thread did not run (interrupt,
 * preemption, hypervisor) does not count as work done: spinning to a wall
 * deadline would swallow every interrupt shorter than the call.
 */
static void burn(uint64_t ns)
{
	uint64_t done = 0, last, now;

	if (!ns)
		return;
	for (last = now_ns(); done < ns; last = now) {
		now = now_ns();
		done += now - last > gap_ns ? tick_ns : now - last;
	}
}

static void calibrate(void)
{
	uint64_t best = UINT64_MAX, last = now_ns(), now;

	for (int i = 0; i < 256; i++, last = now) {
		now = now_ns();
		if (now > last && now - last < best)
			best = now - last;
	}
	tick_ns = best == UINT64_MAX ? 1 : best;
	gap_ns = 4 * tick_ns > 100 ? 4 * tick_ns : 100;
}

static void device_queue(void)
{
	unsigned long long now, old, start;

	if (!kernel_ns)
		return;
	now = now_ns();
	old = atomic_load(&free_at);
	do {
		start = old > now ? old : now;
	} while (!atomic_compare_exchange_weak(&free_at, &old, start + kernel_ns));
}

/* A GPU's interrupt has no timer slack; the default 50 us would look like one. */
static void no_timer_slack(void)
{
	static _Thread_local bool done;

	if (!done)
		prctl(PR_SET_TIMERSLACK, 1);
	done = true;
}

static void device_wait(void)
{
	uint64_t until = atomic_load(&free_at);
	struct timespec ts = { .tv_sec = (time_t)(until / NSEC),
			       .tv_nsec = (long)(until % NSEC) };

	if (until <= now_ns())
		return;
	if (sync_spins) {
		while (now_ns() < until)
			;
		return;
	}
	no_timer_slack();
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

static CUresult call(enum api api)
{
	enum kind kind = apis[api].kind;

	count(api);
	burn(cost_ns[kind]);
	if (kind == LAUNCH)
		device_queue();
	else if (kind == SYNC)
		device_wait();
	return CUDA_SUCCESS;
}

/* ---- the entries ---- */

#define ENTRY(name, ...)                                                       \
	CUresult name(__VA_ARGS__)                                             \
	{                                                                      \
		return call(API_##name);                                       \
	}

ENTRY(cuInit, unsigned int flags)
ENTRY(cuLaunchKernel, CU_LAUNCH_KERNEL_ARGS)
ENTRY(cuLaunchKernel_ptsz, CU_LAUNCH_KERNEL_ARGS)
ENTRY(cuLaunchKernelEx, CU_LAUNCH_EX_ARGS)
ENTRY(cuLaunchKernelEx_ptsz, CU_LAUNCH_EX_ARGS)
ENTRY(cuLaunchCooperativeKernel, CU_LAUNCH_COOP_ARGS)
ENTRY(cuLaunchCooperativeKernel_ptsz, CU_LAUNCH_COOP_ARGS)
ENTRY(cuGraphLaunch, CU_GRAPH_ARGS)
ENTRY(cuGraphLaunch_ptsz, CU_GRAPH_ARGS)
ENTRY(cuStreamSynchronize, CU_STREAM_ARGS)
ENTRY(cuStreamSynchronize_ptsz, CU_STREAM_ARGS)
ENTRY(cuEventSynchronize, CUevent event)
ENTRY(cuCtxSynchronize, void)
ENTRY(cuMemcpyAsync, CU_MEMCPY_ARGS)
ENTRY(cuMemcpyAsync_ptsz, CU_MEMCPY_ARGS)
ENTRY(cuMemcpyHtoDAsync_v2, CU_HTOD_ARGS)
ENTRY(cuMemcpyHtoDAsync_v2_ptsz, CU_HTOD_ARGS)
ENTRY(cuMemcpyDtoHAsync_v2, CU_DTOH_ARGS)
ENTRY(cuMemcpyDtoHAsync_v2_ptsz, CU_DTOH_ARGS)
ENTRY(cuMemFree_v2, CUdeviceptr ptr)

CUresult cuDriverGetVersion(int *version)
{
	*version = DOUBLE_CUDA_VERSION;
	return call(API_cuDriverGetVersion);
}

CUresult cuDeviceGetCount(int *devices)
{
	*devices = 1;
	return call(API_cuDeviceGetCount);
}

/* Addresses are distinct and never mapped: nobody may look behind them. */
CUresult cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes)
{
	static atomic_ullong next = 0x7f0000000000ull;

	*ptr = atomic_fetch_add(&next, (bytes + 511) & ~511ull);
	return call(API_cuMemAlloc_v2);
}

static const void *entry_of(const char *symbol, const char *suffix)
{
	size_t len = strlen(symbol);

	for (int i = 0; i < API_COUNT; i++)
		if (!strncmp(apis[i].name, symbol, len) &&
		    !strcmp(apis[i].name + len, suffix))
			return apis[i].entry;
	return NULL;
}

/*
 * Asked for the base name, the driver hands out the newest version, and the
 * twin where the per-thread default stream is wanted and the twin exists.
 */
CUresult cuGetProcAddress_v2(CU_PROC_ARGS)
{
	static const char *const suffixes[] = { "_v2_ptsz", "_ptsz", "_v2", "" };
	bool twin = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
	const void *entry = NULL;

	call(API_cuGetProcAddress_v2);
	if (!symbol || !pfn)
		return CUDA_ERROR_INVALID_VALUE;
	for (int i = twin ? 0 : 2; i < 4 && !entry; i++)
		entry = entry_of(symbol, suffixes[i]);
	*pfn = (void *)entry;
	if (status)
		*status = entry ? CU_GET_PROC_ADDRESS_SUCCESS :
				  CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
	return entry ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* ---- load and exit ---- */

static uint64_t setting(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* A forked child starts from zero, so that no call is counted twice. */
static void forget(void)
{
	for (int i = 0; i < SLOTS; i++)
		for (int j = 0; j < API_COUNT; j++)
			atomic_store(&slots[i].calls[j], 0);
}

static pid_t loaded_by;

__attribute__((constructor)) static void on_load(void)
{
	const char *sync = getenv("FAKECUDA_SYNC");

	cost_ns[LAUNCH] = setting("FAKECUDA_LAUNCH_NS", 2000);
	cost_ns[SYNC] = setting("FAKECUDA_SYNC_NS", 1000);
	cost_ns[COPY] = setting("FAKECUDA_COPY_NS", 1000);
	cost_ns[OTHER] = setting("FAKECUDA_OTHER_NS", 0);
	kernel_ns = setting("FAKECUDA_KERNEL_NS", 0);
	sync_spins = sync && !strcmp(sync, "spin");
	loaded_by = getpid();
	calibrate();
	pthread_atfork(NULL, NULL, forget);
}

static void write_counts(FILE *out)
{
	uint64_t launches = 0;

	fprintf(out, "{\"pid\": %d, \"calls\": {", (int)getpid());
	for (int i = 0; i < API_COUNT; i++) {
		uint64_t calls = count_of(i);

		fprintf(out, "%s\"%s\": %llu", i ? ", " : "", apis[i].name,
			(unsigned long long)calls);
		launches += apis[i].kind == LAUNCH ? calls : 0;
	}
	fprintf(out, "}, \"launches\": %llu}\n", (unsigned long long)launches);
}

/* FAKECUDA_COUNTS may hold one %p, replaced by the pid. */
static bool counts_path(char *path, size_t size)
{
	const char *name = getenv("FAKECUDA_COUNTS");
	const char *mark = name ? strstr(name, "%p") : NULL;
	int len;

	if (!name || !*name)
		return false;
	if (mark)
		len = snprintf(path, size, "%.*s%d%s", (int)(mark - name), name,
			       (int)getpid(), mark + 2);
	else if (getpid() == loaded_by) /* a forked child must not overwrite */
		len = snprintf(path, size, "%s", name);
	else
		return false;
	return len > 0 && (size_t)len < size;
}

__attribute__((destructor)) static void on_exit_write_counts(void)
{
	char path[4000], temp[4096];
	FILE *out;

	if (!counts_path(path, sizeof(path)))
		return;
	snprintf(temp, sizeof(temp), "%s.%d.tmp", path, (int)getpid());
	out = fopen(temp, "w");
	if (!out)
		return;
	write_counts(out);
	if (fclose(out) || rename(temp, path)) /* readers never see half a file */
		unlink(temp);
}
