#include "kernels/amx_emulator.h"

#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "ferry/core/threads.h"
#include "ferry/kernels/cpu/tables.h"

namespace ferry::testing {

namespace {

constexpr int kTiles = 8;
constexpr int kMostRows = 16;
constexpr int kRowBytes = 64;

std::atomic<std::uint64_t> products_done = 0;

/// As ldtilecfg reads it.
struct Config {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

static_assert(sizeof(Config) == 64);

struct Tile {
  std::array<std::array<std::byte, kRowBytes>, kMostRows> row;

  template <class T>
  T at(int r, int i) const {
    T value;
    std::memcpy(&value,
                row[static_cast<std::size_t>(r)].data() + sizeof(T) * static_cast<std::size_t>(i),
                sizeof value);
    return value;
  }

  template <class T>
  void set(int r, int i, T value) {
    std::memcpy(row[static_cast<std::size_t>(r)].data() + sizeof(T) * static_cast<std::size_t>(i),
                &value,
                sizeof value);
  }
};

/// What a thread's tiles hold; all zeros where none are configured.
struct State {
  Config config;
  Tile tiles[kTiles];
};

thread_local State state;

/// Only what a signal handler may call.
[[noreturn]] void refuse(std::string_view why) {
  constexpr std::string_view kIntro = "AmxEmulator: ";
  for (const std::string_view text : {kIntro, why, std::string_view("\n")})
    if (write(STDERR_FILENO, text.data(), text.size()) < 0) break;
  std::abort();
}

/// One instruction: VEX prefix of three bytes, opcode, ModRM and what follows it.
class Instruction {
 public:
  Instruction(const std::uint8_t* code, const gregset_t& registers)
      : code_(code), registers_(registers) {
    constexpr std::uint8_t kVex3 = 0xc4;
    constexpr int kMap0F38 = 2;
    if (code[0] != kVex3 || (code[1] & 31) != kMap0F38 || (code[2] & 0x84) != 0)
      refuse("not an AMX instruction");
    at_ = code + 5;
    if (mod() != 3) decode_memory();
  }

  std::uint8_t opcode() const { return code_[3]; }

  /// 0: none, 1: 66, 2: F3, 3: F2.
  int prefix() const { return code_[2] & 3; }

  int mod() const { return modrm() >> 6; }

  int reg() const { return (modrm() >> 3) & 7; }

  int rm() const { return modrm() & 7; }

  int vvvv() const { return ~(code_[2] >> 3) & 15; }

  std::byte* memory() const {
    if (address_ == 0) refuse("an instruction wants an address");
    return std::bit_cast<std::byte*>(address_);
  }

  std::int64_t stride() const { return stride_; }

  const std::uint8_t* end() const { return at_; }

 private:
  std::uint8_t modrm() const { return code_[4]; }

  /// Whether VEX extends a register's number; its bits are inverted.
  int extension(int bit) const { return (code_[1] >> bit & 1) == 0 ? 8 : 0; }

  std::int64_t value_of(int number) const {
    constexpr int kPlaces[16] = {REG_RAX,
                                 REG_RCX,
                                 REG_RDX,
                                 REG_RBX,
                                 REG_RSP,
                                 REG_RBP,
                                 REG_RSI,
                                 REG_RDI,
                                 REG_R8,
                                 REG_R9,
                                 REG_R10,
                                 REG_R11,
                                 REG_R12,
                                 REG_R13,
                                 REG_R14,
                                 REG_R15};
    return registers_[kPlaces[number]];
  }

