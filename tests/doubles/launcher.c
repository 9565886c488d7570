// SPDX-License-Identifier: Apache-2.0
/*
 * Plays the host side of an inference engine: for every token a burst of kernel
 * launches, one copy back, one stream sync, then a pause to keep the pace. Knows
 * exactly what it launched, by whom and when.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "common.h"
#include "cuda_abi.h"
#include "launchlog.h"

#define TWIN 4			     /* from a launch id to its _ptsz twin */
#define LOG_BYTES (256ull << 20)     /* the most memory the log may take */
#define MAX_LANES 1024
#define MAX_LISTED 4096		     /* threads named in the result, per lane */

enum layer { DRIVER, RUNTIME, BOTH };

static struct {
	uint64_t tokens, total, per_token, threads;
	double duration, rate, dlopen_after, linger;
	bool worker, short_lived, twins;
	enum layer layer;
	const char *api, *lib_dir, *gate, *log;
	int cpu;
} opt = { .tokens = UINT64_MAX,
	  .total = UINT64_MAX,
	  .per_token = 950,
	  .threads = 1,
	  .layer = DRIVER,
	  .api = "launch",
	  .cpu = -1 };

/* ---- the libraries ---- */

#define DRIVER_OTHERS(X)                                                       \
	X(cuInit)                                                              \
	X(cuMemAlloc_v2)                                                       \
	X(cuStreamSynchronize)                                                 \
	X(cuStreamSynchronize_ptsz)                                            \
	X(cuMemcpyDtoHAsync_v2)                                                \
	X(cuMemcpyDtoHAsync_v2_ptsz)
#define RUNTIME_OTHERS(X)                                                      \
	X(cudaStreamSynchronize)                                               \
	X(cudaStreamSynchronize_ptsz)                                          \
	X(cudaMemcpyAsync)                                                     \
	X(cudaMemcpyAsync_ptsz)

#define POINTER(name) static name##_fn *p_##name;
DRIVER_LAUNCHES(POINTER)
DRIVER_OTHERS(POINTER)
RUNTIME_LAUNCHES(POINTER)
RUNTIME_OTHERS(POINTER)

#define NAME(name) #name,
static const char *const api_names[] = { DRIVER_LAUNCHES(NAME)
						 RUNTIME_LAUNCHES(NAME) };

static uint64_t (*p_fakecuda_count)(const char *api);
static CUdeviceptr device_mem;
static char host_mem[64];

static void *open_library(const char *name)
{
	char path[PATH_MAX];
	void *lib;

	snprintf(path, sizeof(path), "%s/%s", opt.lib_dir, name);
	lib = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
	if (!lib)
		fail("dlopen", dlerror());
	return lib;
}

static void *symbol(void *lib, const char *name)
{
	void *address = dlsym(lib, name);

	if (!address)
		fail("dlsym", dlerror());
	return address;
}

#define FIND(name) *(void **)&p_##name = symbol(lib, #name);

#ifdef STATIC_CUDART
#define STATIC(name)                                                           \
	extern name##_fn name;                                                 \
	p_##name = name;
static void load_runtime(void)
{
	RUNTIME_LAUNCHES(STATIC)
	RUNTIME_OTHERS(STATIC)
}
#else
static void load_runtime(void)
{
	void *lib = open_library("libcudart.so.12");

	RUNTIME_LAUNCHES(FIND)
	RUNTIME_OTHERS(FIND)
}
#endif

/*
 * The driver goes first, by its path: the runtime's own dlopen("libcuda.so.1")
 * then finds it by its soname, in whatever directory it was asked for.
 */
static void load_libraries(void)
{
	void *lib = open_library("libcuda.so.1");

	DRIVER_LAUNCHES(FIND)
	DRIVER_OTHERS(FIND)
	*(void **)&p_fakecuda_count = dlsym(lib, "fakecuda_count");
	if (opt.layer != DRIVER)
		load_runtime();
	p_cuInit(0);
	p_cuMemAlloc_v2(&device_mem, sizeof(host_mem));
}

static void default_lib_dir(void)
{
	static char path[PATH_MAX];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - 1);

	if (opt.lib_dir)
		return;
	if (len < 0)
		fail("/proc/self/exe", strerror(errno));
	path[len] = 0;
	*strrchr(path, '/') = 0;
	opt.lib_dir = path;
}

/* ---- one launch ---- */

#define KERNEL ((CUfunction)0x1000)
#define GRAPH ((CUgraphExec)0x2000)

