/* The limits of this machine that benchmarks set kernels against. */
#ifndef GPTOSS_CPU_MACHINE_LIMITS_H
#define GPTOSS_CPU_MACHINE_LIMITS_H

#include <stddef.h>
#include <stdint.h>

/* Both use the widest vectors of an instruction-set level, which must be available. */

/* Runs num_rounds rounds of independent fused multiply-adds in registers: of float32 or, by the
 * instructions of a bf16 unit (cpu/bf16_units.h), which must have been selected, of bf16. Returns
 * the number of floating-point operations done (two each), 0 for a level without vectors. */
int64_t gptoss_measure_fma(const char *isa, int64_t num_rounds);

/* Reads num_bytes once, as fast as plain loads can. The result depends on every byte. */
uint64_t gptoss_measure_read(const char *isa, const void *memory, size_t num_bytes);

#endif