  template <class T>
  std::int64_t displacement() {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  void decode_memory() {
    constexpr int kSib = 4;
    constexpr int kNoBase = 5;
    constexpr int kNoIndex = 4;
    constexpr int kExtendsIndex = 6;
    constexpr int kExtendsBase = 5;
    int base = rm();
    if (base == kSib) {
      const std::uint8_t sib = *at_++;
      const int index = (sib >> 3 & 7) + extension(kExtendsIndex);
      if (index != kNoIndex) stride_ = value_of(index) * (1 << (sib >> 6));
      base = sib & 7;
    }
    const bool no_base = mod() == 0 && base == kNoBase;
    if (!no_base) address_ = value_of(base + extension(kExtendsBase));
    if (mod() == 1) address_ += displacement<std::int8_t>();
    if (mod() == 2 || no_base) address_ += displacement<std::int32_t>();
    if (no_base && rm() == kNoBase) address_ += reinterpret_cast<std::int64_t>(at_);
  }

  const std::uint8_t* code_;
  const gregset_t& registers_;
  const std::uint8_t* at_ = nullptr;
  std::int64_t address_ = 0;
  std::int64_t stride_ = 0;
};

int rows_of(int tile) { return state.config.rows[tile]; }

int row_bytes_of(int tile) { return state.config.row_bytes[tile]; }

void check_configured() {
  if (state.config.palette != 1) refuse("a tile is used without a configuration");
}

void configure(const std::byte* from) {
  std::memset(&state, 0, sizeof state);
  std::memcpy(&state.config, from, sizeof state.config);
  if (state.config.palette > 1) refuse("no such palette");
  for (int t = 0; t < kTiles; ++t)
    if (rows_of(t) > kMostRows || row_bytes_of(t) > kRowBytes || row_bytes_of(t) % 4 != 0)
      refuse("a tile of this shape does not exist");
}

Tile& cleared(int tile) {
  std::memset(&state.tiles[tile], 0, sizeof(Tile));
  return state.tiles[tile];
}

void load(const Instruction& in) {
  Tile& tile = cleared(in.reg());
  for (int r = 0; r < rows_of(in.reg()); ++r)
    std::memcpy(tile.row[static_cast<std::size_t>(r)].data(),
                in.memory() + r * in.stride(),
                static_cast<std::size_t>(row_bytes_of(in.reg())));
}

void store(const Instruction& in) {
  for (int r = 0; r < rows_of(in.reg()); ++r)
    std::memcpy(in.memory() + r * in.stride(),
                state.tiles[in.reg()].row[static_cast<std::size_t>(r)].data(),
                static_cast<std::size_t>(row_bytes_of(in.reg())));
}

/// The three tiles of a product: sums [m][n], a [m][k fours of bytes], b [k][n fours of bytes].
struct Operands {
  Tile& sums;
  const Tile& a;
  const Tile& b;
  int m;
  int n;
  int k;
};

Operands operands_of(const Instruction& in) {
  const int a = in.rm();
  const int b = in.vvvv();
  if (b >= kTiles || in.reg() == a || in.reg() == b || a == b)
    refuse("a product wants three tiles");
  const Operands operands{.sums = state.tiles[in.reg()],
                          .a = state.tiles[a],
                          .b = state.tiles[b],
                          .m = rows_of(in.reg()),
                          .n = row_bytes_of(in.reg()) / 4,
                          .k = row_bytes_of(a) / 4};
  if (rows_of(a) != operands.m || row_bytes_of(b) / 4 != operands.n || rows_of(b) != operands.k)
    refuse("the tiles of a product do not fit together");
  products_done.fetch_add(1, std::memory_order_relaxed);
  return operands;
}

float from_bf16(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

/// Even and odd halves of pairs are summed apart, by fused multiply-adds from 0, and added to the
/// sums at the end; denormals are zeros. REQUIRES: the thread flushes denormals.
void multiply_bf16(const Operands& o) {
  for (int m = 0; m < o.m; ++m) {
    float even[kMostRows] = {};
    float odd[kMostRows] = {};
    for (int k = 0; k < o.k; ++k) {
      const float a_even = from_bf16(o.a.at<std::uint16_t>(m, 2 * k));
      const float a_odd = from_bf16(o.a.at<std::uint16_t>(m, 2 * k + 1));
      for (int n = 0; n < o.n; ++n) {
        even[n] = std::fmaf(a_even, from_bf16(o.b.at<std::uint16_t>(k, 2 * n)), even[n]);
        odd[n] = std::fmaf(a_odd, from_bf16(o.b.at<std::uint16_t>(k, 2 * n + 1)), odd[n]);
      }
    }
    for (int n = 0; n < o.n; ++n) {
      const float both = even[n] + odd[n];
      o.sums.set(m, n, o.sums.at<float>(m, n) + both);
    }
  }
}

template <class A, class B>
void multiply_bytes(const Operands& o) {
  for (int m = 0; m < o.m; ++m) {
    for (int n = 0; n < o.n; ++n) {
      auto sum = o.sums.at<std::uint32_t>(m, n);  // wraps around
      for (int i = 0; i < 4 * o.k; ++i) {
        const int product = int{o.a.at<A>(m, i)} * int{o.b.at<B>(i / 4, 4 * n + i % 4)};
        sum += static_cast<std::uint32_t>(product);
      }
      o.sums.set(m, n, sum);
    }
  }
}

void run_bytes(const Instruction& in) {
  const Operands operands = operands_of(in);
  using Signed = std::int8_t;
  using Unsigned = std::uint8_t;
  if (in.prefix() == 0) return multiply_bytes<Unsigned, Unsigned>(operands);
  if (in.prefix() == 1) return multiply_bytes<Unsigned, Signed>(operands);
  if (in.prefix() == 2) return multiply_bytes<Signed, Unsigned>(operands);
  multiply_bytes<Signed, Signed>(operands);
}

void run_configuration(const Instruction& in) {
  const bool memory = in.mod() != 3;
  if (memory && in.prefix() == 0 && in.reg() == 0) return configure(in.memory());
  if (!memory && in.prefix() == 0) {
    std::memset(&state, 0, sizeof state);
    return;
  }
  if (memory || in.prefix() != 3) refuse("this instruction is not emulated");
  check_configured();
  cleared(in.reg());
}

void run(const Instruction& in) {
  constexpr std::uint8_t kConfigure = 0x49;  // ldtilecfg, tilerelease, tilezero
  constexpr std::uint8_t kMove = 0x4b;       // tileloadd, tileloaddt1, tilestored
  constexpr std::uint8_t kBf16 = 0x5c;
  constexpr std::uint8_t kBytes = 0x5e;
  if (in.opcode() == kConfigure) return run_configuration(in);
  check_configured();
  if (in.opcode() == kMove) return in.prefix() == 2 ? store(in) : load(in);
  if (in.opcode() == kBf16 && in.prefix() == 2) return multiply_bf16(operands_of(in));
  if (in.opcode() == kBytes) return run_bytes(in);
  refuse("this instruction is not emulated");
}

void on_illegal_instruction(int /*signal*/, siginfo_t* /*info*/, void* context) {
  const FlushDenormals flush;  // whatever the thread does: tiles always do
  gregset_t& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction in(std::bit_cast<const std::uint8_t*>(registers[REG_RIP]), registers);
  run(in);
  registers[REG_RIP] = reinterpret_cast<greg_t>(in.end());
}

}  // namespace

AmxEmulator::AmxEmulator() {
  struct sigaction action = {};
  action.sa_sigaction = on_illegal_instruction;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, &before_);
}

AmxEmulator::~AmxEmulator() { sigaction(SIGILL, &before_, nullptr); }

bool AmxEmulator::useful() {
  return !isa_supported(Isa::amx) && isa_supported(Isa::avx512) &&
         kernels_for(Isa::avx512).gemm == cpu::vnni_gemm;
}

std::uint64_t AmxEmulator::products() { return products_done.load(std::memory_order_relaxed); }

}  // namespace ferry::testing
