// Which kernel tables this machine can run, and which one it uses.
#include <cassert>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/kernels/cpu/tables.h"
#include "ferry/kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ferry {

namespace {

struct Supported {
  bool avx2 = false;
  bool avx2_vnni = false;
  bool avx512 = false;
  bool vnni = false;  // no level of its own: it makes avx512 faster
  bool bf16 = false;  // likewise, and neon, in the numeric class `fast`
  bool amx = false;
  bool neon = false;
  bool sdot = false;   // no level of its own: it makes neon faster
  bool smmla = false;  // likewise
};

#if defined(__x86_64__)

struct CpuidLeaf {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;

  explicit CpuidLeaf(unsigned leaf, unsigned part = 0) {
    __get_cpuid_count(leaf, part, &eax, &ebx, &ecx, &edx);
  }
};

constexpr bool has(std::uint64_t word, std::uint64_t bits) { return (word & bits) == bits; }

/// XCR0: the register states that the operating system saves. REQUIRES: OSXSAVE.
std::uint64_t saved_states() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

/// Linux hands out tile state to processes that ask; the answer holds for all threads to come.
bool tiles_permitted() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Supported detect() {
  const CpuidLeaf basic(1);
  const CpuidLeaf extended(7);
  const CpuidLeaf more(7, 1);
  constexpr unsigned kOsxsaveAvxFmaF16c = 1U << 27 | 1U << 28 | 1U << 12 | 1U << 29;
  constexpr unsigned kAvx2 = 1U << 5;
  constexpr unsigned kAvx512FDqBwVl = 1U << 16 | 1U << 17 | 1U << 30 | 1U << 31;
  constexpr unsigned kVnni = 1U << 11;
  constexpr unsigned kBf16 = 1U << 5;
  constexpr unsigned kAvxVnni = 1U << 4;
  constexpr unsigned kAmxBf16TileInt8 = 1U << 22 | 1U << 24 | 1U << 25;
  constexpr std::uint64_t kYmmState = 0x6;
  constexpr std::uint64_t kZmmState = 0xe6;
  constexpr std::uint64_t kTileState = 0x60000;

  Supported have;
  if (!has(basic.ecx, kOsxsaveAvxFmaF16c)) return have;
  const std::uint64_t states = saved_states();
  have.avx2 = has(extended.ebx, kAvx2) && has(states, kYmmState);
  have.avx2_vnni = have.avx2 && has(more.eax, kAvxVnni);
  have.avx512 = have.avx2 && has(extended.ebx, kAvx512FDqBwVl) && has(states, kZmmState);
  have.vnni = have.avx512 && has(extended.ecx, kVnni);
  have.bf16 = have.vnni && has(more.eax, kBf16);
  have.amx = have.vnni && has(extended.edx, kAmxBf16TileInt8) && has(states, kTileState) &&
             tiles_permitted();
  return have;
}

#elif defined(__aarch64__)

/// NEON is a part of every 64-bit ARM processor.
Supported detect() {
  Supported have;
  have.neon = true;
  have.sdot = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  have.smmla = have.sdot && (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0;
  have.bf16 = (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
  return have;
}

#else

Supported detect() { return {}; }

#endif

const Supported& supported() {
  static const Supported have = detect();
  return have;
}

#if defined(__x86_64__)

const Kernels& avx2_vnni_table() {
  static const Kernels table = [] {
    Kernels t = cpu::kAvx2;
    t.isa = Isa::avx2_vnni;
    t.name = "avx2_vnni";
    t.gemm = cpu::avx2_vnni_gemm;
    t.multiply_in_registers = cpu::avx2_vnni_multiply_in_registers;
    return t;
  }();
  return table;
}

const Kernels& vnni_table() {
  static const Kernels table = [] {
    Kernels t = cpu::kAvx512;
    t.gemm = cpu::vnni_gemm;
    t.multiply_in_registers = cpu::vnni_multiply_in_registers;
    return t;
  }();
  return table;
}

#elif defined(__aarch64__)

const Kernels& neon_table() {
  static const Kernels table = [] {
    Kernels t = cpu::kNeon;
    if (supported().smmla) {
      t.gemm = cpu::smmla_gemm;
      t.multiply_in_registers = cpu::smmla_multiply_in_registers;
    } else if (supported().sdot) {
      t.gemm = cpu::sdot_gemm;
      t.multiply_in_registers = cpu::sdot_multiply_in_registers;
    }
    return t;
  }();
  return table;
}

#endif

#if defined(__x86_64__) || defined(__aarch64__)

/// The exact table that the class `fast` takes its other products from. Not amx, on whose tiles
/// bf16 is as fast in the exact order.
const Kernels& base_of_fast() {
#if defined(__x86_64__)
  return vnni_table();
#else
  return neon_table();
#endif
}

void fast_gemm(const GemmArgs& args) {
  if (multiplies_bf16(args.weights->type))
    cpu::dot_gemm(args);
  else
    base_of_fast().gemm(args);
}

std::uint64_t fast_multiply_in_registers(WeightType weights, std::int64_t rounds) {
  return multiplies_bf16(weights) ? cpu::dot_multiply_in_registers(rounds)
                                  : base_of_fast().multiply_in_registers(weights, rounds);
}

const Kernels& fast_table() {
  static const Kernels table = [] {
    Kernels t = base_of_fast();
    t.name = t.isa == Isa::neon ? "neon fast" : "avx512 fast";
    t.gemm = fast_gemm;
    t.multiply_in_registers = fast_multiply_in_registers;
    return t;
  }();
  return table;
}

#endif

std::string names_of_supported() {
  std::string names;
  for (const Isa isa : kAllIsas) {
    if (!isa_supported(isa)) continue;
    if (!names.empty()) names += ", ";
    names += isa_name(isa);
  }
  return names;
}

const Kernels& choose() {
  const char* wanted = std::getenv("FERRY_ISA");
  if (wanted != nullptr && *wanted != '\0') {
    for (const Isa isa : kAllIsas)
      if (isa_name(isa) == wanted) return kernels_for(isa);
    fail<ConfigError>(
        "FERRY_ISA={}: no such instruction set; this machine has {}", wanted, names_of_supported());
  }
  Isa best = Isa::scalar;
  for (const Isa isa : kAllIsas)
    if (isa_supported(isa)) best = isa;
  return kernels_for(best);
}

}  // namespace

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return supported().avx2;
    case Isa::avx2_vnni:
      return supported().avx2_vnni;
    case Isa::avx512:
      return supported().avx512;
    case Isa::amx:
      return supported().amx;
    case Isa::neon:
      return supported().neon;
  }
  return false;
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx2_vnni:
      return "avx2_vnni";
    case Isa::avx512:
      return "avx512";
    case Isa::amx:
      return "amx";
    case Isa::neon:
      return "neon";
  }
  return "?";
}

