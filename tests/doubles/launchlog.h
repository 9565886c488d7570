/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The launcher's binary log: nothing but these records, little-endian, no
 * header. Ordered in time for each launching thread, not over all of them.
 */
#ifndef QC_LAUNCHLOG_H
#define QC_LAUNCHLOG_H

#include <stdint.h>

struct launch_record {
	uint32_t tid;
	uint32_t api;	   /* enum launch_api: what the launcher itself called */
	uint64_t start_ns; /* CLOCK_MONOTONIC, just before the call */
	uint64_t end_ns;   /* just after it */
};

/* The order is the number in the log; append only. */
#define DRIVER_LAUNCHES(X)                                                     \
	X(cuLaunchKernel)                                                      \
	X(cuLaunchKernelEx)                                                    \
	X(cuLaunchCooperativeKernel)                                           \
	X(cuGraphLaunch)                                                       \
	X(cuLaunchKernel_ptsz)                                                 \
	X(cuLaunchKernelEx_ptsz)                                               \
	X(cuLaunchCooperativeKernel_ptsz)                                      \
	X(cuGraphLaunch_ptsz)
#define RUNTIME_LAUNCHES(X)                                                    \
	X(cudaLaunchKernel)                                                    \
	X(cudaLaunchKernelExC)                                                 \
	X(cudaLaunchCooperativeKernel)                                         \
	X(cudaGraphLaunch)                                                     \
	X(cudaLaunchKernel_ptsz)                                               \
	X(cudaLaunchKernelExC_ptsz)                                            \
	X(cudaLaunchCooperativeKernel_ptsz)                                    \
	X(cudaGraphLaunch_ptsz)

#define LAUNCH_ID(name) LAUNCH_##name,
enum launch_api {
	DRIVER_LAUNCHES(LAUNCH_ID)	/* 0..7 */
	RUNTIME_LAUNCHES(LAUNCH_ID)	/* 8..15 */
	LAUNCH_APIS
};

#endif
