// SPDX-License-Identifier: Apache-2.0
/*
 * A stand-in for libcudart.so.12 and libcudart_static.a. Like the real runtime
 * it opens libcuda.so.1 at the first call, asks the driver for its entries, and
 * every runtime call makes one driver call of the same kind. No cost of its own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>

#include "cuda_abi.h"

/* driver entries that have a per-thread-stream twin, then those that have none */
#define TWINNED(X)                                                             \
	X(cuLaunchKernel)                                                      \
	X(cuLaunchKernelEx)                                                    \
	X(cuLaunchCooperativeKernel)                                           \
	X(cuGraphLaunch)                                                       \
	X(cuStreamSynchronize)                                                 \
	X(cuMemcpyAsync)                                                       \
	X(cuMemcpyHtoDAsync)                                                   \
	X(cuMemcpyDtoHAsync)
#define SINGLE(X)                                                              \
	X(cuInit)                                                              \
	X(cuEventSynchronize)                                                  \
	X(cuCtxSynchronize)

typedef cuMemcpyHtoDAsync_v2_fn cuMemcpyHtoDAsync_fn;
typedef cuMemcpyDtoHAsync_v2_fn cuMemcpyDtoHAsync_fn;

EXPORTED(cudaLaunchKernel)
EXPORTED(cudaLaunchKernel_ptsz)
EXPORTED(cudaLaunchKernelExC)
EXPORTED(cudaLaunchKernelExC_ptsz)
EXPORTED(cudaLaunchCooperativeKernel)
EXPORTED(cudaLaunchCooperativeKernel_ptsz)
EXPORTED(cudaGraphLaunch)
EXPORTED(cudaGraphLaunch_ptsz)
EXPORTED(cudaStreamSynchronize)
EXPORTED(cudaStreamSynchronize_ptsz)
EXPORTED(cudaDeviceSynchronize)
EXPORTED(cudaEventSynchronize)
EXPORTED(cudaMemcpyAsync)
EXPORTED(cudaMemcpyAsync_ptsz)

#define FIELD(name) name##_fn *name;
struct stream_entries {
	TWINNED(FIELD)
};

static struct {
	struct stream_entries legacy, per_thread;
	SINGLE(FIELD)
} driver;

static cuGetProcAddress_v2_fn *get_proc;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool ready;

static bool find(void *slot, const char *name, uint64_t flags)
{
	return !get_proc(name, slot, DOUBLE_CUDA_VERSION, flags, NULL);
}

static bool find_stream_entries(struct stream_entries *to, uint64_t flags)
{
	bool ok = true;

#define FIND_TWIN(name) ok &= find(&to->name, #name, flags);
	TWINNED(FIND_TWIN)
	return ok;
}

static void open_driver(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);
	bool ok;

	if (!lib)
		return;
	*(void **)&get_proc = dlsym(lib, "cuGetProcAddress_v2");
	if (!get_proc)
		return;
	ok = find_stream_entries(&driver.legacy, CU_GET_PROC_ADDRESS_LEGACY_STREAM);
	ok &= find_stream_entries(&driver.per_thread,
				  CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
#define FIND(name) ok &= find(&driver.name, #name, 0);
	SINGLE(FIND)
	ready = ok && driver.cuInit(0) == CUDA_SUCCESS;
}

static bool have_driver(void)
{
	pthread_once(&once, open_driver);
	return ready;
}

static cudaError_t launch(const struct stream_entries *to, CUDA_LAUNCH_ARGS)
{
	if (!have_driver())
		return cudaErrorInsufficientDriver;
	return to->cuLaunchKernel((CUfunction)func, grid.x, grid.y, grid.z, block.x,
				  block.y, block.z, (unsigned int)shared, stream,
				  args, NULL);
}

static cudaError_t launch_coop(const struct stream_entries *to, CUDA_LAUNCH_ARGS)
{
	if (!have_driver())
		return cudaErrorInsufficientDriver;
	return to->cuLaunchCooperativeKernel((CUfunction)func, grid.x, grid.y,
					     grid.z, block.x, block.y, block.z,
					     (unsigned int)shared, stream, args);
}