static const CUlaunchConfig cu_config = { 1, 1, 1, 128, 1, 1, 0, NULL, NULL, 0 };
static const cudaLaunchConfig_t cuda_config = {
	{ 1, 1, 1 }, { 128, 1, 1 }, 0, NULL, NULL, 0
};

static int launch(enum launch_api api)
{
	const dim3 grid = { 1, 1, 1 }, block = { 128, 1, 1 };

	switch (api) {
#define CASE(name, ...)                                                        \
	case LAUNCH_##name:                                                    \
		return p_##name(__VA_ARGS__);
#define BOTH_STREAMS(name, ...)                                                \
	CASE(name, __VA_ARGS__)                                                \
	CASE(name##_ptsz, __VA_ARGS__)
	BOTH_STREAMS(cuLaunchKernel, KERNEL, 1, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL)
	BOTH_STREAMS(cuLaunchKernelEx, &cu_config, KERNEL, NULL, NULL)
	BOTH_STREAMS(cuLaunchCooperativeKernel, KERNEL, 1, 1, 1, 128, 1, 1, 0, NULL, NULL)
	BOTH_STREAMS(cuGraphLaunch, GRAPH, NULL)
	BOTH_STREAMS(cudaLaunchKernel, KERNEL, grid, block, NULL, 0, NULL)
	BOTH_STREAMS(cudaLaunchKernelExC, &cuda_config, KERNEL, NULL)
	BOTH_STREAMS(cudaLaunchCooperativeKernel, KERNEL, grid, block, NULL, 0, NULL)
	BOTH_STREAMS(cudaGraphLaunch, GRAPH, NULL)
	case LAUNCH_APIS:
		break;
	}
	return -1;
}

/* What a token ends with: the sampled token comes back to the host. */
static void copy_and_sync(bool runtime)
{
	const void *src = (const void *)(uintptr_t)device_mem;
	size_t bytes = sizeof(host_mem);

	if (runtime && opt.twins) {
		p_cudaMemcpyAsync_ptsz(host_mem, src, bytes, cudaMemcpyDeviceToHost, NULL);
		p_cudaStreamSynchronize_ptsz(NULL);
	} else if (runtime) {
		p_cudaMemcpyAsync(host_mem, src, bytes, cudaMemcpyDeviceToHost, NULL);
		p_cudaStreamSynchronize(NULL);
	} else if (opt.twins) {
		p_cuMemcpyDtoHAsync_v2_ptsz(host_mem, device_mem, bytes, NULL);
		p_cuStreamSynchronize_ptsz(NULL);
	} else {
		p_cuMemcpyDtoHAsync_v2(host_mem, device_mem, bytes, NULL);
		p_cuStreamSynchronize(NULL);
	}
}

/* The launches of a run, taken in turn. */
static struct {
	enum launch_api api[LAUNCH_APIS];
	unsigned int len;
} plan;

static void plan_add(unsigned int api)
{
	if (opt.layer != RUNTIME)
		plan.api[plan.len++] = api;
	if (opt.layer != DRIVER)
		plan.api[plan.len++] = LAUNCH_cudaLaunchKernel + api;
}

static void make_plan(void)
{
	static const char *const names[] = { "launch", "ex", "coop", "graph" };
	bool mixed = !strcmp(opt.api, "mixed");

	opt.twins = !strcmp(opt.api, "ptsz");
	for (unsigned int i = 0; i < TWIN; i++) {
		if (mixed || !strcmp(opt.api, names[i]))
			plan_add(i);
		if (mixed || opt.twins)
			plan_add(i + TWIN);
	}
	if (!plan.len)
		fail("--api", "launch, ex, coop, graph, mixed or ptsz");
}

static uint64_t lowest(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- lanes: a lane is one sequence of tokens ---- */

struct launching_thread {
	pid_t tid;
	uint64_t launches;
	char name[16];
};

struct lane {
	_Alignas(64) unsigned int index;
	pthread_t thread;
	uint64_t budget; /* launches still to do */
	uint64_t tokens, launches, errors, turn;
	uint64_t by_api[LAUNCH_APIS];
	uint64_t first_ns, last_ns;
	struct launch_record *log;
	uint64_t log_len, log_cap, log_dropped;
	struct launching_thread *threads;
	uint64_t listed, unlisted;
};

static struct lane *lanes;
static atomic_uint lanes_done;
static uint64_t deadline = UINT64_MAX; /* no token begins after it */
static pthread_barrier_t barrier;

static void log_launch(struct lane *lane, pid_t tid, enum launch_api api,
		       uint64_t start)
{
	struct launch_record *r;
	uint64_t end = now_ns();

	if (lane->log_len == lane->log_cap) {
		lane->log_dropped++;
		return;
	}
	r = &lane->log[lane->log_len++];
	r->tid = (uint32_t)tid;
	r->api = api;
	r->start_ns = start;
	r->end_ns = end;
}

static void note_thread(struct lane *lane, pid_t tid, uint64_t launches)
{
	struct launching_thread *t;

	if (lane->listed == MAX_LISTED) {
		lane->unlisted++;
		return;
	}
	t = &lane->threads[lane->listed++];
	t->tid = tid;
	t->launches = launches;
	prctl(PR_GET_NAME, t->name);
}

/* One token's launches, fewer if told to stop or the budget ends. */
static void token(struct lane *lane, pid_t tid)
{
	bool runtime = opt.layer == RUNTIME || (opt.layer == BOTH && lane->tokens & 1);
	uint64_t done = 0;

	while (done < opt.per_token && lane->budget && !stopped()) {
		enum launch_api api = plan.api[lane->turn++ % plan.len];
		uint64_t start = opt.log ? now_ns() : 0;

		lane->errors += launch(api) != 0;
		if (opt.log)
			log_launch(lane, tid, api, start);
		lane->by_api[api]++;
		lane->budget--;
		done++;
	}
	lane->launches += done;
	if (stopped() && done < opt.per_token)
		return;
	copy_and_sync(runtime);
	lane->tokens++;
}

static void *burst_thread(void *arg)
{
	struct lane *lane = arg;
	uint64_t before = lane->launches;
	char name[16];

	snprintf(name, sizeof(name), "launch-%u", lane->index);
	prctl(PR_SET_NAME, name);
	token(lane, my_tid());
	note_thread(lane, my_tid(), lane->launches - before);
	return NULL;
}

static void burst_in_fresh_thread(struct lane *lane)
{
	pthread_t thread;
	int err = pthread_create(&thread, NULL, burst_thread, lane);

	if (err)
		fail("pthread_create", strerror(err));
	pthread_join(thread, NULL);
}

/*
 * Keep to the schedule, but never owe more than one token: a launcher that was
 * held up must not answer with an endless burst.
 */
static uint64_t pace(uint64_t next)
{
	uint64_t now = now_ns(), period;

	if (opt.rate <= 0)
		return now;
	period = (uint64_t)((double)NSEC / opt.rate);
	next += period;
	if (next + period < now)
		next = now;
	sleep_until(lowest(next, deadline));
	return next;
}

static bool lane_ends(const struct lane *lane)
{
	return stopped() || !lane->budget || lane->tokens >= opt.tokens ||
	       now_ns() >= deadline;
}

/* The pause after a token belongs to it, so that tokens / seconds is the pace. */
static void run_lane(struct lane *lane)
{
	uint64_t next = now_ns();
	pid_t tid = my_tid();

	lane->first_ns = next;
	while (!lane_ends(lane)) {
		if (opt.short_lived)
			burst_in_fresh_thread(lane);
		else
			token(lane, tid);
		next = pace(next);
	}
	lane->last_ns = now_ns();
	if (!opt.short_lived)
		note_thread(lane, tid, lane->launches);
	atomic_fetch_add(&lanes_done, 1);
}

static void *lane_thread(void *arg)
{
	struct lane *lane = arg;
	char name[16];

	snprintf(name, sizeof(name), "%s-%u", opt.short_lived ? "spawn" : "launch",
		 lane->index);
	prctl(PR_SET_NAME, name);
	prctl(PR_SET_TIMERSLACK, 1);
	pthread_barrier_wait(&barrier); /* all is set up */
	pthread_barrier_wait(&barrier); /* the gate is open */
	run_lane(lane);
	pthread_barrier_wait(&barrier); /* all are done */
	pthread_barrier_wait(&barrier); /* the linger is over */
	return NULL;
}

/* ---- setting up ---- */

/* Room for every launch a lane can make, as far as that is known. */
static uint64_t log_need(const struct lane *lane)
{
	uint64_t need = LOG_BYTES / sizeof(struct launch_record) / opt.threads;

	need = lowest(need, lane->budget);
	if (opt.tokens < UINT64_MAX / opt.per_token)
		need = lowest(need, opt.tokens * opt.per_token);
	if (opt.rate > 0 && opt.duration > 0 && opt.rate * opt.duration < 1e6)
		need = lowest(need, ((uint64_t)(opt.rate * opt.duration) + 3) * opt.per_token);
	return need;
}

static void *faulted(uint64_t bytes)
{
	void *mem = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (mem == MAP_FAILED)
		fail("mmap", strerror(errno));
	return mem;
}

static void make_lane(struct lane *lane, unsigned int index)
{
	lane->index = index;
	lane->budget = opt.total == UINT64_MAX ? UINT64_MAX :
		       opt.total / opt.threads + (index < opt.total % opt.threads);
	lane->threads = faulted((opt.short_lived ? MAX_LISTED : 1) *
				sizeof(*lane->threads));
	if (!opt.log)
		return;
	lane->log_cap = log_need(lane);
	lane->log = faulted(lane->log_cap * sizeof(*lane->log));
}

/* Lane 0 is the main thread's own unless --worker was given. */
static unsigned int first_worker(void)
{
	return opt.worker ? 0 : 1;
}

static void start_lanes(void)
{
	unsigned int n = (unsigned int)opt.threads;

	lanes = faulted(n * sizeof(*lanes));
	pthread_barrier_init(&barrier, NULL, n - first_worker() + 1);
	for (unsigned int i = 0; i < n; i++)
		make_lane(&lanes[i], i);
	for (unsigned int i = first_worker(); i < n; i++) {
		int err = pthread_create(&lanes[i].thread, NULL, lane_thread, &lanes[i]);

		if (err)
			fail("pthread_create", strerror(err));
	}
}

static uint64_t seconds_from_now(double seconds)
{
	return now_ns() + (uint64_t)(seconds * (double)NSEC);
}

/* The deadline ends a run between tokens, the timer's signal within one. */
static void start_timer(void)
{
	struct itimerval timer = { 0 };

	if (opt.duration <= 0)
		return;
	deadline = seconds_from_now(opt.duration);
	timer.it_value.tv_sec = (time_t)opt.duration;
	timer.it_value.tv_usec = (suseconds_t)((opt.duration - (double)timer.it_value.tv_sec) * 1e6);
	if (!timer.it_value.tv_sec && !timer.it_value.tv_usec)
		timer.it_value.tv_usec = 1;
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* The end of the run must not be the end of the linger; a signal is of both. */
static void end_timer(void)
{
	struct itimerval off = { 0 };

	setitimer(ITIMER_REAL, &off, NULL);
	atomic_store(&stopping, false);
	if (atomic_load(&interrupted))
		atomic_store(&stopping, true);
}

/* An idle main thread that looks around now and then, as engines have. */
static void main_polls(void)
{
	while (atomic_load(&lanes_done) < opt.threads)
		usleep(10000);
}

/* ---- the result ---- */

static uint64_t driver_launches(void)
{
	uint64_t sum = 0;

	for (int i = 0; p_fakecuda_count && i < LAUNCH_cudaLaunchKernel; i++)
		sum += p_fakecuda_count(api_names[i]);
	return sum;
}

static void write_log(void)
{
	FILE *out;

	if (!opt.log)
		return;
	out = fopen(opt.log, "w");
	if (!out)
		fail(opt.log, strerror(errno));
	for (uint64_t i = 0; i < opt.threads; i++)
		fwrite(lanes[i].log, sizeof(*lanes[i].log), lanes[i].log_len, out);
	if (ferror(out) || fclose(out))
		fail(opt.log, "cannot be written");
}

static struct lane sum_up(void)
{
	struct lane sum = { .first_ns = UINT64_MAX };

	for (uint64_t i = 0; i < opt.threads; i++) {
		const struct lane *l = &lanes[i];

		sum.tokens += l->tokens;
		sum.launches += l->launches;
		sum.errors += l->errors;
		sum.log_len += l->log_len;
		sum.log_dropped += l->log_dropped;
		sum.unlisted += l->unlisted;
		sum.first_ns = lowest(sum.first_ns, l->first_ns);
		if (l->last_ns > sum.last_ns)
			sum.last_ns = l->last_ns;
		for (int a = 0; a < LAUNCH_APIS; a++)
			sum.by_api[a] += l->by_api[a];
	}
	return sum;
}

static void print_apis(const struct lane *sum)
{
	const char *comma = "";

	printf("\"launches_by_api\": {");
	for (int a = 0; a < LAUNCH_APIS; a++) {
		if (!sum->by_api[a])
			continue;
		printf("%s\"%s\": %llu", comma, api_names[a],
		       (unsigned long long)sum->by_api[a]);
		comma = ", ";
	}
	printf("}, ");
}

static void print_threads(void)
{
	const char *comma = "";

	printf("\"threads\": [");
	for (uint64_t i = 0; i < opt.threads; i++) {
		for (uint64_t k = 0; k < lanes[i].listed; k++) {
			const struct launching_thread *t = &lanes[i].threads[k];

			printf("%s{\"tid\": %d, \"name\": \"%s\", \"launches\": %llu}",
			       comma, (int)t->tid, t->name,
			       (unsigned long long)t->launches);
			comma = ", ";
		}
	}
	printf("], ");
}

static void report(void)
{
	struct lane sum = sum_up();
	double seconds = (double)(sum.last_ns - sum.first_ns) / (double)NSEC;

	printf("{\"pid\": %d, \"tokens\": %llu, \"launches\": %llu, ", (int)getpid(),
	       (unsigned long long)sum.tokens, (unsigned long long)sum.launches);
	print_apis(&sum);
	print_threads();
	printf("\"threads_unlisted\": %llu, \"driver_launches\": %llu, "
	       "\"errors\": %llu, \"log_records\": %llu, \"log_dropped\": %llu, "
	       "\"seconds\": %.9f, \"tokens_per_second\": %.4f, "
	       "\"start_ns\": %llu, \"end_ns\": %llu}\n",
	       (unsigned long long)sum.unlisted,
	       (unsigned long long)driver_launches(),
	       (unsigned long long)sum.errors, (unsigned long long)sum.log_len,
	       (unsigned long long)sum.log_dropped, seconds,
	       seconds > 0 ? (double)sum.tokens / seconds : 0,
	       (unsigned long long)sum.first_ns, (unsigned long long)sum.last_ns);
	fflush(stdout);
}

/* ---- options ---- */

static void usage(FILE *out)
{
	fputs("usage: launcher [options]\n"
	      "how much (whichever comes first; none: until SIGTERM)\n"
	      "  --tokens N             tokens of each launching thread\n"
	      "  --duration S           seconds from the first launch\n"
	      "  --total N              launches over all threads, exactly\n"
	      "  --tokens-per-second R  pace of each thread, 0: flat out (default 0)\n"
	      "  --launches-per-token N default 950\n"
	      "who\n"
	      "  --threads N            launching threads (default 1: the main thread)\n"
	      "  --worker               the main thread launches nothing\n"
	      "  --short-lived          a fresh thread for every token's burst\n"
	      "  --cpu C                pin the process to CPU C\n"
	      "what\n"
	      "  --layer driver|runtime|mixed            (default driver)\n"
	      "  --api launch|ex|coop|graph|mixed|ptsz   (default launch)\n"
	      "  --lib-dir DIR          where the libraries lie (default: beside me)\n"
	      "  --kernel-ns N          device time of a kernel\n"
	      "  --launch-ns N          host cost of a launch\n"
	      "  --sync spin|sleep      how a sync waits\n"
	      "when\n"
	      "  --dlopen-after S       load the libraries S seconds after the start\n"
	      "  --gate FILE            load, print 'ready PID', start when FILE exists\n"
	      "  --linger S             stay alive S seconds after the result is printed\n"
	      "  --log FILE             every launch, as in launchlog.h\n"
	      "The last line of stdout is the result, one JSON object.\n",
	      out);
}

enum {
	O_TOKENS = 256, O_DURATION, O_RATE, O_PER_TOKEN, O_TOTAL, O_THREADS,
	O_WORKER, O_SHORT, O_LAYER, O_API, O_LIB_DIR, O_CPU, O_KERNEL_NS,
	O_LAUNCH_NS, O_SYNC, O_DLOPEN_AFTER, O_GATE, O_LINGER, O_LOG, O_HELP,
};

static const struct option longs[] = {
	{ "tokens", 1, NULL, O_TOKENS },
	{ "duration", 1, NULL, O_DURATION },
	{ "tokens-per-second", 1, NULL, O_RATE },
	{ "launches-per-token", 1, NULL, O_PER_TOKEN },
	{ "total", 1, NULL, O_TOTAL },
	{ "threads", 1, NULL, O_THREADS },
	{ "worker", 0, NULL, O_WORKER },
	{ "short-lived", 0, NULL, O_SHORT },
	{ "layer", 1, NULL, O_LAYER },
	{ "api", 1, NULL, O_API },
	{ "lib-dir", 1, NULL, O_LIB_DIR },
	{ "cpu", 1, NULL, O_CPU },
	{ "kernel-ns", 1, NULL, O_KERNEL_NS },
	{ "launch-ns", 1, NULL, O_LAUNCH_NS },
	{ "sync", 1, NULL, O_SYNC },
	{ "dlopen-after", 1, NULL, O_DLOPEN_AFTER },
	{ "gate", 1, NULL, O_GATE },
	{ "linger", 1, NULL, O_LINGER },
	{ "log", 1, NULL, O_LOG },
	{ "help", 0, NULL, O_HELP },
	{ 0 },
};

static enum layer parse_layer(const char *text)
{
	static const char *const names[] = { "driver", "runtime", "mixed" };

	for (int i = 0; i < 3; i++)
		if (!strcmp(text, names[i]))
			return (enum layer)i;
	fail("--layer", "driver, runtime or mixed");
	return DRIVER;
}

/* The fake driver reads its settings from the environment as it is loaded. */
static void set_ns(const char *option, const char *variable)
{
	parse_count(option, optarg);
	setenv(variable, optarg, 1);
}

static void set_sync(void)
{
	if (strcmp(optarg, "spin") && strcmp(optarg, "sleep"))
		fail("--sync", "spin or sleep");
	setenv("FAKECUDA_SYNC", optarg, 1);
}

static void parse_one(int c)
{
	switch (c) {
	case O_TOKENS: opt.tokens = parse_count("--tokens", optarg); break;
	case O_DURATION: opt.duration = parse_number("--duration", optarg); break;
	case O_RATE: opt.rate = parse_number("--tokens-per-second", optarg); break;
	case O_PER_TOKEN: opt.per_token = parse_count("--launches-per-token", optarg); break;
	case O_TOTAL: opt.total = parse_count("--total", optarg); break;
	case O_THREADS: opt.threads = parse_count("--threads", optarg); break;
	case O_WORKER: opt.worker = true; break;
	case O_SHORT: opt.short_lived = true; break;
	case O_LAYER: opt.layer = parse_layer(optarg); break;
	case O_API: opt.api = optarg; break;
	case O_LIB_DIR: opt.lib_dir = optarg; break;
	case O_CPU: opt.cpu = (int)parse_count("--cpu", optarg); break;
	case O_KERNEL_NS: set_ns("--kernel-ns", "FAKECUDA_KERNEL_NS"); break;
	case O_LAUNCH_NS: set_ns("--launch-ns", "FAKECUDA_LAUNCH_NS"); break;
	case O_SYNC: set_sync(); break;
	case O_DLOPEN_AFTER: opt.dlopen_after = parse_number("--dlopen-after", optarg); break;
	case O_GATE: opt.gate = optarg; break;
	case O_LINGER: opt.linger = parse_number("--linger", optarg); break;
	case O_LOG: opt.log = optarg; break;
	case O_HELP: usage(stdout); exit(0);
	default: usage(stderr); exit(2);
	}
}

static void parse(int argc, char **argv)
{
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1)
		parse_one(c);
	if (optind < argc)
		fail(argv[optind], "unexpected argument");
	if (!opt.threads || opt.threads > MAX_LANES)
		fail("--threads", "1 to 1024");
	if (!opt.per_token)
		fail("--launches-per-token", "at least 1");
	make_plan();
	default_lib_dir();
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	catch_signals();
	pin_to(opt.cpu);
	prctl(PR_SET_TIMERSLACK, 1);
	start_lanes();
	pthread_barrier_wait(&barrier);
	sleep_until(seconds_from_now(opt.dlopen_after));
	load_libraries();
	wait_gate(opt.gate);

	start_timer();
	pthread_barrier_wait(&barrier);
	if (opt.worker)
		main_polls();
	else
		run_lane(&lanes[0]);
	pthread_barrier_wait(&barrier);

	write_log();
	report();
	end_timer();
	sleep_until(seconds_from_now(opt.linger));
	pthread_barrier_wait(&barrier);
	for (unsigned int i = first_worker(); i < opt.threads; i++)
		pthread_join(lanes[i].thread, NULL);
	return 0;
}
