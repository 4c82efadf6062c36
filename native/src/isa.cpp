// Which kernels this processor runs.
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "error.hpp"
#include "kernels.hpp"

namespace vf {

namespace portable {
extern const Kernels table;
}
#if defined(__aarch64__)
namespace i8mm {
extern const Kernels table;
}
namespace dotprod {
extern const Kernels table;
}
#endif
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avxvnni {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
namespace amx {
extern const Kernels table;
}
#endif

namespace {

bool always() { return true; }
#if defined(__aarch64__)
bool has_i8mm() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
bool has_dotprod() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif
#if defined(__x86_64__)
// The compiler's own checks ask the operating system too, which has to save wide registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avxvnni() {
    constexpr unsigned avxvnni_bit = 1u << 4; // of leaf 7, 1, eax; not every compiler knows its name
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & avxvnni_bit) != 0;
}
bool has_avx512vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#if defined(VITFROST_EMULATE_AMX)
bool has_amx() { return has_avx512vnni(); }
#else
// The processor has tiles, and the operating system saves and allows them: asked for once, since Linux gives them to those alone that ask.
bool has_amx() {
    static const bool found = [] {
        constexpr unsigned tile_bits = 1u << 24, int8_bits = 1u << 25; // of leaf 7, edx
        constexpr uint64_t tile_state = 3u << 17;
        unsigned a, b, c, d;
        if (!has_avx512vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tile_bits) == 0 || (d & int8_bits) == 0) return false;
        uint32_t low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); // AVX-512 is there, so is this instruction
        if ((low & tile_state) != tile_state) return false;
#if defined(__linux__)
        constexpr long request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
        return false;
#endif
    }();
    return found;
}
#endif
#endif

const Isa all[] = {
#if defined(__x86_64__)
    {&amx::table, has_amx},     {&avx512vnni::table, has_avx512vnni}, {&avxvnni::table, has_avxvnni}, {&avx2::table, has_avx2},
#endif
#if defined(__aarch64__)
    {&i8mm::table, has_i8mm},   {&dotprod::table, has_dotprod},
#endif
    {&portable::table, always},
};

} // namespace

const char *isa_names() {
    static const std::string names = [] {
        std::string found;
        for (const Isa &isa : all)
            if (isa.runs()) found.append(found.empty() ? "" : ",").append(isa.kernels->name);
        return found;
    }();
    return names.c_str();
}

const Kernels *find_kernels(const char *name) {
    if (name == nullptr || *name == 0) name = std::getenv("VITFROST_ISA");
    bool known = false;
    for (const Isa &isa : all) {
        bool meant = name == nullptr || *name == 0 || std::strcmp(name, isa.kernels->name) == 0;
        known = known || meant;
        if (meant && isa.runs()) return isa.kernels;
    }
    fail("the instructions '%s' are %s; choose one of %s", name, known ? "not there on this processor" : "unknown", isa_names());
}

} // namespace vf
