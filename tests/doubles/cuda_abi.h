/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the CUDA C ABI that the doubles speak: argument lists as in the
 * vendor's public headers, opaque handles as plain pointers.
 */
#ifndef QC_CUDA_ABI_H
#define QC_CUDA_ABI_H

#include <stddef.h>
#include <stdint.h>

#define DOUBLE_CUDA_VERSION 12080

/* ---- driver ---- */

typedef int CUresult;
typedef uint64_t CUdeviceptr;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraphExec_st *CUgraphExec;

enum {
	CUDA_SUCCESS = 0,
	CUDA_ERROR_INVALID_VALUE = 1,
	CUDA_ERROR_NOT_FOUND = 500,
};

/* flags and results of cuGetProcAddress */
enum {
	CU_GET_PROC_ADDRESS_LEGACY_STREAM = 1,
	CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM = 2,
	CU_GET_PROC_ADDRESS_SUCCESS = 0,
	CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND = 1,
};

typedef struct {
	unsigned int gridDimX, gridDimY, gridDimZ;
	unsigned int blockDimX, blockDimY, blockDimZ;
	unsigned int sharedMemBytes;
	CUstream hStream;
	void *attrs;
	unsigned int numAttrs;
} CUlaunchConfig;

#define CU_GEOMETRY                                                            \
	unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,    \
		unsigned int by, unsigned int bz

#define CU_LAUNCH_KERNEL_ARGS                                                  \
	CUfunction func, CU_GEOMETRY, unsigned int shared, CUstream stream,    \
		void **params, void **extra
#define CU_LAUNCH_EX_ARGS                                                      \
	const CUlaunchConfig *config, CUfunction func, void **params, void **extra
#define CU_LAUNCH_COOP_ARGS                                                    \
	CUfunction func, CU_GEOMETRY, unsigned int shared, CUstream stream,    \
		void **params
#define CU_GRAPH_ARGS CUgraphExec exec, CUstream stream
#define CU_STREAM_ARGS CUstream stream
#define CU_MEMCPY_ARGS                                                         \
	CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream
#define CU_HTOD_ARGS                                                           \
	CUdeviceptr dst, const void *src, size_t bytes, CUstream stream
#define CU_DTOH_ARGS void *dst, CUdeviceptr src, size_t bytes, CUstream stream
#define CU_PROC_ARGS                                                           \
	const char *symbol, void **pfn, int version, uint64_t flags, int *status

typedef CUresult cuInit_fn(unsigned int flags);
typedef CUresult cuDriverGetVersion_fn(int *version);
typedef CUresult cuDeviceGetCount_fn(int *count);
typedef CUresult cuLaunchKernel_fn(CU_LAUNCH_KERNEL_ARGS);
typedef CUresult cuLaunchKernelEx_fn(CU_LAUNCH_EX_ARGS);
typedef CUresult cuLaunchCooperativeKernel_fn(CU_LAUNCH_COOP_ARGS);
typedef CUresult cuGraphLaunch_fn(CU_GRAPH_ARGS);
typedef CUresult cuStreamSynchronize_fn(CU_STREAM_ARGS);
typedef CUresult cuEventSynchronize_fn(CUevent event);
typedef CUresult cuCtxSynchronize_fn(void);
typedef CUresult cuMemcpyAsync_fn(CU_MEMCPY_ARGS);
typedef CUresult cuMemcpyHtoDAsync_v2_fn(CU_HTOD_ARGS);
typedef CUresult cuMemcpyDtoHAsync_v2_fn(CU_DTOH_ARGS);
typedef CUresult cuMemAlloc_v2_fn(CUdeviceptr *ptr, size_t bytes);
typedef CUresult cuMemFree_v2_fn(CUdeviceptr ptr);
typedef CUresult cuGetProcAddress_v2_fn(CU_PROC_ARGS);