static cudaError_t launch_ex(const struct stream_entries *to, CUDA_LAUNCH_EX_ARGS)
{
	CUlaunchConfig cu = {
		config->gridDim.x,  config->gridDim.y,	config->gridDim.z,
		config->blockDim.x, config->blockDim.y, config->blockDim.z,
		(unsigned int)config->dynamicSmemBytes, config->stream,
		config->attrs,	    config->numAttrs,
	};

	if (!have_driver())
		return cudaErrorInsufficientDriver;
	return to->cuLaunchKernelEx(&cu, (CUfunction)func, args, NULL);
}

static cudaError_t graph(const struct stream_entries *to, CUDA_GRAPH_ARGS)
{
	if (!have_driver())
		return cudaErrorInsufficientDriver;
	return to->cuGraphLaunch(exec, stream);
}

static cudaError_t stream_sync(const struct stream_entries *to, CU_STREAM_ARGS)
{
	if (!have_driver())
		return cudaErrorInsufficientDriver;
	return to->cuStreamSynchronize(stream);
}

static cudaError_t copy(const struct stream_entries *to, CUDA_MEMCPY_ARGS)
{
	if (!have_driver())
		return cudaErrorInsufficientDriver;
	if (kind == cudaMemcpyHostToDevice)
		return to->cuMemcpyHtoDAsync((CUdeviceptr)dst, src, bytes, stream);
	if (kind == cudaMemcpyDeviceToHost)
		return to->cuMemcpyDtoHAsync(dst, (CUdeviceptr)src, bytes, stream);
	return to->cuMemcpyAsync((CUdeviceptr)dst, (CUdeviceptr)src, bytes, stream);
}

cudaError_t cudaLaunchKernel(CUDA_LAUNCH_ARGS)
{
	return launch(&driver.legacy, func, grid, block, args, shared, stream);
}

cudaError_t cudaLaunchKernel_ptsz(CUDA_LAUNCH_ARGS)
{
	return launch(&driver.per_thread, func, grid, block, args, shared, stream);
}

cudaError_t cudaLaunchKernelExC(CUDA_LAUNCH_EX_ARGS)
{
	return launch_ex(&driver.legacy, config, func, args);
}

cudaError_t cudaLaunchKernelExC_ptsz(CUDA_LAUNCH_EX_ARGS)
{
	return launch_ex(&driver.per_thread, config, func, args);
}

cudaError_t cudaLaunchCooperativeKernel(CUDA_LAUNCH_ARGS)
{
	return launch_coop(&driver.legacy, func, grid, block, args, shared, stream);
}

cudaError_t cudaLaunchCooperativeKernel_ptsz(CUDA_LAUNCH_ARGS)
{
	return launch_coop(&driver.per_thread, func, grid, block, args, shared,
			   stream);
}

cudaError_t cudaGraphLaunch(CUDA_GRAPH_ARGS)
{
	return graph(&driver.legacy, exec, stream);
}

cudaError_t cudaGraphLaunch_ptsz(CUDA_GRAPH_ARGS)
{
	return graph(&driver.per_thread, exec, stream);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
	return stream_sync(&driver.legacy, stream);
}

cudaError_t cudaStreamSynchronize_ptsz(cudaStream_t stream)
{
	return stream_sync(&driver.per_thread, stream);
}

cudaError_t cudaDeviceSynchronize(void)
{
	return have_driver() ? driver.cuCtxSynchronize() : cudaErrorInsufficientDriver;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
	return have_driver() ? driver.cuEventSynchronize(event) :
			       cudaErrorInsufficientDriver;
}

cudaError_t cudaMemcpyAsync(CUDA_MEMCPY_ARGS)
{
	return copy(&driver.legacy, dst, src, bytes, kind, stream);
}

cudaError_t cudaMemcpyAsync_ptsz(CUDA_MEMCPY_ARGS)
{
	return copy(&driver.per_thread, dst, src, bytes, kind, stream);
}
