/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Maps and the words with which the shared bodies use them. Objects that name
 * the same map share it: the loader hands the first object's map to the rest.
 *
 * map_lookup() and its kin exist so that one body serves both loaders: the
 * second backend rewrites them into its own map syntax.
 */
#ifndef QUIETCORE_MAPS_H
#define QUIETCORE_MAPS_H

#include "kernel.h"
#include "layout.h"

#define map_lookup(map, key) bpf_map_lookup_elem(&map, key)
#define map_insert(map, key, value) bpf_map_update_elem(&map, key, value, BPF_NOEXIST)
#define map_update(map, key, value) bpf_map_update_elem(&map, key, value, BPF_ANY)
#define map_delete(map, key) bpf_map_delete_elem(&map, key)

#define HASH_MAP(name, ktype, vtype, entries)                                                      \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_HASH);                                                   \
		__uint(max_entries, entries);                                                      \
		__type(key, ktype);                                                                \
		__type(value, vtype);                                                              \
	} name SEC(".maps")

#define ARRAY_MAP(name, kind, vtype, entries)                                                      \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(max_entries, entries);                                                      \
		__type(key, __u32);                                                                \
		__type(value, vtype);                                                              \
	} name SEC(".maps")

/* Target threads by tid: the one lookup that every switch of a stranger pays. */
HASH_MAP(threads, __u32, struct thread, 10240);
/* Interrupts in progress; says also whether a wake-up comes from one. */
ARRAY_MAP(irq_stacks, BPF_MAP_TYPE_PERCPU_ARRAY, struct irq_stack, 1);
ARRAY_MAP(losses, BPF_MAP_TYPE_PERCPU_ARRAY, __u64, NR_LOSSES);

#include "loss.h"

#endif
