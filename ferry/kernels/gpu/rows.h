// Rows by warps: converted, quantised, read, copied and summed. Each function is called by all
// threads of a warp for a piece of a row, values [first, first + count), and gives the bytes that
// the CPU's kernels give (kernels.h: convert, encode, decode, weighted_sum). Pieces begin at
// multiples of kWarpValues, so that the warp is inside one block of scales at any time.
#pragma once

#include <type_traits>

#include "ferry/kernels/gpu/elements.h"

namespace ferry::gpu {

inline constexpr std::int64_t kWarpValues = 4 * kWarpThreads;
static_assert(kWarpValues == kWireBlock);

/// Values of a row that are worth a warp of their own.
inline constexpr std::int64_t kPieceValues = 4 * kWarpValues;

/// body(i, count): this lane's values, up to 4 in each turn. All lanes take as many turns.
template <class Thread, class Body>
FERRY_GPU void for_fours(Thread& t, std::int64_t first, std::int64_t count, Body body) {
  const std::int64_t last = first + count;
  for (std::int64_t turn = first; turn < last; turn += kWarpValues) {
    const std::int64_t i = turn + std::int64_t{4} * t.lane();
    body(i, i >= last ? 0 : static_cast<int>(last - i < 4 ? last - i : 4));
  }
}

template <class Thread>
FERRY_GPU void copy_bytes(Thread& t, std::byte* to, const std::byte* from, std::int64_t bytes) {
  constexpr std::int64_t kWide = sizeof(Words);
  const bool wide = aligned_to(to, kWide) && aligned_to(from, kWide);
  const std::int64_t whole = wide ? bytes / kWide : 0;
  for (std::int64_t i = t.lane(); i < whole; i += kWarpThreads)
    t.store(reinterpret_cast<Words*>(to) + i, t.load(reinterpret_cast<const Words*>(from) + i));
  for (std::int64_t i = whole * kWide + t.lane(); i < bytes; i += kWarpThreads)
    t.store(to + i, t.load(from + i));
}

template <class In, class Out, class Thread>
FERRY_GPU void convert(
    Thread& t, const std::byte* in, std::byte* out, std::int64_t first, std::int64_t count) {
  if constexpr (std::is_same_v<In, Out>) {
    constexpr std::int64_t kBytes = sizeof(typename In::One);
    copy_bytes(t, out + first * kBytes, in + first * kBytes, count * kBytes);
  } else {
    for_fours(t, first, count, [&](std::int64_t i, int some) {
      store_four<Out>(t, out, i, load_four<In>(t, in, i, some), some);
    });
  }
}

template <class Format>
FERRY_GPU float scale_for(std::uint32_t greatest) {
  if (greatest >= 0x7f800000U) return float_of(0x7fc00000U);
  constexpr float kSmallest = 0x1p-126F;
  const float wanted = float_of(greatest) / Format::Code::kGreatest;
  return Format::Scales::representable(wanted > kSmallest ? wanted : kSmallest);
}

/// Zeros where a quantised row of n values has neither values nor scales.
template <class Format, class Thread>
FERRY_GPU void pad_row(Thread& t, std::byte* out, std::int64_t n) {
  const std::int64_t blocks = (n + Format::values(n) - 1) / Format::values(n);
  const std::int64_t used = Format::scales_at(n) + blocks * Format::Scales::kBytes;
  for (std::int64_t i = n + t.lane(); i < Format::scales_at(n); i += kWarpThreads)
    t.store(out + i, std::byte{0});
  for (std::int64_t i = used + t.lane(); i < (used + 15) / 16 * 16; i += kWarpThreads)
    t.store(out + i, std::byte{0});
}

/// Quantises the block of scales that begins at `first` of a row of n values.
template <class In, class Format, class Thread>
FERRY_GPU void quantize_block(
    Thread& t, const std::byte* in, std::byte* out, std::int64_t n, std::int64_t first) {
  const std::int64_t values = Format::values(n);
  const std::int64_t count = n - first < values ? n - first : values;
  std::uint32_t greatest = 0;
  for_fours(t, first, count, [&](std::int64_t i, int some) {
    const Four v = load_four<In>(t, in, i, some);
    for (const float x : v.x) {  // zeros where the row has ended
      const std::uint32_t bits = magnitude_bits(x);
      greatest = greatest > bits ? greatest : bits;
    }
  });
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) {
    const std::uint32_t other = t.shuffle_xor(greatest, mask);
    greatest = greatest > other ? greatest : other;
  }
  const float scale = scale_for<Format>(greatest);
  if (t.lane() == 0) Format::Scales::write(t, out + Format::scales_at(n), first / values, scale);
  const bool number = scale == scale;
  const float inverse = 1.0F / scale;
  for_fours(t, first, count, [&](std::int64_t i, int some) {
    Four v = load_four<In>(t, in, i, some);
    for (float& x : v.x) x = x * inverse;
    if (number) {
      store_four<typename Format::Element>(t, out, i, v, some);
      return;
    }
    for (int j = 0; j < some; ++j)
      t.store(reinterpret_cast<std::uint8_t*>(out) + i + j, Format::Code::kNan);
  });
  if (first + count == n) pad_row<Format>(t, out, n);
}

