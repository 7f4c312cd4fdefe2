// Run-time dispatch. The operating system's word counts too: __builtin_cpu_supports checks that it saves the registers.
#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace kiloq {

#define KILOQ_TABLE(isa)           \
    namespace isa {                \
    extern const Kernels kernels;  \
    }
KILOQ_TABLE(portable)
KILOQ_TABLE(avx2)
KILOQ_TABLE(avxvnni)
KILOQ_TABLE(avx512)
KILOQ_TABLE(avx512bf16)
KILOQ_TABLE(neon)
#undef KILOQ_TABLE

namespace {

struct Path {
    std::string name;
    const Kernels* table;
};

#if defined(__x86_64__)
// GCC 12's __builtin_cpu_supports does not know AVX-VNNI: CPUID leaf 7, sub-leaf 1, EAX bit 4.
[[maybe_unused]] bool has_avx_vnni() {
    unsigned eax = 7, ebx = 0, ecx = 1, edx = 0;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (eax >> 4) & 1u;
}
#endif

std::vector<Path> find_paths() {
    std::vector<Path> paths;
#if defined(__x86_64__)
    __builtin_cpu_init();
    [[maybe_unused]] const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    [[maybe_unused]] const bool avx512 =
        avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#ifdef KILOQ_HAS_AVX512BF16
    if (avx512 && __builtin_cpu_supports("avx512bf16")) paths.push_back({"avx512bf16", &avx512bf16::kernels});
#endif
#ifdef KILOQ_HAS_AVX512
    if (avx512) paths.push_back({"avx512", &avx512::kernels});
#endif
#ifdef KILOQ_HAS_AVXVNNI
    if (avx2 && has_avx_vnni()) paths.push_back({"avxvnni", &avxvnni::kernels});
#endif
#ifdef KILOQ_HAS_AVX2
    if (avx2) paths.push_back({"avx2", &avx2::kernels});
#endif
#elif defined(__aarch64__) && defined(KILOQ_HAS_NEON)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) paths.push_back({"neon", &neon::kernels});
#endif
    paths.push_back({"portable", &portable::kernels});
    return paths;
}

Path choose() {
    const std::vector<Path> paths = find_paths();
    const char* wanted = std::getenv("KILOQ_CPU");
    if (wanted == nullptr || *wanted == '\0') return paths.front();
    std::string names;
    for (const Path& path : paths) {
        if (path.name == wanted) return path;
        names += (names.empty() ? "" : ", ") + path.name;
    }
    throw std::invalid_argument("KILOQ_CPU is '" + std::string(wanted) + "': this machine runs " + names);
}

const Path& chosen() {
    static const Path path = choose();
    return path;
}

}  // namespace

std::vector<std::string> runnable_paths() {
    std::vector<std::string> names;
    for (const Path& path : find_paths()) names.push_back(path.name);
    return names;
}

const Kernels& kernels() { return *chosen().table; }

const std::string& chosen_path() { return chosen().name; }

}  // namespace kiloq
