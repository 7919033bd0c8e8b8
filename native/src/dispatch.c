/* Which kernels this processor can run. */
#define _DEFAULT_SOURCE
#include <string.h>

#include "plan.h"

extern const qsd_kernels qsd_kernels_portable;
#ifdef QSD_X86
extern const qsd_kernels qsd_kernels_avx2, qsd_kernels_avxvnni, qsd_kernels_avx512vnni;
#ifdef QSD_AMX
extern const qsd_kernels qsd_kernels_amx;
#endif

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Bit `bit` of what cpuid says of leaf 7, and whether the system saves the registers in `state`. */
static bool has(int subleaf, int word, int bit, uint32_t state) {
  uint32_t r[4];
  if (!__get_cpuid_count(1, 0, &r[0], &r[1], &r[2], &r[3]) || !(r[2] >> 27 & 1)) return false;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  (void)high;
  if ((low & state) != state) return false;
  if (!__get_cpuid_count(7, (unsigned)subleaf, &r[0], &r[1], &r[2], &r[3])) return false;
  return r[word] >> bit & 1;
}

static bool has_avx2(void) { return has(0, 1, 5, 6); }
static bool has_avxvnni(void) { return has_avx2() && has(1, 0, 4, 6); }
static bool has_avx512vnni(void) { /* BMI, BMI2, F, DQ, BW, VL, VNNI */
  static const int LEAF[][2] = {{1, 3}, {1, 8}, {1, 16}, {1, 17}, {1, 30}, {1, 31}, {2, 11}};
  for (size_t i = 0; i < sizeof LEAF / sizeof *LEAF; i++)
    if (!has(0, LEAF[i][0], LEAF[i][1], 0xe6)) return false;
  return true;
}
#ifdef QSD_AMX
/* AMX-TILE, AMX-INT8, and the system's leave to use tiles, which all threads of the process then
 * have; Linux asks that every alternative signal stack can hold them. */
static bool has_amx(void) {
  enum { ASK_FOR_STATE = 0x1023, TILES = 18 };
  return has_avx512vnni() && has(0, 3, 24, 0x600e6) && has(0, 3, 25, 0x600e6) &&
         syscall(SYS_arch_prctl, ASK_FOR_STATE, TILES) == 0;
}
#endif
#endif

static bool always(void) { return true; }

const qsd_kernels *qsd_pick_kernels(const char *isa) {
  static const struct {
    const qsd_kernels *kernels;
    bool (*runs)(void);
  } KNOWN[] = {
#ifdef QSD_AMX
      {&qsd_kernels_amx, has_amx},
#endif
#ifdef QSD_X86
      {&qsd_kernels_avx512vnni, has_avx512vnni},
      {&qsd_kernels_avxvnni, has_avxvnni},
      {&qsd_kernels_avx2, has_avx2},
#endif
      {&qsd_kernels_portable, always},
  };
  for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
    if ((!isa || strcmp(isa, KNOWN[i].kernels->name) == 0) && KNOWN[i].runs())
      return KNOWN[i].kernels;
  return NULL;
}