/* the twins of --default-stream per-thread; same arguments */
typedef cuLaunchKernel_fn cuLaunchKernel_ptsz_fn;
typedef cuLaunchKernelEx_fn cuLaunchKernelEx_ptsz_fn;
typedef cuLaunchCooperativeKernel_fn cuLaunchCooperativeKernel_ptsz_fn;
typedef cuGraphLaunch_fn cuGraphLaunch_ptsz_fn;
typedef cuStreamSynchronize_fn cuStreamSynchronize_ptsz_fn;
typedef cuMemcpyAsync_fn cuMemcpyAsync_ptsz_fn;
typedef cuMemcpyHtoDAsync_v2_fn cuMemcpyHtoDAsync_v2_ptsz_fn;
typedef cuMemcpyDtoHAsync_v2_fn cuMemcpyDtoHAsync_v2_ptsz_fn;

/* ---- runtime ---- */

typedef int cudaError_t;
typedef CUstream cudaStream_t;
typedef CUevent cudaEvent_t;
typedef CUgraphExec cudaGraphExec_t;

enum { cudaSuccess = 0, cudaErrorInsufficientDriver = 35 };

enum cudaMemcpyKind {
	cudaMemcpyHostToHost,
	cudaMemcpyHostToDevice,
	cudaMemcpyDeviceToHost,
	cudaMemcpyDeviceToDevice,
	cudaMemcpyDefault,
};

typedef struct {
	unsigned int x, y, z;
} dim3;

typedef struct {
	dim3 gridDim, blockDim;
	size_t dynamicSmemBytes;
	cudaStream_t stream;
	void *attrs;
	unsigned int numAttrs;
} cudaLaunchConfig_t;

#define CUDA_LAUNCH_ARGS                                                       \
	const void *func, dim3 grid, dim3 block, void **args, size_t shared,   \
		cudaStream_t stream
#define CUDA_LAUNCH_EX_ARGS                                                    \
	const cudaLaunchConfig_t *config, const void *func, void **args
#define CUDA_GRAPH_ARGS cudaGraphExec_t exec, cudaStream_t stream
#define CUDA_MEMCPY_ARGS                                                       \
	void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind,    \
		cudaStream_t stream

typedef cudaError_t cudaLaunchKernel_fn(CUDA_LAUNCH_ARGS);
typedef cudaError_t cudaLaunchKernelExC_fn(CUDA_LAUNCH_EX_ARGS);
typedef cudaError_t cudaLaunchCooperativeKernel_fn(CUDA_LAUNCH_ARGS);
typedef cudaError_t cudaGraphLaunch_fn(CUDA_GRAPH_ARGS);
typedef cudaError_t cudaStreamSynchronize_fn(cudaStream_t stream);
typedef cudaError_t cudaDeviceSynchronize_fn(void);
typedef cudaError_t cudaEventSynchronize_fn(cudaEvent_t event);
typedef cudaError_t cudaMemcpyAsync_fn(CUDA_MEMCPY_ARGS);

typedef cudaLaunchKernel_fn cudaLaunchKernel_ptsz_fn;
typedef cudaLaunchKernelExC_fn cudaLaunchKernelExC_ptsz_fn;
typedef cudaLaunchCooperativeKernel_fn cudaLaunchCooperativeKernel_ptsz_fn;
typedef cudaGraphLaunch_fn cudaGraphLaunch_ptsz_fn;
typedef cudaStreamSynchronize_fn cudaStreamSynchronize_ptsz_fn;
typedef cudaMemcpyAsync_fn cudaMemcpyAsync_ptsz_fn;

/*
 * How an exported entry begins (see the Makefile). A stub gives the public
 * name a chosen first instruction and jumps to the C body, which is compiled
 * under another name; without a stub the compiler's own prologue stands.
 */
#if defined(ENTRY_SUB) || defined(ENTRY_NOP5)
#ifndef __x86_64__
#error "entry stubs exist for x86-64 only"
#endif
#ifdef ENTRY_SUB
#define ENTRY_INSN "sub $8, %rsp\n\tadd $8, %rsp"
#else
#define ENTRY_INSN ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00"
#endif
#define EXPORTED(name)                                                         \
	name##_fn name __asm__("impl_" #name);                                 \
	__asm__(".pushsection .text\n\t.p2align 4\n\t.globl " #name            \
		"\n\t.type " #name ", @function\n" #name ":\n\t" ENTRY_INSN    \
		"\n\tjmp impl_" #name "\n\t.size " #name ", .-" #name          \
		"\n\t.popsection");
#else
#define EXPORTED(name) __attribute__((visibility("default"))) name##_fn name;
#endif

#endif