const Kernels& kernels_for(Isa isa) {
  if (!isa_supported(isa)) {
    fail<ConfigError>("this machine has no {} kernels; it has {}: choose one with FERRY_ISA",
                      isa_name(isa),
                      names_of_supported());
  }
#if defined(__x86_64__)
  if (isa == Isa::avx2) return cpu::kAvx2;
  if (isa == Isa::avx2_vnni) return avx2_vnni_table();
  if (isa == Isa::avx512) return supported().vnni ? vnni_table() : cpu::kAvx512;
  if (isa == Isa::amx) return cpu::amx_table();
#elif defined(__aarch64__)
  if (isa == Isa::neon) return neon_table();
#endif
  return cpu::kScalar;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const Kernels& kernels([[maybe_unused]] Numerics numerics) {
  const Kernels& exact = kernels();
#if defined(__x86_64__) || defined(__aarch64__)
  if (numerics == Numerics::fast && supported().bf16 && exact.isa == base_of_fast().isa)
    return fast_table();
#endif
  return exact;
}

std::string_view numerics_name(Numerics numerics) {
  const Kernels& own = kernels(numerics);
  if (&own == &kernels()) return "exact";
  return own.isa == Isa::neon ? "fast (bf16 by BFDOT)" : "fast (bf16 by VDPBF16PS)";
}

std::string arithmetic_name(Numerics numerics) {
  const std::string isa(isa_name(kernels().isa));
  const std::string_view name = numerics_name(numerics);
  return name == "exact" ? isa : fmt::format("{}, {}", isa, name);
}

Numerics parse_numerics(std::string_view name, std::string_view option) {
  if (name == "exact") return Numerics::exact;
  if (name == "fast") return Numerics::fast;
  fail<ConfigError>("{} {}: choose exact or fast", option, name);
}

std::string_view gemm_method(WeightType type) {
  const bool integers = takes_int8_rows(type);
  switch (kernels().isa) {
    case Isa::scalar:
      break;
    case Isa::avx2:
      return integers ? "AVX2 VPMADDUBSW" : "AVX2 FMA";
    case Isa::avx2_vnni:
      return integers ? "AVX-VNNI" : "AVX2 FMA";
    case Isa::amx:
      if (type == WeightType::bf16) return "AMX tiles, one or two rows AVX-512 FMA";
      if (type == WeightType::fp8 || type == WeightType::mxfp4 ||
          (is_ggml(type) && !is_byte_block(type)))
        return "AMX tiles, up to seven rows AVX-512 FMA";
      if (type == WeightType::int8) return "AMX tiles, one or two rows AVX-512 VNNI";
      [[fallthrough]];
    case Isa::avx512:
      if (!integers) return "AVX-512 FMA";
      return supported().vnni ? "AVX-512 VNNI" : "AVX-512 VPMADDWD";
    case Isa::neon:
      if (!integers) return "NEON FMA";
      if (supported().smmla && !is_byte_block(type)) return "NEON SMMLA, one row SDOT";
      return supported().sdot ? "NEON SDOT" : "NEON SMULL";
  }
  return "plain C++";
}

#if defined(__x86_64__)

const Kernels& cpu::amx_table() {
  static const Kernels table = [] {
    Kernels t = vnni_table();
    t.isa = Isa::amx;
    t.name = "amx";
    t.gemm = amx_gemm;
    t.gemm_scratch_bytes = amx_gemm_scratch_bytes;
    t.multiply_in_registers = amx_multiply_in_registers;
    return t;
  }();
  return table;
}

#endif

std::byte* cpu::aligned_scratch(const GemmArgs& args,
                                [[maybe_unused]] std::size_t needed) noexcept {
  assert(args.scratch.size() >= needed);
  constexpr std::uintptr_t kLine = 64;
  const auto address = reinterpret_cast<std::uintptr_t>(args.scratch.data());
  return args.scratch.data() +
         (round_up(static_cast<std::int64_t>(address), kLine) - static_cast<std::int64_t>(address));
}

}  // namespace ferry