/// Values of a row of n that one warp encodes at a time.
FERRY_GPU std::int64_t encode_piece(WireType wire, std::int64_t n) {
  if (wire == WireType::int8) return n > 0 ? n : 1;
  return wire == WireType::f32 || wire == WireType::bf16 ? kPieceValues : kWireBlock;
}

/// How a row of n values travels.
struct RowCode {
  WireType wire = WireType::f32;
  std::int64_t n = 0;
};

/// Writes the piece at `first` of a row as it travels.
template <class Thread>
FERRY_GPU void encode(Thread& t,
                      const std::byte* in,
                      DType in_type,
                      std::byte* out,
                      const RowCode& code,
                      std::int64_t first) {
  with_wire(code.wire, [&]<class Format>(Format) {
    with_element(in_type, [&]<class In>(In) {
      if constexpr (Format::kQuantized) {
        quantize_block<In, Format>(t, in, out, code.n, first);
      } else {
        const std::int64_t rest = code.n - first;
        const std::int64_t count = rest < kPieceValues ? rest : kPieceValues;
        convert<In, typename Format::Element>(t, in, out, first, count);
      }
    });
  });
}

/// This lane's values of a row that arrived.
template <class Format, class Thread>
FERRY_GPU Four
read_four(Thread& t, const std::byte* row, std::int64_t n, std::int64_t i, int some) {
  Four v = load_four<typename Format::Element>(t, row, i, some);
  if constexpr (Format::kQuantized) {
    const float scale = some > 0 ? Format::scale(t, row, n, i) : 0.0F;
    for (float& x : v.x) x = x * scale;
  }
  return v;
}

/// The piece at `first` of a row that arrived, as plain values.
template <class Thread>
FERRY_GPU void decode(Thread& t,
                      const std::byte* in,
                      const RowCode& code,
                      std::byte* out,
                      DType out_type,
                      std::int64_t first) {
  const std::int64_t rest = code.n - first;
  const std::int64_t count = rest < kPieceValues ? rest : kPieceValues;
  with_wire(code.wire, [&]<class Format>(Format) {
    with_element(out_type, [&]<class Out>(Out) {
      for_fours(t, first, count, [&](std::int64_t i, int some) {
        store_four<Out>(t, out, i, read_four<Format>(t, in, code.n, i, some), some);
      });
    });
  });
}

/// One lane's part of a weighted sum's terms.
struct Term {
  const std::byte* row = nullptr;  ///< null: none
  float weight = 0;
};

/// Where sums go.
struct SumTarget {
  std::byte* row = nullptr;
  DType type = DType::f32;
  bool accumulate = false;
};

/// The weighted sum over the lanes' terms, in order of lanes, for a piece of `piece` values.
template <class Thread>
FERRY_GPU void weighted_sum(Thread& t,
                            const Term& term,
                            const RowCode& code,
                            const SumTarget& target,
                            std::int64_t first,
                            std::int64_t piece = kPieceValues) {
  const std::int64_t rest = code.n - first;
  const std::int64_t count = rest < piece ? rest : piece;
  const std::uint32_t terms = t.ballot(term.row != nullptr);
  with_wire(code.wire, [&]<class Format>(Format) {
    with_element(target.type, [&]<class Out>(Out) {
      for_fours(t, first, count, [&](std::int64_t i, int some) {
        Four sum{};
        for (int k = 0; k < kWarpThreads && terms >> k != 0; ++k) {
          if ((terms >> k & 1U) == 0) continue;
          const auto address = t.shuffle(__builtin_bit_cast(std::uint64_t, term.row), k);
          const float weight = t.shuffle(term.weight, k);
          const Four v =
              read_four<Format>(t, __builtin_bit_cast(const std::byte*, address), code.n, i, some);
          for (int j = 0; j < 4; ++j) sum.x[j] = fmaf(weight, v.x[j], sum.x[j]);
        }
        if (target.accumulate) {
          const Four before = load_four<Out>(t, target.row, i, some);
          for (int j = 0; j < 4; ++j) sum.x[j] = before.x[j] + sum.x[j];
        }
        store_four<Out>(t, target.row, i, sum, some);
      });
    });
  });
}

}  // namespace ferry::gpu
